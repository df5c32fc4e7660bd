"""Step 5: the memory of a training: `plan`, the rehearsal at start, a real step, and what ``auto`` finds."""

from __future__ import annotations

import gc

import torch

from benchmarks.gpu_check.resume import metrics
from benchmarks.gpu_check.setting import QUIET, Setting, VerbProcess
from benchmarks.gpu_check.speed import planned_job, stepper
from benchmarks.gpu_check.verdicts import Report
from benchmarks.training_runs import changed, write_autoencoder_and_latents
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import connect, disconnect
from synfundus.stages.trial_step import latent_shape, random_batch, training_step
from synfundus.training.memory.footprint import GIB
from synfundus.training.memory.rehearsal import Rehearsal

PRESET = "fundus512"
_STEPS = 5


def run(setting: Setting, report: Report) -> None:
    """Compare the peaks, then train with ``auto``."""
    size = setting.micro_batch(PRESET)
    config = setting.config(
        PRESET, "train.loop.precision=bf16", f"train.loop.global_batch_size={size}", "train.loop.channels_last=false"
    )
    world = connect(device="cuda", timeout_s=300, num_threads=0)
    planned = planned_job(config).memory_bytes
    rehearsed = rehearsed_bytes(config, size)
    torch.cuda.reset_peak_memory_stats()
    take = stepper(config, world)
    for _ in range(3):
        take()
    torch.cuda.synchronize()
    real, reserved = int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved())
    del take
    disconnect()
    report.figure(
        f"{PRESET}, {size} images",
        f"{real / GIB:.2f} GiB of tensors, {reserved / GIB:.2f} GiB reserved; plan says {planned / GIB:.2f} GiB "
        f"({real / planned:.2f} of it); the rehearsal's passes took {(rehearsed or 0) / GIB:.2f} GiB beside weights",
        real_bytes=real,
        reserved_bytes=reserved,
        plan_bytes=planned,
        ratio_real_to_plan=real / planned,
        rehearsed_bytes=rehearsed,
    )
    gc.collect()
    torch.cuda.empty_cache()
    _train_with_auto(setting, report)


def rehearsed_bytes(config: RunConfig, size: int) -> int | None:
    """Return the peak of the rehearsal over a micro-batch, as ``micro_batch_size=auto`` measures it."""
    device, section = torch.device("cuda", 0), config.train
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    host = training_step(changed(section, {"loop": {"precision": "fp32"}}), shape, torch.device("cpu"), seed=0)
    rehearsal = Rehearsal(
        host,
        make_step=lambda step, _: step,
        draw=lambda count: random_batch(section.diffusion, count, shape, device),
        device=device,
        dtype=torch.bfloat16,
        images_seen=0,
    )
    peak = rehearsal.peak_bytes(size, [False])
    rehearsal.close()
    return peak


def _train_with_auto(setting: Setting, report: Report) -> None:
    """Train some steps through the command line with the largest micro-batch that it finds, then end it."""
    batch = 8 if setting.small else 256
    folder = setting.folder / "auto"
    settings = setting.job(
        PRESET,
        *QUIET,
        f"train.loop.global_batch_size={batch}",
        f"train.loop.log_every_images={batch}",
        "train.loop.micro_batch_size=auto",
        "train.loop.channels_last=false",
        "train.loop.checkpoint_every_images=1000000000",  # gigabytes, which say nothing here
    )
    write_autoencoder_and_latents(setting.config(PRESET, *settings), folder, sizes=(batch, batch))
    process = VerbProcess(
        *("train", "--preset", PRESET, "--device", "cuda"),
        *("--latents", str(folder / "latents"), "--vae", str(folder / "vae"), "--run-dir", str(folder / "run")),
        log=setting.folder / "auto.log",
        settings=settings,
    )
    enough = process.wait_for(lambda: len(metrics(folder / "run")) >= _STEPS, timeout_s=600)
    process.kill()
    ended, rows = process.wait(0), metrics(folder / "run")
    found = ended.said(r"(micro-batch \d+ found[^\n]*)") or "no micro-batch found"
    text = f"{found}; {len(rows)} steps" + ("" if enough else f", then it ended with {ended.code}: {ended.complaint}")
    peak = {"peak_gib": max(row["peak_memory_gib"] for row in rows)} if rows else {}
    report.holds("micro_batch_size=auto does not run out", enough, text, **peak)
