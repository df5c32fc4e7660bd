"""What a run needs, computed before it starts: GPUs and their speed, bytes per rank. Pure arithmetic.

P parameters, N ranks, weights of w bytes each (2 in bf16, 4 in fp32). Under ZeRO-2 a rank holds all weights, wP, and
1/N of everything else, in fp32: gradients (4P/N), masters (4P/N), two moments (8P/N), and each average of the weights
(4P/N). DeepSpeed's estimator says 2P + 18P/N for bf16, its documentation 4P + 16P/N; during our engine's update
wP + 16P/N and the averages are alive (`benchmarks/zero2_memory.py`). The backward pass adds a bucket and activations;
they are freed before the gradients are joined into one vector, which takes another 4P/N.

Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
GpuName = Literal[
    "t4", "v100", "a10", "a100-40", "a100", "a6000", "l4", "l40s", "rtx4090", "h100", "h200", "b200", "mi300x"
]


PRODUCTS = 0.7
"""Fraction of the peak that matrix products and convolutions reach by themselves. Assumed."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as in its data sheet, and how much of it a training uses.

    A training step is products and convolutions, at `PRODUCTS` of the peak, and the rest (norms, activations, sums),
    as fast as memory delivers. The rest is known where a utilisation is published; another card is assumed to need the
    A100's, by the ratio of the memories' speeds, and a precision twice as wide twice the time.

    Attributes:
        memory_bytes: Memory of one device.
        memory_bytes_per_s: Its speed.
        link_bytes_per_s: To the other GPUs of a node, in one direction: NVLink or Infinity Fabric, else PCIe x16.
        flops: Dense operations a second in bf16 (fp16 on a GPU without it).
        tf32_flops: In fp32 on tensor cores; on a GPU without TF32 (T4, V100) the same as `fp32_flops`.
        fp32_flops: In fp32 without tensor cores.
        published: Fraction of `flops` (HFU) that published trainings in bf16 or fp16 reach; None if there are none.
        source: Whose.
        native_bf16: Whether it has instructions for bf16; without them it is computed as fp32 is.
    """

    memory_bytes: int
    memory_bytes_per_s: float
    link_bytes_per_s: float
    flops: float
    tf32_flops: float
    fp32_flops: float
    published: float | None = None
    source: str = "assumed: 70% of the peak in products, the rest as the A100's, by the speed of the memory"
    native_bf16: bool = True

    def peak(self, *, weight_bytes: int, tf32: bool) -> float:
        """Return the peak operations a second of a run.

        Args:
            weight_bytes: 2 for bf16, 4 for fp32.
            tf32: Whether fp32 products may use tensor cores.
        """
        if weight_bytes == 2 and self.native_bf16:
            return self.flops
        return self.tf32_flops if tf32 else self.fp32_flops

    @property
    def rest_s(self) -> float:
        """Return the time beside products and convolutions in bf16, in seconds per operation of the step."""
        if self.published is not None:
            return (1 / self.published - 1 / PRODUCTS) / self.flops
        known = GPUS["a100"]
        return known.rest_s * known.memory_bytes_per_s / self.memory_bytes_per_s

    def utilisation(self, *, weight_bytes: int, tf32: bool) -> float:
        """Return the fraction of the peak that a run reaches (HFU), see `peak`."""
        peak = self.peak(weight_bytes=weight_bytes, tf32=tf32)
        return 1 / (1 / PRODUCTS + peak * self.rest_s * weight_bytes / 2)


_MOSAIC = "published: U-Net of Stable Diffusion 2, 512 px, 290 images/s on 8 A100 (MosaicML diffusion, README)"
_STABILITY = "published: 1.56 times an A100 in Stable Diffusion 3 (Stability AI), 2 times in MLPerf (NVIDIA)"
GPUS: dict[GpuName, Gpu] = {
    "t4": Gpu(16 * GIB, 0.32e12, 16e9, 65e12, 8.1e12, 8.1e12, native_bf16=False),
    "v100": Gpu(32 * GIB, 0.9e12, 150e9, 125e12, 15.7e12, 15.7e12, native_bf16=False),
    "a10": Gpu(24 * GIB, 0.6e12, 32e9, 125e12, 62.5e12, 31.2e12),
    "a100-40": Gpu(40 * GIB, 1.555e12, 300e9, 312e12, 156e12, 19.5e12),
    "a100": Gpu(80 * GIB, 2.039e12, 300e9, 312e12, 156e12, 19.5e12, 0.27, _MOSAIC),
    "a6000": Gpu(48 * GIB, 0.768e12, 32e9, 155e12, 77.4e12, 38.7e12),
    "l4": Gpu(24 * GIB, 0.3e12, 32e9, 121e12, 60e12, 30.3e12),
    "l40s": Gpu(48 * GIB, 0.864e12, 32e9, 362e12, 183e12, 91.6e12),
    "rtx4090": Gpu(24 * GIB, 1.008e12, 32e9, 165e12, 82.6e12, 82.6e12),
    "h100": Gpu(80 * GIB, 3.35e12, 450e9, 989e12, 494e12, 67e12, 0.18, _STABILITY),
    "h200": Gpu(141 * GIB, 4.8e12, 450e9, 989e12, 494e12, 67e12),
    "b200": Gpu(180 * GIB, 8.0e12, 900e9, 2250e12, 1125e12, 75e12),
    "mi300x": Gpu(192 * GIB, 5.3e12, 448e9, 1307e12, 654e12, 163e12),
}
"""Peaks, memories and links: the makers' data sheets, of the SXM modules where there are any; of the B200 an eighth of
the HGX B200. An MI300X needs ROCm's build of torch, with which nothing here has been tried.

