"""How long a run takes and what it costs, computed before it starts. Pure arithmetic.

In a step a GPU computes at its utilisation, but kernels come no faster than the host launches them. Then gradients are
summed and weights gathered; nothing is computed meanwhile, as `overlap_comm` is off.
"""

from __future__ import annotations

from synfundus.training.memory.footprint import Gpu

LAUNCH_S = 6e-6
"""Least time between two launches: interpreter, dispatcher and driver. Assumed; a slow host takes more."""

# counted with torch 2.13's CUDA build and DeepSpeed 0.19.8, copies and fills included; of the preset fundus256:
BACKWARD_LAUNCHES = 1.67
"""Of the backward pass for each of the forward pass (1,871 for 1,122)."""
STEP_LAUNCHES = 71
"""Of a micro-batch outside the network: draws, loss, sums."""
BUNDLE_LAUNCHES = 5
"""Of a micro-batch for each bundle of parameters: its gradient is added in fp32 and reduced (927 for 188)."""
UPDATE_LAUNCHES = 20
"""Of the update for each bundle, over all ranks: overflow, norm, copies (3,700 for 188)."""
COMPILED = 0.76
"""What `train.loop.compile` leaves of a network's launches (2,174 of 2,849, 679 of them Triton's): products and
convolutions stay, and only the repeated blocks are compiled."""


def step_launches(
    *, forward: int, recomputed: int, bundles: int, accumulation_steps: int, ranks: int, compiled: bool
) -> tuple[float, float]:
    """Return the kernels a rank launches (in a micro-batch, in a whole step).

    Args:
        forward: Those of the network's forward pass.
        recomputed: Those that its backward pass repeats.
        bundles: Flat parameters of the engine; each rank updates its part.
        accumulation_steps: Micro-batches a step.
        ranks: Number of ranks.
        compiled: Whether the network's blocks are compiled.
    """
    network = (forward * (1 + BACKWARD_LAUNCHES) + recomputed) * (COMPILED if compiled else 1.0)
    micro_batch = network + STEP_LAUNCHES * (1 + BACKWARD_LAUNCHES) + BUNDLE_LAUNCHES * bundles
    return micro_batch, micro_batch * accumulation_steps + UPDATE_LAUNCHES * bundles / ranks


def network_s(sent_bytes: float, *, gpu: Gpu, nodes: int, node_bytes_per_s: float) -> float:
    """Return how long collectives take in which every rank sends so many bytes around a ring.

    A ring enters and leaves each node once, at ``node_bytes_per_s``, whatever the GPUs in it, and inside it uses the
    GPUs' own links. The latency of its hops is left out.
    """
    return sent_bytes / (gpu.link_bytes_per_s if nodes == 1 else min(node_bytes_per_s, gpu.link_bytes_per_s))


def step_s(*, gpu_s: float, launching_s: float, network_s: float) -> float:
    """Return the seconds of a step: the GPU works while the host launches, the network waits for both."""
    return max(gpu_s, launching_s) + network_s


def stage_time(*, images: int, images_per_s: float, gpus: int, price: float | None) -> dict[str, float | None]:
    """Return ``images``, ``images_per_s`` of all GPUs, ``hours``, ``gpu_hours`` and ``cost``, None without a price."""
    hours = images / images_per_s / 3600.0
    cost = None if price is None else price * hours * gpus
    return {"images": images, "images_per_s": images_per_s, "hours": hours, "gpu_hours": hours * gpus, "cost": cost}
