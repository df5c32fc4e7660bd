"""Step 4: whole optimizer steps of the presets on random latents, beside `synfundus plan`'s figure for the same job."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.verdicts import Report
from benchmarks.training_runs import changed
from synfundus.config.auto import definite_channels_last
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World, connect, disconnect
from synfundus.errors import SynfundusError
from synfundus.models.compiler import missing_for_compilation
from synfundus.stages import build, training_setup
from synfundus.stages.plan import job as plan
from synfundus.stages.trial_step import latent_shape, random_batch, training_step
from synfundus.telemetry.console import SilentConsole
from synfundus.training.memory.footprint import GIB, GPUS, find_gpu
from synfundus.training.memory.rehearsal import is_out_of_memory
from synfundus.training.profiling import describe, record

PRESETS = ("fundus256", "fundus512", "fundus1024")
VARIANTS = {
    "NCHW": ("train.loop.channels_last=false",),
    "NHWC": ("train.loop.channels_last=true",),
    "NCHW, compiled": ("train.loop.channels_last=false", "train.loop.compile=true"),
    "NHWC, compiled": ("train.loop.channels_last=true", "train.loop.compile=true"),
}
ACCUMULATION = 2
_WARM_UP, _MOST_STEPS, _MOST_SECONDS = 2, 10, 4.0
_PROFILED = 3
_RESERVED_S = {False: 8.0, True: 45.0}
"""Planned seconds that must be left before a job begins, eager and compiled."""
LAYOUT_KERNELS = r"(?i)nchwToNhwc|nhwcToNchw"


def run(setting: Setting, report: Report) -> None:
    """Time every preset eager first, then compiled as long as there is time."""
    world = connect(device="cuda", timeout_s=300, num_threads=0)
    missing = missing_for_compilation("cuda", os.environ)
    for compiled in (False, True):
        for preset in PRESETS:
            for variant, settings in VARIANTS.items():
                if ("compiled" in variant) != compiled:
                    continue
                name = f"{preset}, {variant}"
                if compiled and missing:
                    report.skip(name, f"no compiler: {missing}")
                elif compiled and setting.small and (preset, variant) != ("fundus256", "NCHW, compiled"):
                    report.skip(name, "left out with --small")
                elif setting.left_s < _RESERVED_S[compiled] and not setting.small:
                    report.skip(name, "no time left")
                else:
                    _one(setting, report, world, preset, name, settings, profiled=variant == "NCHW")
    disconnect()


def _one(
    setting: Setting, report: Report, world: World, preset: str, name: str, settings: tuple[str, ...], *, profiled: bool
) -> None:
    """Build a job, time it, report it, and free its memory."""
    size = ACCUMULATION * setting.micro_batch(preset)
    config = setting.config(preset, "train.loop.precision=bf16", f"train.loop.global_batch_size={size}", *settings)
    try:
        _measure(setting, report, world, preset, name, config, profiled=profiled)
    except (RuntimeError, SynfundusError) as error:
        if is_out_of_memory(error):
            report.skip(name, f"memory ran out with micro-batches of {size // ACCUMULATION}")
        else:
            report.holds(name, False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    finally:
        if config.train.loop.compile:
            torch.compiler.reset()  # its cache holds few versions of a block: those of the next job must find room
        gc.collect()
        torch.cuda.empty_cache()


def _measure(
    setting: Setting, report: Report, world: World, preset: str, name: str, config: RunConfig, *, profiled: bool
) -> None:
    timed, planned = time_job(config, world), planned_job(config)
    mfu = None if planned.peak is None else timed.images_per_s * planned.flops / planned.peak
    report.speed(
        name,
        timed.images_per_s,
        planned.images_per_s,
        more="" if mfu is None else f", MFU {mfu:.1%}",
        ms=1e3 * timed.step_s,
        first_s=timed.first_s,
        mfu=mfu,
        peak_gib=timed.peak_bytes / GIB,
        micro_batch=config.train.loop.micro_batch_size,
    )
    if profiled:
        _profile(setting, report, preset, timed.step)


@dataclass(frozen=True)
class Timed:
    """A job that was timed.

    Attributes:
        step: Takes another step.
        step_s: Median seconds of a step.
        first_s: Seconds of the first one, compilation included.
        images_per_s: Its rate.
        peak_bytes: Peak of tensors.
    """

    step: Callable[[], None]
    step_s: float
    first_s: float
    images_per_s: float
    peak_bytes: int


class _Warnings(SilentConsole):
    def warning(self, text: str) -> None:
        print(f"warning: {text}", flush=True)


def stepper(config: RunConfig, world: World) -> Callable[[], None]:
    """Build network, engine and average as a run does; returns what takes one optimizer step on a fixed batch."""
    section, loop = config.train, config.train.loop
    device = torch.device("cuda", 0)
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    console = SilentConsole()
    training_setup.arithmetic(loop, world, console)
    step = training_step(changed(section, {"loop": {"precision": "fp32"}}), shape, device, seed=0)
    unet = step.denoiser.unet
    build.attention(unet, config.launch, dtype=torch.bfloat16, world=world, console=console)
    if loop.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if definite_channels_last(loop):
        build.channels_last(unet, world=world, console=_Warnings(), dtype=torch.bfloat16)
    training_setup.compiled(unet, loop, world, console)
    batch = training_setup.batch_plan(loop, world.size)
    engine = training_setup.engine(
        step, step.denoiser, loop=loop, optim=section.optim, launch=config.launch, batch=batch, world=world
    )
    average = training_setup.ema(section.ema, engine, sigma_rel=section.ema.sigma_rel)
    data = random_batch(section.diffusion, batch.micro_batch_size, shape, device)
    images = 0

    def take() -> None:
        nonlocal images
        images += batch.global_batch_size
        for _ in range(batch.gradient_accumulation_steps):
            loss, _ = engine.forward(data, images)
            engine.backward(loss)
            engine.step(lr=section.optim.lr)
        average.update(engine.masters(), batch_images=batch.global_batch_size, images_seen=images)

    return take


def time_job(config: RunConfig, world: World) -> Timed:
    """Time optimizer steps of a job, without reading data."""
    take = stepper(config, world)
    torch.cuda.reset_peak_memory_stats()
    first = _seconds(take)
    for _ in range(_WARM_UP - 1):
        take()
    seconds: list[float] = []
    while len(seconds) < _MOST_STEPS and sum(seconds) < _MOST_SECONDS:
        seconds.append(_seconds(take))
    step_s = statistics.median(seconds)
    rate = config.train.loop.global_batch_size / step_s
    return Timed(take, step_s, first, rate, int(torch.cuda.max_memory_allocated()))


def _seconds(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Planned:
    """What `synfundus plan` says of a job on this card.

    Attributes:
        images_per_s: Its rate; None for a card that is not in its table.
        flops: Operations of an image, the model's own.
        peak: Peak of the card in bf16; None as above.
        memory_bytes: Memory of the rank.
    """

    images_per_s: float | None
    flops: float
    peak: float | None
    memory_bytes: int


def planned_job(config: RunConfig) -> Planned:
    """Return the summary that `synfundus plan --json` prints for a job on one GPU like this."""
    card = find_gpu(torch.cuda.get_device_name(0))
    changes: dict[str, Any] = {"launch": {"nodes": 1, "gpus_per_node": 1, "procs_per_node": None}}
    if card is not None:
        changes["plan"] = {"gpu": card}
    summary = plan.run(changed(config, changes), LocalWorld(), SilentConsole())
    known = card is not None
    return Planned(
        float(summary["images_per_s"]) if known else None,
        float(summary["flops_per_image"]),
        GPUS[card].peak(weight_bytes=2, tf32=True) if card is not None else None,
        int(summary["memory_total"]),
    )


def _profile(setting: Setting, report: Report, preset: str, step: Callable[[], None]) -> None:
    """Record a few steps. On a stand-in only the host: CUPTI does not start there."""
    device = torch.device("cpu") if setting.stand_in else torch.device("cuda", 0)
    trace = record(step, steps=1 if setting.small else _PROFILED, device=device)
    summary = trace.summary()
    place = setting.folder / f"{preset}.json.gz"
    place.write_bytes(trace.document)
    place.with_suffix("").with_suffix(".txt").write_text(describe(trace, device=preset), encoding="utf-8")
    layout = summary.share_of(LAYOUT_KERNELS)
    text = "no GPU in the trace"
    if summary.gpu_idle is not None:
        text = (
            f"GPU idle {summary.gpu_idle:.1%}, {summary.launches:,.0f} kernels and copies a step, "
            f"{layout:.1%} of their time changes layouts; longest {summary.kernels[0].name[:60]}"
        )
    report.figure(
        f"{preset}, profile",
        text,
        gpu_idle=summary.gpu_idle,
        launches=summary.launches,
        layout_share=layout,
        kernels=[{"name": one.name, "calls": one.calls, "ms": one.ms} for one in summary.kernels[:10]],
        trace=str(place),
    )
