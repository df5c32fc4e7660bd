"""The plan of a training run: batch, steps and DeepSpeed config, checked before anything starts, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from synfundus.config.assets import read_ds_file
from synfundus.config.auto import assumed_micro_batch, working_precision
from synfundus.config.diffusion import TrainConfig
from synfundus.config.training import TrainVaeConfig
from synfundus.distributed.ds_config import BatchPlan, build_ds_config, check_ds_file, plan_batch
from synfundus.distributed.rank_info import processor_has_bf16


@dataclass(frozen=True)
class TrainingPlan:
    """The plan that follows from a training section.

    Attributes:
        section: The section.
        batch: How the global batch is split.
        steps: Optimizer steps of the budget.
        ds_path: The DeepSpeed file it is based on.
        ds_config: The config for DeepSpeed.
    """

    section: TrainConfig | TrainVaeConfig
    batch: BatchPlan
    steps: int
    ds_path: str
    ds_config: dict[str, Any]

    def describe(self) -> str:
        """Describe it, for a dry run."""
        loop, batch = self.section.loop, self.batch
        spread = f"{batch.micro_batch_size} images x {batch.gradient_accumulation_steps} accumulation step(s)"
        if loop.micro_batch_size == "auto":
            spread = (
                f"as many images as memory holds x accumulation steps\n"
                f"the micro-batch is found at start; below all {batch.micro_batch_size} images of a rank fit at once"
            )
        return (
            f"# batch\n"
            f"global batch {batch.global_batch_size} = {batch.world_size} rank(s) x {spread}\n"
            f"{loop.budget_images} images / {batch.global_batch_size} = {self.steps} optimizer steps\n\n"
            f"# DeepSpeed ({self.ds_path})\n{json.dumps(self.ds_config, indent=2)}\n\n"
        )


def _likely_bf16(device: Literal["cpu", "cuda"]) -> bool:
    """Guess without torch whether the device has instructions for bf16; the run itself checks."""
    return device == "cuda" or processor_has_bf16()


def plan_training(
    section: TrainConfig | TrainVaeConfig, ds_file: str | None, *, world_size: int, device: Literal["cpu", "cuda"]
) -> TrainingPlan:
    """Derive batch, steps and the DeepSpeed config; a micro-batch of `auto` counts as all images of a rank.

    Args:
        section: The training section.
        ds_file: The DeepSpeed file; None for the default of the device.
        world_size: Number of ranks.
        device: Their device.

    Raises:
        ConfigError: The global batch cannot be split over the ranks, or the DeepSpeed file is invalid.
    """
    loop = section.loop
    batch = plan_batch(
        global_batch_size=loop.global_batch_size, max_micro_batch_size=assumed_micro_batch(loop), world_size=world_size
    )
    path, document = read_ds_file(ds_file, device=device)
    checked = check_ds_file(document, where=str(path))
    return TrainingPlan(
        section=section,
        batch=batch,
        steps=-(-loop.budget_images // loop.global_batch_size),
        ds_path=str(path),
        ds_config=build_ds_config(
            checked,
            batch=batch,
            precision=working_precision(loop.precision, native_bf16=_likely_bf16(device)),
            max_grad_norm=section.optim.max_grad_norm,
        ),
    )
