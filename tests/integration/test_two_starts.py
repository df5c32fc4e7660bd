"""The same command started twice: the first goes on untouched, the second is refused and names it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns import report
from forked_python import Popen
from phantom_clinic import write_clinic
from rank_processes import REPOSITORY, clean_environment, run_cli
from tiny_pipeline import tiny_denoiser, write_tiny_pipeline
from tiny_runs import assert_same_run, settings, train_here
from tiny_sets import tiny_config, write_config

from synfundus.artifacts.ema_snapshots import write_snapshot
from synfundus.distributed.world import LocalWorld, World
from synfundus.stages.sample import job as sample
from synfundus.storage import filesystem
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole
from synfundus.training.ema import Profile

PATIENCE_S = 180.0
WAITS_IN = {
    "train": "synfundus.distributed.engine:ZeroEngine.step",
    "train-vae": "synfundus.distributed.engine:ZeroEngine.step",
    "encode-latents": "synfundus.stages.encode_latents.shard_encoder:ShardEncoder._write",
    "sample": "synfundus.stages.sample.factory:_draw",
    "phantoms": "synfundus.telemetry.console:_PlainProgress.advance",
    "prepare": "synfundus.stages.prepare.job:prepare_chunks",
    "forget": "synfundus.stages.forget.job:_write",
    "judge": "synfundus.stages.judge.job:_judge",
    "ema": "synfundus.stages.ema.job:_weighted_sum",
    "export": "synfundus.stages.export.job:resave_pipeline",
    "demo": "synfundus.stages.demo.job:_Demo.run_stage",
}
"""A function each verb calls when its folder is its own: there it waits for the second start."""


STARTS = 3
"""Of each verb in each place: more than 50 in all."""
TOO_LONG = ("demo", "judge")
"""Verbs whose first start is not waited for."""
QUICK = ("prepare", "forget", "judge", "ema", "export", "demo")


def second_start(command: list[str], verb: str, out: str) -> tuple[int, str, int, str, int]:
    """Start a command, and again while it works; return (exit code, output) of both, and the process id of the first.

    The first one stops itself at work; it is continued when the second has ended.
    """
    first = Popen(
        [sys.executable, str(Path(__file__).with_name("killed_run.py")), f"hang:stop:{WAITS_IN[verb]}:1", *command],
        env=clean_environment(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ends = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < ends, "the first start did not begin its work"
            time.sleep(0.05)
        assert filesystem.exists(filesystem.join(out, WRITER_NAME))
        second = run_cli(*command)
        rehearsed = run_cli(*command, "--dry-run")
        assert (rehearsed.returncode, "writes to this folder" in rehearsed.output) == (2, True), rehearsed.output
        os.kill(first.pid, signal.SIGKILL if verb in TOO_LONG else signal.SIGCONT)
        output = first.communicate(timeout=PATIENCE_S)[0]
    finally:
        first.kill()
        first.wait()
    return first.returncode, output, second.returncode, second.output, first.pid


def command_of(
    verb: str, out: str, *, latent_set: ShardSet, image_set: ShardSet, vae_run: Path, tmp_path: Path
) -> list[str]:
    if verb == "train":
        config = write_config(tmp_path / "run.yaml", settings(latent_set, Path("unused")))
        return ["train", "--config", str(config), "--run-dir", out]
    if verb == "train-vae":
        config = write_config(tmp_path / "run.yaml", {})
        return ["train-vae", "--config", str(config), "--data", image_set.url, "--run-dir", out]
    if verb == "encode-latents":
        return ["encode-latents", "--data", image_set.url, "--vae", str(vae_run), "--out", out, "--device", "cpu"]
    if verb == "sample":
        if not (tmp_path / "model").exists():
            write_tiny_pipeline(tmp_path / "model" / "export")
        return ["sample", "--model", str(tmp_path / "model"), "--num-images", "4", "--out", out, "--device", "cpu"]
    if verb == "phantoms":
        return ["phantoms", "--out", out, "--num-images", "8", "--image-size", "64"]
    return command_on_small_things(verb, out, image_set, tmp_path)


def command_on_small_things(verb: str, out: str, image_set: ShardSet, tmp_path: Path) -> list[str]:
    place = tmp_path / f"for-{verb}-{len(list(tmp_path.iterdir()))}"
    if verb == "demo":
        config = write_config(tmp_path / "demo.yaml", {"demo": {"fit_to_machine": False}})
        return ["demo", "--config", str(config), "--out", out]
    if verb in ("prepare", "forget"):
        write_clinic(place / "in", 4)
        work = ["--image-size", "64", "--workers", "0"]
        labels = ["--source", str(place / "in"), "--labels", str(place / "in" / "labels.csv")]
        crosswalk = ["--crosswalk", str(place / "names")]
        if verb == "prepare":
            return ["prepare", *labels, *crosswalk, "--out", out, *work]
        run_cli("prepare", *labels, *crosswalk, "--out", str(place / "set"), *work).check()
        return ["forget", *crosswalk, "--patient", "P0", "--out", out]
    write_tiny_pipeline(place / "run" / "export")
    (place / "run" / "run.json").write_text('{"kind": "diffusion"}')
    if verb == "judge":
        samples = {"out": str(place / "samples"), "model": str(place / "run"), "num_images": 4, "num_steps": 2}
        sample.run(tiny_config({"sample": samples}), LocalWorld(), SilentConsole())
        return ["judge", "--samples", str(place / "samples"), "--data", image_set.url, "--out", out, "--device", "cpu"]
    weights = {name: tensor.float() for name, tensor in tiny_denoiser().state_dict().items()}
    for width in (0.05, 0.1):
        write_snapshot(str(place / "run"), weights, Profile(8, width), LocalWorld())
    return [verb, "--run-dir", str(place / "run"), "--out", out, *(["--sigma-rel", "0.07"] if verb == "ema" else [])]


def check(command: list[str], verb: str, out: str) -> None:
    code, output, second, said, pid = second_start(command, verb, out)
    assert second == 2, said
    assert re.search(rf"process {pid} on \S+, since \S+ writes to this folder", said), said
    if verb in TOO_LONG:
        return
    assert code == 0, output
    assert not filesystem.exists(filesystem.join(out, WRITER_NAME))
    run_cli(*command).check()


@pytest.mark.parametrize("verb", QUICK)
def test_a_second_start_is_refused_and_the_first_goes_on(verb: str, image_set: ShardSet, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    check(command_on_small_things(verb, out, image_set, tmp_path), verb, out)


def test_a_training_goes_on_untouched_by_a_second_start(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    code, output, second, said, pid = second_start(["train", "--config", str(config)], "train", str(tmp_path / "run"))
    assert second == 2, said
    assert f"process {pid} on" in said
    assert code == 0, output
    train_here(latent_set, tmp_path / "undisturbed", world)
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("verb", WAITS_IN)
def test_two_starts_of_every_verb_on_a_disk_and_in_a_store(
    verb: str,
    latent_set: ShardSet,
    image_set: ShardSet,
    vae_run: Path,
    s3_bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures, count = [], 0
    for root in (str(tmp_path / "local"), f"{s3_bucket}/stored"):
        for number in range(STARTS):
            out = f"{root}/{verb}-{number}"
            command = command_of(
                verb, out, latent_set=latent_set, image_set=image_set, vae_run=vae_run, tmp_path=tmp_path
            )
            count += 1
            try:
                check(command, verb, out)
            except AssertionError as error:
                failures.append(f"{verb} to {out}: {error}")
    report(f"two starts of {verb}", failures, count, capsys)
