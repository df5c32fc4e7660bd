"""Step 3: loss and gradient of a U-Net step: GPU against CPU, bf16 and TF32 against fp32, two runs of the same."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.verdicts import Report, relative_gap
from synfundus.config.auto import definite_channels_last
from synfundus.config.schema import RunConfig
from synfundus.distributed.numerics import only_deterministic_kernels, set_tf32
from synfundus.models.nhwc.networks import keep_channels_last, kernels_for
from synfundus.stages.trial_step import latent_shape, random_batch, training_step

MICRO_BATCHES = 3
_IMAGES = 4
TOLERANCES = {"fp32": (1e-4, 1e-3), "tf32": (2e-3, 1e-2), "bf16": (1e-2, 5e-2), "nhwc": (1e-2, 5e-2)}
"""Of loss and gradient norm, relative. fp32 sums in another order; TF32 has 10 bits of mantissa and bf16 7."""


@dataclass(frozen=True)
class Outcome:
    """What a step computed over all micro-batches.

    Attributes:
        loss: Mean loss.
        grad_norm: Norm of the summed gradient.
        digest: Hash of the gradient's bytes.
    """

    loss: float
    grad_norm: float
    digest: str


def run(setting: Setting, report: Report) -> None:
    """Compare steps."""
    gpu = torch.device("cuda", 0)
    tiny = ("train.unet.block_out_channels=[64,64,128,128]", "train.unet.cross_attention_dim=64")
    with _tf32(False):
        reference = _outcome(setting, torch.device("cpu"), *tiny, images=2)
        compare(report, "fp32, GPU against CPU, narrow", "fp32", _outcome(setting, gpu, *tiny, images=2), reference)
        narrow = _outcome(setting, gpu, "train.loop.precision=bf16", *tiny, images=2)
        compare(report, "bf16 on GPU against fp32 on CPU, narrow", "bf16", narrow, reference)
        reference = _outcome(setting, gpu)
    with _tf32(True):
        compare(report, "TF32 against fp32, fundus512", "tf32", _outcome(setting, gpu), reference)
    bf16 = _outcome(setting, gpu, "train.loop.precision=bf16")
    compare(report, "bf16 against fp32, fundus512", "bf16", bf16, reference)
    nhwc = _outcome(setting, gpu, "train.loop.precision=bf16", "train.loop.channels_last=true")
    compare(report, "NHWC against NCHW, bf16, fundus512", "nhwc", nhwc, bf16)
    only_deterministic_kernels(device="cuda")  # for the rest of this process
    first, second = (_outcome(setting, gpu, "train.loop.precision=bf16") for _ in range(2))
    report.computed(
        "deterministic, bf16, fundus512",
        first.digest == second.digest,
        f"two steps, gradient {'the same bit for bit' if first.digest == second.digest else 'differs'}",
        loss=first.loss,
    )


def compare(report: Report, name: str, kind: str, found: Outcome, reference: Outcome) -> None:
    """Report how far loss and gradient norm are from a reference."""
    of_loss, of_norm = TOLERANCES[kind]
    loss, norm = relative_gap(found.loss, reference.loss), relative_gap(found.grad_norm, reference.grad_norm)
    report.parity(f"{name}, loss", loss, of_loss, f"{found.loss:.6g} for {reference.loss:.6g}: relative gap")
    report.parity(f"{name}, gradient", norm, of_norm, f"norm {found.grad_norm:.6g} for {reference.grad_norm:.6g}: gap")


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    set_tf32(wanted, device="cuda")
    try:
        yield
    finally:
        set_tf32(False, device="cuda")


def _outcome(setting: Setting, device: torch.device, *settings: str, images: int = _IMAGES) -> Outcome:
    defaults = ("train.loop.precision=fp32", "train.loop.channels_last=false", "train.unet.dropout=0")
    config = setting.config("fundus512", *defaults, *settings)
    try:
        return outcome(config, device, images=1 if setting.small else images)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def outcome(config: RunConfig, device: torch.device, *, images: int) -> Outcome:
    """Run a step over fixed micro-batches without an update."""
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    step = training_step(config.train, shape, device, seed=0)
    _spread(list(step.parameters()))
    if definite_channels_last(config.train.loop):
        keep_channels_last(step.denoiser.unet, kernels_for(device, torch.float32))
        step.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = random_batch(config.train.diffusion, MICRO_BATCHES * images, shape, device)
    losses = []
    for number in range(MICRO_BATCHES):
        part = {name: value[number * images : (number + 1) * images] for name, value in batch.items()}
        loss, _ = step(part, 0)
        (loss / MICRO_BATCHES).backward()
        losses.append(float(loss.detach()))
    gradients = [one.grad for one in step.parameters() if one.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(one.float()) for one in gradients]).norm()
    return Outcome(sum(losses) / len(losses), float(norm), _digest(gradients))


@torch.no_grad()
def _spread(parameters: list[Tensor]) -> None:
    """Replace weights that start at zero: behind them nothing else would have a gradient."""
    generator = torch.Generator().manual_seed(1)
    for one in parameters:
        if not bool(one.any()):
            one.copy_(0.02 * torch.randn(one.shape, generator=generator))


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for one in tensors:
        digest.update(one.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
