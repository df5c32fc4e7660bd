"""Step 6: a training that is killed and resumed, what checkpoints cost it, averages, the optimizer in host memory."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from benchmarks.gpu_check.setting import NARROW, QUIET, Ended, Setting, VerbProcess, run_verb
from benchmarks.gpu_check.verdicts import Report
from benchmarks.training_runs import write_autoencoder_and_latents
from synfundus.storage.documents import read_lines
from synfundus.training.ema import ShardedEma

PRESET = "fundus256"
EMA_TOLERANCE = 1e-5
"""Of weights up to about 5, after 8 updates: some units in the last place of fp32."""


def run(setting: Setting, report: Report) -> None:
    """Run the parts, the cheap one first."""
    _averages(report)
    batch, images, latents = (4, 32, 16) if setting.small else (64, 12_800, 1024)
    settings = setting.job(
        PRESET,
        *QUIET,
        *(() if setting.small else NARROW),
        "train.loop.precision=bf16",
        "train.loop.channels_last=false",
        f"train.loop.global_batch_size={batch}",
        f"train.loop.budget_images={images}",
        f"train.loop.checkpoint_every_images={images // 4}",
        f"train.loop.log_every_images={batch}",
    )
    write_autoencoder_and_latents(setting.config(PRESET, *settings), setting.folder, sizes=(latents, latents))
    _kill_and_resume(setting, report, settings, images)
    _offload(setting, report, (*settings, f"train.loop.budget_images={4 * batch}"))


def arguments(setting: Setting, name: str) -> tuple[str, ...]:
    """Return the command line of a training in the step's folder."""
    folder = setting.folder
    return (
        *("train", "--preset", PRESET, "--device", "cuda", "--latents", str(folder / "latents")),
        *("--vae", str(folder / "vae"), "--run-dir", str(folder / name)),
    )


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the training rows of a run."""
    path = run_dir / "metrics.jsonl"
    return [row for row in read_lines(str(path)) if "loss" in row] if path.is_file() else []


def _averages(report: Report) -> None:
    """Compare averages on the GPU with the same on the CPU, over some updates."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100_003, generator=generator)
    options = {"half_life_images": 500.0, "rampup_ratio": 0.05, "sigma_rel": (0.05, 0.1)}
    here, there = (ShardedEma([start.to(device)], **options) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    for number in range(1, 9):
        weights = start + 0.01 * number * torch.randn(start.shape, generator=generator)
        for average, device in ((here, "cpu"), (there, "cuda")):
            average.update([weights.to(device)], batch_images=64, images_seen=64 * number)
    for name, (mine,) in here.vectors().items():
        (other,) = there.vectors()[name]
        gap = float((mine - other.cpu()).abs().max())
        report.parity(f"average {name} against a CPU", gap, EMA_TOLERANCE, "largest difference")


def _kill_and_resume(setting: Setting, report: Report, settings: tuple[str, ...], images: int) -> None:
    run_dir = setting.folder / "run"
    command = arguments(setting, "run")
    process = VerbProcess(*command, log=setting.folder / "killed.log", settings=settings)
    killed = process.wait_for(lambda: any(run_dir.glob("checkpoints/images-*/MANIFEST.json")), timeout_s=300)
    process.kill()
    if not killed:
        first = process.wait(0)
        text = f"no checkpoint to resume from, ended with {first.code}: {first.complaint}"
        report.holds("kill -9 and resume", False, text)
        return
    ended = run_verb(*command, log=setting.folder / "resumed.log", settings=settings, timeout_s=300)
    report.holds("kill -9 and resume", *judge_resume(ended, metrics(run_dir), images))
    rows = metrics(run_dir)
    if rows:
        stalls = [row["checkpoint_stall_percent"] for row in rows if math.isfinite(row["checkpoint_stall_percent"])]
        stalled = [one for one in stalls if one > 0]
        report.figure(
            "checkpoint stall",
            f"at most {max(stalls, default=0.0):.1f} % of the time of a row, {len(stalled)} rows with a save",
            most_percent=max(stalls, default=0.0),
        )
        report.computed("losses are finite", all(math.isfinite(row["loss"]) for row in rows), f"{len(rows)} rows")


def judge_resume(ended: Ended, rows: list[dict[str, float]], images: int) -> tuple[bool, str]:
    """Return whether a resumed run did what it should, and a sentence about it."""
    resumed = ended.said(r"resumed at ([\d,]+) images")
    places = [int(row["images_seen"]) for row in rows]
    if ended.code != 0:
        return False, f"the resumed run ended with {ended.code}: {ended.complaint}"
    if resumed is None:
        return False, "the second start began anew"
    if int(resumed.replace(",", "")) >= images:
        return False, "it was killed after its last step: nothing was left to resume"
    if not places or places[-1] != images or len(set(places)) != len(places):
        return False, f"metrics end at {places[-1] if places else 'nothing'} of {images}, {len(places)} rows"
    return True, f"resumed at {resumed} images, ended at {images:,} with each row once"


def _offload(setting: Setting, report: Report, settings: tuple[str, ...]) -> None:
    """Train a few steps with the optimizer in host memory."""
    ended = run_verb(
        *arguments(setting, "offload"),
        log=setting.folder / "offload.log",
        settings=(*settings, "launch.ds_config=zero2_offload.json"),
        timeout_s=300,
    )
    rows = metrics(setting.folder / "offload")
    rate = {"images_per_s": rows[-1]["images_per_s"]} if rows else {}
    where = ended.said(r"(fused AdamW[^\n,]*)") or "optimizer not named"
    text = f"{where}, ended with {ended.code}" + ("" if ended.code == 0 else f": {ended.complaint}")
    report.holds("optimizer in host memory", ended.code == 0, text, **rate)