Utilisation of the A100: 290 images/s on 8, 4,590 on 128, at our count of 2.4 TFLOP an image .28, .27
(<https://github.com/mosaicml/diffusion>). Of the H100: 595 instead of 381 images/s on 16 (Stability AI, "Putting the AI
supercomputer to work", 2024) is .13, twice an A100 (NVIDIA, TensorRT-LLM's "H100 has 4.6x A100 performance", on MLPerf
with equal data types) .17; .18 is 2.1 times, what the model of `Gpu` gives from the A100 is .17.
"""

_DEVICE_NAMES: tuple[tuple[str, GpuName], ...] = (
    (r"T4$", "t4"),
    (r"V100-SXM[23]", "v100"),
    (r"A10$", "a10"),
    (r"A100.*40GB", "a100-40"),
    (r"A100.*80GB", "a100"),
    (r"RTX A6000", "a6000"),
    (r"L4$", "l4"),
    (r"L40S", "l40s"),
    (r"RTX 4090(?! (D|Laptop))", "rtx4090"),
    (r"H100 80GB HBM3", "h100"),
    (r"H200(?! NVL)", "h200"),
    (r"B200$", "b200"),
    (r"MI300X$", "mi300x"),
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
    *,
    parameters: int,
    ranks: int,
    weight_bytes: int,
    gradient_bytes: int,
    accumulation_steps: int,
    to_owners: bool = False,
) -> StepTraffic:
    """Return what a rank of a ZeRO-2 run sends with ring collectives.

    In a ring each rank sends (N-1)/N of a vector to reduce-scatter it, and as much to all-gather it. ZeRO-2 needs one
    of each a step. The pinned DeepSpeed all-reduces every bucket and then keeps its own part, after every backward
    pass: twice (N-1)/N gP for each; once if it reduces each part to the rank that keeps it
    (`tests/integration/test_step_traffic.py`).

    Source: Rajbhandari et al. 2020, ZeRO (arXiv 1910.02054), section 7; Patarasuk and Yuan 2009 for rings.

    Args:
        parameters: P.
        ranks: N.
        weight_bytes: w: 2 for bf16, 4 for fp32.
        gradient_bytes: g: that of the weights, unless the DeepSpeed file sets ``communication_data_type``.
        accumulation_steps: Backward passes per update.
        to_owners: ``use_multi_rank_bucket_allreduce`` is off.
    """
    passed_on = parameters * (ranks - 1)
    times = (1 if to_owners else 2) * accumulation_steps
    return StepTraffic(reduced=times * gradient_bytes * passed_on // ranks, gathered=weight_bytes * passed_on // ranks)


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
