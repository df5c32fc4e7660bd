"""What a training run says of itself before the first step."""

from __future__ import annotations

from synfundus.config.training import LoopConfig
from synfundus.distributed.ds_config import BatchPlan
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World
from synfundus.telemetry.console import Console


def report_start(
    console: Console, *, parameters: int, zero: ZeroEngine, loop: LoopConfig, batch: BatchPlan, world: World
) -> None:
    """Say what is trained, with what, and how the global batch is spread.

    Args:
        console: Where it is said.
        parameters: Numbers that are trained.
        zero: The engine.
        loop: Precision.
        batch: How the global batch is spread.
        world: The job.
    """
    console.message(
        f"{parameters / 1e6:.1f} M parameters, {zero.update_name} under {zero.optimizer_name} "
        f"(ZeRO {zero.zero_stage}), {loop.precision} on {world.device}"
    )
    console.message(
        f"global batch {batch.global_batch_size} = {batch.world_size} ranks x "
        f"{batch.gradient_accumulation_steps} steps x {batch.micro_batch_size} images"
    )
