"""What a run costs before it is started: bytes on a rank, operations an image, hours. Pure arithmetic.

P parameters, N ranks, weights of w bytes each (2 in bf16, 4 in fp32). Under ZeRO-2 a rank holds the weights whole, wP,
and of everything else its N-th part, in fp32: gradients (4P/N), masters (4P/N), two moments (8P/N), and each average of
the weights (4P/N). DeepSpeed's estimator says 2P + 18P/N for bf16, its documentation 4P + 16P/N; what is alive when our
engine updates is wP + 16P/N and the averages (`benchmarks/zero2_memory.py`). During the backward pass a bucket and
activations come on top; they are gone when the gradients are joined into one vector, which takes another 4P/N.

Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 3; Kaplan et al. 2020 (arXiv 2001.08361) for a
backward pass as twice the forward one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
GpuName = Literal["v100", "a100-40", "a100", "a6000", "l40s", "rtx4090", "h100", "h200"]


@dataclass(frozen=True)
class Gpu:
    """A processor as its data sheet has it.

    Attributes:
        memory_bytes: Of one device.
        flops: Dense operations a second in bf16 (fp16 on the V100).
        tf32_flops: In fp32 on tensor cores; without those (V100) as `fp32_flops`.
        fp32_flops: In fp32 without them.
    """

    memory_bytes: int
    flops: float
    tf32_flops: float
    fp32_flops: float

    def peak(self, *, weight_bytes: int, tf32: bool) -> float:
        """Return the operations a second that a run can reach at most.

        Args:
            weight_bytes: 2 for bf16, 4 for fp32.
            tf32: Whether fp32 may be multiplied on tensor cores.
        """
        if weight_bytes == 2:
            return self.flops
        return self.tf32_flops if tf32 else self.fp32_flops


GPUS: dict[GpuName, Gpu] = {
    "v100": Gpu(32 * GIB, 125e12, 15.7e12, 15.7e12),
    "a100-40": Gpu(40 * GIB, 312e12, 156e12, 19.5e12),
    "a100": Gpu(80 * GIB, 312e12, 156e12, 19.5e12),
    "a6000": Gpu(48 * GIB, 155e12, 77.4e12, 38.7e12),
    "l40s": Gpu(48 * GIB, 362e12, 183e12, 91.6e12),
    "rtx4090": Gpu(24 * GIB, 165e12, 82.6e12, 82.6e12),
    "h100": Gpu(80 * GIB, 989e12, 494e12, 67e12),
    "h200": Gpu(141 * GIB, 989e12, 494e12, 67e12),
}

_DEVICE_NAMES: tuple[tuple[str, GpuName], ...] = (
    (r"V100-SXM[23]", "v100"),
    (r"A100.*40GB", "a100-40"),
    (r"A100.*80GB", "a100"),
    (r"RTX A6000", "a6000"),
    (r"L40S", "l40s"),
    (r"RTX 4090(?! (D|Laptop))", "rtx4090"),
    (r"H100 80GB HBM3", "h100"),
    (r"H200(?! NVL)", "h200"),
)
"""How CUDA calls them. H100 PCIe, H100 NVL and H200 NVL have other peaks and are left out."""


def find_gpu(device_name: str) -> GpuName | None:
    """Return which known processor a device is, by the name CUDA gives it; None if it is none of them."""
    return next((gpu for pattern, gpu in _DEVICE_NAMES if re.search(rf"\b{pattern}", device_name)), None)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a model's states on one rank; the sum is `total`."""

    weights: int
    gradients: int
    masters: int
    moments: int
    averages: int

    @property
    def total(self) -> int:
        """Return all of them."""
        return self.weights + self.gradients + self.masters + self.moments + self.averages


