"""Step 7: train-vae with its discriminator, encode-latents in each precision, train, sample, as a user starts them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.setting import NARROW, QUIET, Ended, Setting, run_verb
from benchmarks.gpu_check.verdicts import Report
from benchmarks.measuring import write_phantom_images
from synfundus.shards.reader import ShardSetReader
from synfundus.storage.manifest import load_shard_set

PRESET = "fundus256"
LEAST_PSNR_DB = 30.0
"""Of bf16's moments against those in fp32: bf16 has 8 significant bits, and errors of many layers add up."""
_SAMPLERS = ("ddim", "dpmpp")


def run(setting: Setting, report: Report) -> None:
    """Walk the chain; where a verb fails the rest is left out."""
    folder = setting.folder
    count, edge = (8, 128) if setting.small else (64, 256)
    write_phantom_images(folder / "images", num_images=count, image_size_px=edge, shard_samples=count // 2)
    vae = folder / "vae"
    if not _verb(
        setting,
        report,
        "train-vae",
        ("--data", str(folder / "images"), "--run-dir", str(vae)),
        (
            "train_vae.loop.global_batch_size=4",
            "train_vae.loop.micro_batch_size=4",
            "train_vae.loop.budget_images=12",
            "train_vae.loop.preview_every_images=0",
            "train_vae.loop.validation_images=1",
            "train_vae.loop.channels_last=false",
            "train_vae.loss.adversarial_start_images=0",
        ),
        "3 steps with the discriminator",
    ):
        return
    _encode(setting, report, vae)
    latents = folder / "latents-fp32"
    if not latents.is_dir():
        return
    batch = min(8, count)
    quick = (
        *QUIET,
        *(() if setting.small else NARROW),
        f"train.loop.global_batch_size={batch}",
        f"train.loop.micro_batch_size={batch}",
        f"train.loop.budget_images={2 * batch}",
        "train.loop.channels_last=false",
    )
    model = folder / "run"
    places = ("--latents", str(latents), "--vae", str(vae / "export"), "--run-dir", str(model))
    if not _verb(setting, report, "train", places, quick, "2 steps"):
        return
    number = 2 if setting.small else 16
    for sampler in _SAMPLERS:
        where = ("--model", str(model), "--out", str(folder / sampler), "--num-images", str(number))
        settings = (f"sample.sampler={sampler}", "sample.num_steps=4", f"sample.batch_size={number}")
        _verb(setting, report, "sample", where, settings, f"{number} images, {sampler}", name=f"sample, {sampler}")


def _verb(
    setting: Setting,
    report: Report,
    verb: str,
    places: Sequence[str],
    settings: Sequence[str],
    what: str,
    *,
    name: str = "",
) -> bool:
    """Run a verb and report how it ended; returns whether it ended well."""
    ended = _start(setting, verb, places, settings, log=f"{name or verb}.log")
    text = f"{what}, {ended.seconds:.1f} s with its start"
    failed = "" if ended.code == 0 else f", ended with {ended.code}: {ended.complaint}"
    report.holds(name or verb, ended.code == 0, text + failed, seconds=ended.seconds)
    return ended.code == 0


def _start(setting: Setting, verb: str, places: Sequence[str], settings: Sequence[str], *, log: str) -> Ended:
    return run_verb(
        *(verb, "--preset", PRESET, "--device", "cuda", *places),
        log=setting.folder / log,
        settings=setting.job(PRESET, *settings),
        timeout_s=300,
    )


def _encode(setting: Setting, report: Report, vae: Path) -> None:
    """Encode the set in fp32 and bf16, and compare the moments."""
    found: dict[str, NDArray[np.float32]] = {}
    for precision in ("fp32", "bf16"):
        out = setting.folder / f"latents-{precision}"
        places = ("--data", str(setting.folder / "images"), "--vae", str(vae), "--out", str(out))
        settings = (f"encode_latents.precision={precision}", "encode_latents.batch_size=8")
        if not _verb(
            setting, report, "encode-latents", places, settings, precision, name=f"encode-latents, {precision}"
        ):
            return
        found[precision] = moments(out)
    gap = psnr_db(found["bf16"], found["fp32"])
    text = f"{gap:.1f} dB against fp32, at least {LEAST_PSNR_DB:g}"
    report.computed("moments in bf16", gap >= LEAST_PSNR_DB, text, psnr_db=gap)


def moments(folder: Path) -> NDArray[np.float32]:
    """Return the means of all latents of a set, in its order, ``[n, c, lh, lw]``."""
    found = load_shard_set(str(folder), kind="latents")
    reader = ShardSetReader(found, split="train")
    means = []
    for shard, size in enumerate(reader.shard_sizes):
        for row in range(size):
            _, members = reader.read(shard, row)
            whole = np.load(io.BytesIO(members["moments.npy"]), allow_pickle=False).astype(np.float32)
            means.append(whole[: len(whole) // 2])
    return np.stack(means)


def psnr_db(value: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the peak signal-to-noise ratio of moments, by the range of the reference; infinite if they are equal."""
    error = float(np.mean((value.astype(np.float64) - reference) ** 2))
    peak = float(reference.max() - reference.min())
    return float("inf") if error == 0 else 10.0 * float(np.log10(max(peak**2, 1e-30) / error))
