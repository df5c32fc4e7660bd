"""How long a run takes and what it costs, computed before it starts. Pure arithmetic.

In a step a GPU computes at its utilisation, but kernels come no faster than the host launches them. Then gradients are
summed and weights gathered; nothing is computed meanwhile, as `overlap_comm` is off.
"""

from __future__ import annotations

from dataclasses import dataclass

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
COMPILED = 0.4
"""What `loop.compile` leaves of a network's launches: it compiles the repeated blocks alone."""


def step_launches(
    *, forward: int, recomputed: int, bundles: int, accumulation_steps: int, ranks: int, compiled: bool
) -> tuple[float, float]:
    """Return the kernels a rank launches (in a micro-batch, in a whole step).

    Args:
        forward: Those of the network's forward pass.
        recomputed: Those that its backward pass repeats.
        bundles: Flat parameters of the engine.
        accumulation_steps: Micro-batches a step.
        ranks: Number of ranks, each of which updates its part.
        compiled: Whether the network's blocks are compiled.
    """
    network = (forward * (1 + BACKWARD_LAUNCHES) + recomputed) * (COMPILED if compiled else 1.0)
    micro_batch = network + STEP_LAUNCHES * (1 + BACKWARD_LAUNCHES) + BUNDLE_LAUNCHES * bundles
    return micro_batch, micro_batch * accumulation_steps + UPDATE_LAUNCHES * bundles / ranks


def network_s(sent_bytes: float, *, gpu: Gpu, nodes: int, node_bytes_per_s: float) -> float:
    """Return how long collectives take in which every rank sends so many bytes around a ring.

    A ring enters and leaves each node once, whatever the GPUs in it. The latency of its hops is left out.

    Args:
        sent_bytes: Of a rank, see `step_traffic`.
        gpu: The GPU, whose links join those of a node.
        nodes: Number of nodes.
        node_bytes_per_s: Into and out of a node.
    """
    return sent_bytes / (gpu.link_bytes_per_s if nodes == 1 else min(node_bytes_per_s, gpu.link_bytes_per_s))


@dataclass(frozen=True)
class StepTime:
    """The seconds of an optimizer step.

    Attributes:
        gpu_s: Of the GPU's work.
        launching_s: Of the host's launches.
        network_s: Of the collectives.
    """

    gpu_s: float
    launching_s: float
    network_s: float

    @property
    def computing_s(self) -> float:
        """Return the time of both: the GPU works while the host launches."""
        return max(self.gpu_s, self.launching_s)

    @property
    def total_s(self) -> float:
        """Return the whole."""
        return self.computing_s + self.network_s


@dataclass(frozen=True)
class Duration:
    """How long a stage takes.

    Attributes:
        images: Images it goes through.
        images_per_s: Of all GPUs together.
        hours: Hours.
        gpu_hours: Hours times GPUs.
        cost: In the currency of the price; None without one.
    """

    images: int
    images_per_s: float
    hours: float
    gpu_hours: float
    cost: float | None


def duration(*, images: int, images_per_s: float, gpus: int, price: float | None) -> Duration:
    """Return the hours, GPU hours and cost of a stage.

    Args:
        images: Images it goes through.
        images_per_s: Of all GPUs together.
        gpus: Number of GPUs.
        price: Price of a GPU hour; None if unknown.
    """
    hours = images / images_per_s / 3600.0
    return Duration(images, images_per_s, hours, hours * gpus, None if price is None else price * hours * gpus)
