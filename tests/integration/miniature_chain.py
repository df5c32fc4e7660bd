"""The whole chain, seconds long, in a process that starts with umask 000 and an environment full of secrets.

``python miniature_chain.py FOLDER [long]`` runs the verbs one after the other through the command line's own entry.
The long chain also encodes, trains and samples, on two ranks.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from forked_python import run
from tiny_sets import write_config

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAQ4EXAMPLE7TESTAB",
    "AWS_SECRET_ACCESS_KEY": "tQ8vExampleSecretKey0fNobodyZZ9example1A",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEJr" + "Q9w8e7r6" * 12,
    "HF_TOKEN": "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",
    "WANDB_API_KEY": "8badf00d8badf00d8badf00d8badf00d8badf00d",
    "OTHER_PASSWORD": "correct-horse-battery-staple",
}
SIGNED_URL = "https://bucket.s3.amazonaws.com/set?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=feedfacecafebeef0123"
PASSWORD_URL = "s3://someuser:hunter2secret@bucket/set"
PLANTED = (*SECRETS.values(), "feedfacecafebeef0123", "hunter2secret")
"""None of these may be found anywhere afterwards."""

_CHANGES = {
    "train_vae": {"loop": {"budget_images": 16, "checkpoint_every_images": 8, "validation_images": 4}},
    "train": {
        "loop": {
            "budget_images": 32,
            "checkpoint_every_images": 16,
            "validation_images": 4,
            "validate_every_images": 16,
        }
    },
    "sample": {"contact_sheet_images": 2},
    "telemetry": {"tensorboard": True},
}


@dataclass(frozen=True)
class Chain:
    """What a chain left.

    Attributes:
        folder: Everything it wrote.
        output: Standard output and standard error, of every verb.
        codes: Exit codes.
    """

    folder: Path
    output: str
    codes: list[int]


def open_to_others(folder: Path) -> list[str]:
    """Return what somebody else could read, write or enter; the folder itself was made by the caller."""
    return [
        f"{stat.filemode(path.lstat().st_mode)} {path.relative_to(folder)}"
        for path in sorted(folder.rglob("*"))
        if path.name not in ("run.yaml", "carried.yaml") and path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def command_lines(folder: Path, *, long: bool) -> list[list[str]]:
    """Return the verbs with their options."""
    config = ["--config", str(folder / "run.yaml")]
    at = {name: str(folder / name) for name in ("photographs", "set", "vae", "latents", "run", "samples", "exported")}
    lines = [
        ["phantoms", "--out", at["photographs"], "--num-images", "24", "--image-size", "96", "--workers", "1"],
        ["prepare", "--source", at["photographs"], "--labels", f"{at['photographs']}/labels.csv", "--out", at["set"],
         "--image-size", "64", "--workers", "1"],
        ["inspect", "--data", at["set"], "--out", str(folder / "look"), "--verify"],
        ["train-vae", "--data", at["set"], "--run-dir", at["vae"], *config, "--debug"],
    ]  # fmt: skip
    if long:
        ranks = ["--procs-per-node", "2", "--set", "train.loop.micro_batch_size=4"]
        lines += [
            ["encode-latents", "--data", at["set"], "--vae", at["vae"], "--out", at["latents"], *config, *ranks],
            ["train", "--latents", at["latents"], "--run-dir", at["run"], *config, *ranks],
            ["sample", "--model", at["run"], "--out", at["samples"], "--num-images", "4", *config],
            ["export", "--run-dir", at["run"], "--out", at["exported"], *config],
            ["doctor"],
        ]
    return lines


def refused_lines(folder: Path) -> list[list[str]]:
    """Return command lines that carry secrets where none belong; each must end with an error."""
    secret = SECRETS["AWS_SECRET_ACCESS_KEY"]
    carried = folder / "carried.yaml"
    carried.write_text(f"telemetry:\n  wandb_project: {SECRETS['WANDB_API_KEY']}\ntrain_vae:\n  data: {PASSWORD_URL}\n")
    train = ["train", "--run-dir", str(folder / "refused"), "--debug"]
    return [
        [*train, "--latents", PASSWORD_URL],
        [*train, "--latents", SIGNED_URL],
        [*train, "--latents", f"s3://{SECRETS['AWS_ACCESS_KEY_ID']}:{secret}@bucket/set", "--dry-run"],
        [*train, "--latents", "no/such", "--set", f"telemetry.wandb_project={SECRETS['WANDB_API_KEY']}", "--dry-run"],
        [*train, "--latents", "no/such", "--set", f"launch.account={secret}", "--dry-run"],
        [*train, "--latents", "no/such", "--set", f"aws_secret_access_key={secret}"],
        [*train, "--latents", "no/such", "--set", f"train.{secret}=1"],
        [*train, "--latents", "no/such", "--preset", secret],
        [*train, "--latents", "no/such", "--seed", SECRETS["AWS_SESSION_TOKEN"]],
        [*train, "--latents", "no/such", "--config", str(carried)],
        [*train, "--latents", "no/such", "--config", f"/no/{SECRETS['HF_TOKEN']}.yaml"],
        [*train, "--latents", "no/such", f"--password={SECRETS['OTHER_PASSWORD']}"],
        [*train, "--latents", f"/no/such/{SECRETS['OTHER_PASSWORD']}"],
        ["inspect", "--data", SIGNED_URL, "--out", str(folder / "refused")],
        ["inspect", "--data", PASSWORD_URL, "--debug"],
        [SECRETS["HF_TOKEN"]],
    ]


def run_chain(folder: Path, *, long: bool) -> Chain:
    """Run the chain in a process of its own."""
    folder.mkdir()
    write_config(folder / "run.yaml", _CHANGES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    tests = Path(__file__).resolve().parents[1]
    done = run(
        [sys.executable, __file__, str(folder), *(["long"] if long else [])],
        env={**environment, **SECRETS, "PYTHONPATH": f"{tests}:{tests.parent}", "AWS_EC2_METADATA_DISABLED": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    (folder / "carried.yaml").unlink()
    *said, last = done.stdout.splitlines()
    if not last.startswith("CODES "):
        raise RuntimeError(done.stdout[-4000:])
    return Chain(folder, "\n".join(said), [int(code) for code in last.split()[1:]])


_SHORT: list[Chain] = []


def short_chain(folder: Path) -> Chain:
    """Return the short chain, which is run once for all tests, in the folder of the first."""
    if not _SHORT:
        _SHORT.append(run_chain(folder, long=False))
    return _SHORT[0]


def main(folder: Path, *, long: bool) -> None:
    """Run every command line as its own process would."""
    from synfundus.cli.app import run_command

    codes = []
    for line in [*command_lines(folder, long=long), *refused_lines(folder)]:
        os.umask(0)
        codes.append(run_command(line))
        sys.stdout.flush()
    print("CODES", *codes)


if __name__ == "__main__":
    os.umask(0)
    main(Path(sys.argv[1]), long="long" in sys.argv[2:])
