"""Make the starting weights: ``python -m benchmarks.starting_weights`` draws, prepares, trains and writes them.

Every step is the verb itself, in a process of its own, and is left out when it is done: start it again to resume.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from synfundus.artifacts.autoencoder_folder import forget_origin
from synfundus.artifacts.model_export import save_pipeline
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.models.autoencoder import LatentAutoencoder, fingerprint
from synfundus.photographs.crosswalk import SECRET_NAME
from synfundus.stages.starting_weights import DRAWN
from synfundus.stages.train_vae.held_out import judge_reconstructions
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import SilentConsole

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "starting_weights" / "recipe.yaml"
FIGURES = 512
CARD_NAME = "README.md"

CARD = """---
license: apache-2.0
library_name: diffusers
---

# Starting weights of drawn eyes

{what} of fundus photographs that has seen none: it was trained on {images:,} phantoms alone, pictures that
`synfundus phantoms` draws. No photograph, no patient, no third-party weights are in it. It is where training on
photographs starts, not a finished model.

| | |
|---|---|
| autoencoder | AutoencoderKL of diffusers, a linear path beside it; f{factor}, {channels} latent channels |
| its size | {parameters:,} parameters |
{denoiser}| images | {size_px} px |
| trained | {vae_images:,} images, epochs included |
| stored in | half precision, the linear path in fp32; trained in fp32 |
| made by | `make starting-weights` with `recipe.yaml` beside this card: fixed seed, fixed number of images |
| trained with | synfundus {synfundus}, torch {torch} |
| fingerprint | {fingerprint} |
| licence | that of synfundus, Apache-2.0 (`LICENSE`) |

Of {judged} held-out phantoms, with these weights as they are stored: PSNR {psnr_db:.2f} dB, SSIM {ssim:.3f}, vessel
correlation {vessels}. Nothing here says how well it does on photographs: that is measured where they are.