def state_bytes(*, parameters: int, ranks: int, weight_bytes: int, num_averages: int) -> StateBytes:
    """Return what a rank of a ZeRO-2 run holds while it updates.

    Args:
        parameters: P.
        ranks: N.
        weight_bytes: w: 2 for bf16, 4 for fp32.
        num_averages: Averages of the weights, at least the one with a half-life.
    """
    share = -(-parameters // ranks)
    return StateBytes(
        weights=weight_bytes * parameters,
        gradients=4 * share,
        masters=4 * share,
        moments=8 * share,
        averages=4 * num_averages * share,
    )


@dataclass(frozen=True)
class StepTraffic:
    """Bytes a rank sends in an optimizer step, and receives.

    Attributes:
        reduced: Gradients, reduced after each backward pass.
        gathered: Weights, gathered after the update.
    """

    reduced: int
    gathered: int

    @property
    def total(self) -> int:
        """Return both."""
        return self.reduced + self.gathered


def step_traffic(
    *, parameters: int, ranks: int, weight_bytes: int, gradient_bytes: int, accumulation_steps: int
) -> StepTraffic:
    """Return what a rank of a ZeRO-2 run sends in rings.

    A ring passes (N-1)/N of a vector on to reduce it into parts, and as much to gather them. ZeRO-2 needs one of each
    in a step. The pinned DeepSpeed reduces every bucket on all ranks and then keeps its own part, after every backward
    pass: twice (N-1)/N gP for each (`tests/integration/test_step_traffic.py`).

    Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 7; Patarasuk and Yuan 2009 for rings.

    Args:
        parameters: P.
        ranks: N.
        weight_bytes: w: 2 for bf16, 4 for fp32.
        gradient_bytes: g: those of the weights, unless the DeepSpeed file sets ``communication_data_type``.
        accumulation_steps: Backward passes an update.
    """
    passed_on = parameters * (ranks - 1)
    return StepTraffic(
        reduced=2 * accumulation_steps * gradient_bytes * passed_on // ranks, gathered=weight_bytes * passed_on // ranks
    )


def checkpoint_bytes(*, parameters: int, num_averages: int) -> int:
    """Return the size of a checkpoint: the model file, and masters, moments and averages over all ranks, in fp32."""
    return 4 * parameters * (1 + 3 + num_averages)


def snapshot_bytes(*, parameters: int, num_widths: int, budget_images: int, every_images: int) -> int:
    """Return the size of all a run's snapshots of power-function averages, fp32: at the end, or at each boundary."""
    times = -(-budget_images // every_images) if every_images else 1
    return 4 * parameters * num_widths * times


def latent_set_bytes(*, num_images: int, latent_shape: tuple[int, int, int], with_flip: bool) -> int:
    """Return the size of a latent set's moments: mean and log-variance in fp16, twice with mirrored ones."""
    channels, height, width = latent_shape
    return num_images * 2 * channels * height * width * 2 * (2 if with_flip else 1)


@dataclass(frozen=True)
class ImageFlops:
    """Operations of an image's forward and backward pass.

    Attributes:
        model: What the mathematics asks for, however it is computed: what the MFU counts.
        hardware: What processors do, with what gradient checkpointing computes again: what the HFU counts.
    """

    model: float
    hardware: float


@dataclass(frozen=True)
class Throughput:
    """How long a run takes.

    Attributes:
        images_per_s: Of all ranks.
        hours: For the budget.
        gpu_hours: Of all ranks together.
        mfu: Part of the peak that is the model's own operations.
    """

    images_per_s: float
    hours: float
    gpu_hours: float
    mfu: float


def throughput(*, flops: ImageFlops, budget_images: int, ranks: int, peak_flops: float, hfu: float) -> Throughput:
    """Return rate and duration at a hardware FLOPs utilisation.

    HFU is the part of the peak that processors compute at, recomputation included; MFU counts the model's operations
    alone, so MFU = HFU x model / hardware, and both are one number without gradient checkpointing. The HFU is what is
    given: checkpointing keeps a GPU as busy as it was and makes it do more, so at the same HFU the rate falls by
    model / hardware.

    Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), App. B; Korthikanti et al. 2022 (arXiv 2205.05198), sec. 6.

    Args:
        flops: Of an image.
        budget_images: Images to train on.
        ranks: GPUs.
        peak_flops: Of one GPU.
        hfu: Part of the peak that arrives.
    """
    rate = ranks * peak_flops * hfu / flops.hardware
    hours = budget_images / rate / 3600.0
    return Throughput(rate, hours, hours * ranks, hfu * flops.model / flops.hardware)
