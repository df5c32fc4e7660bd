"""The cost of a run, computed before it starts: bytes per rank, operations per image, hours. Pure arithmetic.

P parameters, N ranks, weights of w bytes each (2 in bf16, 4 in fp32). Under ZeRO-2 a rank holds all weights, wP, and
1/N of everything else, in fp32: gradients (4P/N), masters (4P/N), two moments (8P/N), and each average of the weights
(4P/N). DeepSpeed's estimator says 2P + 18P/N for bf16, its documentation 4P + 16P/N; during our engine's update
wP + 16P/N and the averages are alive (`benchmarks/zero2_memory.py`). The backward pass adds a bucket and activations;
they are freed before the gradients are joined into one vector, which takes another 4P/N.

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
    """A GPU as in its data sheet.

    Attributes:
        memory_bytes: Memory of one device.
        flops: Dense operations a second in bf16 (fp16 on the V100).
        tf32_flops: In fp32 on tensor cores; on a GPU without TF32 (V100) the same as `fp32_flops`.
        fp32_flops: In fp32 without tensor cores.
    """

    memory_bytes: int
    flops: float
    tf32_flops: float
    fp32_flops: float

    def peak(self, *, weight_bytes: int, tf32: bool) -> float:
        """Return the peak operations a second of a run.

        Args:
            weight_bytes: 2 for bf16, 4 for fp32.
            tf32: Whether fp32 products may use tensor cores.
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
"""Their names in CUDA. H100 PCIe, H100 NVL and H200 NVL have other peaks and are left out."""


def find_gpu(device_name: str) -> GpuName | None:
    """Return the GPU with this CUDA device name; None if it is not in the table."""
    return next((gpu for pattern, gpu in _DEVICE_NAMES if re.search(rf"\b{pattern}", device_name)), None)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the training state on one rank; the sum is `total`."""

    weights: int
    gradients: int
    masters: int
    moments: int
    averages: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.gradients + self.masters + self.moments + self.averages


def state_bytes(*, parameters: int, ranks: int, weight_bytes: int, num_averages: int) -> StateBytes:
    """Return what a rank of a ZeRO-2 run holds during the update.

    Args:
        parameters: P.
        ranks: N.
        weight_bytes: w: 2 for bf16, 4 for fp32.
        num_averages: Averages of the weights, the one with a half-life included.
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
    """Bytes a rank sends, and as many receives, in an optimizer step.

    Attributes:
        reduced: Gradients, after each backward pass.
        gathered: Weights, after the update.
    """

    reduced: int
    gathered: int

    @property
    def total(self) -> int:
        """Return the sum of both."""
        return self.reduced + self.gathered


def step_traffic(
    *, parameters: int, ranks: int, weight_bytes: int, gradient_bytes: int, accumulation_steps: int
) -> StepTraffic:
    """Return what a rank of a ZeRO-2 run sends with ring collectives.

    In a ring each rank sends (N-1)/N of a vector to reduce-scatter it, and as much to all-gather it. ZeRO-2 needs one
    of each a step. The pinned DeepSpeed all-reduces every bucket and then keeps its own part, after every backward
    pass: twice (N-1)/N gP for each (`tests/integration/test_step_traffic.py`).

    Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 7; Patarasuk and Yuan 2009 for rings.

    Args:
        parameters: P.
        ranks: N.
        weight_bytes: w: 2 for bf16, 4 for fp32.
        gradient_bytes: g: that of the weights, unless the DeepSpeed file sets ``communication_data_type``.
        accumulation_steps: Backward passes per update.
    """
    passed_on = parameters * (ranks - 1)
    return StepTraffic(
        reduced=2 * accumulation_steps * gradient_bytes * passed_on // ranks, gathered=weight_bytes * passed_on // ranks
    )


def checkpoint_bytes(*, parameters: int, num_averages: int) -> int:
    """Return the size of a checkpoint: the model file, and masters, moments and averages over all ranks, in fp32."""
    return 4 * parameters * (1 + 3 + num_averages)


def snapshot_bytes(*, parameters: int, num_widths: int, budget_images: int, every_images: int) -> int:
    """Return the size of all snapshots of power-function averages of a run, fp32: at the end, or at each interval."""
    times = -(-budget_images // every_images) if every_images else 1
    return 4 * parameters * num_widths * times


def latent_set_bytes(*, num_images: int, latent_shape: tuple[int, int, int], with_flip: bool) -> int:
    """Return the size of a latent set's moments: mean and log-variance in fp16, doubled by mirrored ones."""
    channels, height, width = latent_shape
    return num_images * 2 * channels * height * width * 2 * (2 if with_flip else 1)


@dataclass(frozen=True)
class ImageFlops:
    """Operations of an image's forward and backward pass.

    Attributes:
        model: Without recomputation: what the MFU counts.
        hardware: With the recomputation of gradient checkpointing: what the HFU counts.
    """

    model: float
    hardware: float


@dataclass(frozen=True)
class Throughput:
    """How long a run takes.

    Attributes:
        images_per_s: Of all ranks together.
        hours: Hours for the budget.
        gpu_hours: Hours times ranks.
        mfu: Model FLOPs utilisation, a fraction of the peak.
    """

    images_per_s: float
    hours: float
    gpu_hours: float
    mfu: float


def throughput(*, flops: ImageFlops, budget_images: int, ranks: int, peak_flops: float, hfu: float) -> Throughput:
    """Return rate and duration at a hardware FLOPs utilisation.

    HFU is the fraction of the peak at which GPUs compute, recomputation included; MFU counts the model's operations
    alone: MFU = HFU x model / hardware. Without gradient checkpointing both are equal. The HFU is the argument because
    checkpointing keeps a GPU equally busy and gives it more work: at the same HFU the rate falls by model / hardware.

    Source: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), App. B; Korthikanti et al. 2022 (arXiv 2205.05198), sec. 6.

    Args:
        flops: Operations of an image.
        budget_images: Images to train on.
        ranks: Number of GPUs.
        peak_flops: Peak operations a second of one GPU.
        hfu: Hardware FLOPs utilisation, a fraction of the peak.
    """
    rate = ranks * peak_flops * hfu / flops.hardware
    hours = budget_images / rate / 3600.0
    return Throughput(rate, hours, hours * ranks, hfu * flops.model / flops.hardware)