Not for diagnosis. Images made by it prove nothing about an eye.
"""


DENOISER = """| denoiser | UNet2DConditionModel of diffusers and a conditioner of the default labels |
| its size | {parameters:,} parameters |
| trained | {images:,} images, epochs included |
| fingerprint | {fingerprint} |
"""


_OURS = {CARD_NAME, "LICENSE", "recipe.yaml", "synfundus.json", "model_index.json"}
_OURS |= {"vae", "unet", "conditioner", "scheduler", "diffusers"}
"""What a folder of starting weights holds."""


def steps(work: Path, recipe: Path, *, denoiser: bool) -> list[tuple[Path, list[str]]]:
    """Return the verbs to run, each with the file it leaves when it is done; with ``denoiser`` those of a model."""
    common = ["--preset", "demo-cpu", "--config", str(recipe)]
    phantoms, images, vae, latents, model = (work / name for name in ("phantoms", "images", "vae", "latents", "model"))
    made = ["--source", str(phantoms), "--labels", str(phantoms / "labels.csv"), "--out", str(images)]
    found = [
        (phantoms / "labels.csv", ["phantoms", *common, "--out", str(phantoms)]),
        (images / "manifest.json", ["prepare", *common, *made, "--crosswalk", str(work / "crosswalk")]),
        (vae / "export" / "vae" / "config.json", ["train-vae", *common, "--data", str(images), "--run-dir", str(vae)]),
    ]
    more = [
        (
            latents / "manifest.json",
            ["encode-latents", *common, "--data", str(images), "--vae", str(vae), "--out", str(latents)],
        ),
        (
            model / "export" / "synfundus.json",
            ["train", *common, "--latents", str(latents), "--vae", str(vae), "--run-dir", str(model)],
        ),
    ]
    return [*found, *(more if denoiser else [])]


def run_steps(work: Path, recipe: Path, *, denoiser: bool) -> None:
    """Run what is not done yet; ends with the code of a verb that fails or is stopped."""
    key = work / "crosswalk" / SECRET_NAME
    if not key.exists():  # keys decide order and splits: phantoms have nothing to hide, and a drawn key no second time
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text(hashlib.sha256(b"phantoms").hexdigest() + "\n")
    for proof, arguments in steps(work, recipe, denoiser=denoiser):
        print(f"--- {arguments[0]}{': done' if proof.exists() else ''}", flush=True)
        if not proof.exists():
            run_verb(arguments)


def run_verb(arguments: Sequence[str]) -> None:
    """Run a verb to its end, also after a signal: it saves then, and says so."""
    process = subprocess.Popen([sys.executable, "-m", "synfundus", *arguments])
    before = {
        # a terminal sends Ctrl-C to both
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
    }
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code:
        print(f"{arguments[0]} ended with code {code}: start it all again, and what is done is kept", file=sys.stderr)
        raise SystemExit(code if code > 0 else 128 - code)


def require_ours(out: Path) -> None:
    """End unless a folder, which is replaced, is missing or holds nothing but starting weights."""
    if out.exists() and any(path.name not in _OURS for path in out.iterdir()):
        raise SystemExit(f"{out} holds something else than starting weights: give another --out, or move it away")


def write_weights(work: Path, recipe: Path, out: Path, *, denoiser: bool) -> dict[str, Any]:
    """Write the folder of the weights, judged as they are stored; returns its figures."""
    images = load_shard_set(str(work / "images"), kind="images")
    require_ours(out)
    shutil.rmtree(out, ignore_errors=True)
    rows = _write_model(work, out) if denoiser else _write_autoencoder(work, out)
    stored = LatentAutoencoder.from_pretrained(out / "vae").eval()
    figures: Mapping[str, Any] = judge_reconstructions(stored, images, count=FIGURES, console=SilentConsole())
    environment = json.loads((work / "vae" / "environment.json").read_text())
    trained = json.loads((work / "vae" / "ledger.jsonl").read_text().splitlines()[-1])
    facts = {
        "images": images.num_samples("train"),
        "parameters": sum(one.numel() for one in stored.network.parameters()),
        "factor": stored.downsample_factor,
        "channels": stored.latent_channels,
        "size_px": images.properties["image_size_px"],
        "vae_images": trained["images_seen"],
        "fingerprint": fingerprint(stored),  # in single precision: as a run that starts from them names it
        "torch": torch.__version__,
        "synfundus": environment["versions"]["synfundus"],
        "judged": figures["evaluated_images"],
        "vessels": f"{figures['vessel_correlation']:.2f}" if "vessel_correlation" in figures else "not judged",
    }
    what = "A model" if denoiser else "An autoencoder"
    (out / CARD_NAME).write_text(CARD.format(what=what, denoiser=rows, **facts, **figures), encoding="utf-8")
    shutil.copy(ROOT / "LICENSE", out / "LICENSE")
    shutil.copy(recipe, out / "recipe.yaml")
    for path in out.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # written for their owner alone, and a wheel keeps that
    return {**facts, **figures}


def _write_autoencoder(work: Path, out: Path) -> str:
    LatentAutoencoder.from_pretrained(work / "vae" / "export" / "vae").half().save_pretrained(out / "vae")
    forget_origin(out)
    return ""


def _write_model(work: Path, out: Path) -> str:
    """Write the whole model; returns what the card says of its denoiser."""
    made = load_pipeline(work / "model" / "export", device=torch.device("cpu"))
    halved, denoiser = made.autoencoder.half(), made.denoiser.half()
    setup = replace(made, autoencoder=halved, autoencoder_fingerprint=fingerprint(halved))
    model = save_pipeline(out, denoiser=denoiser, setup=setup, training_summary=made.training_summary)
    parameters = sum(one.numel() for one in denoiser.parameters())
    return DENOISER.format(parameters=parameters, images=made.training_summary["images_seen"], fingerprint=model)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the weights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starting_weights", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("starting-weights-work"), help="Folder of all steps.")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="Configuration over the preset demo-cpu.")
    parser.add_argument("--out", type=Path, default=ROOT / "starting_weights" / DRAWN, help="Folder of the weights.")
    parser.add_argument("--denoiser", action="store_true", help="Train a denoiser on its latents, too: hours more.")
    given = parser.parse_args(arguments)
    require_ours(given.out)  # hours before it is written
    run_steps(given.work, given.recipe, denoiser=given.denoiser)
    print(json.dumps(write_weights(given.work, given.recipe, given.out, denoiser=given.denoiser), indent=2))


if __name__ == "__main__":
    main()
