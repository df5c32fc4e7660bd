"""The arithmetic of a training run, checked and shown before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from synfundus.cli.verbs import Verb
from synfundus.config.assets import read_ds_file
from synfundus.config.measured import assumed_micro_batch
from synfundus.config.precision import working_precision
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig, OptimConfig
from synfundus.distributed.ds_config import BatchPlan, build_ds_config, check_ds_file, plan_batch
from synfundus.distributed.processor import processor_has_bf16


@dataclass(frozen=True)
class TrainingPlan:
    """What follows from a training section.

    Attributes:
        batch: How the global batch is spread.
        steps: Optimizer steps until the budget is spent.
        ds_path: The DeepSpeed file it builds on.
        ds_config: What DeepSpeed will get.
    """

    batch: BatchPlan
    steps: int
    ds_path: str
    ds_config: dict[str, Any]


def training_sections(verb: Verb, config: RunConfig) -> tuple[LoopConfig, OptimConfig]:
    """Return the loop and the optimizer a training verb uses."""
    section = config.train_vae if verb.trains == "train_vae" else config.train
    return section.loop, section.optim


def _likely_bf16(device: Literal["cpu", "cuda"]) -> bool:
    """Guess, without asking torch, whether the run's device has instructions for bf16; the run itself looks."""
    return device == "cuda" or processor_has_bf16()


def check_training(verb: Verb, config: RunConfig, *, world_size: int, device: Literal["cpu", "cuda"]) -> TrainingPlan:
    """Derive batch, steps and the DeepSpeed dictionary; with a micro-batch found at start, as if all fitted at once.

    Raises:
        ConfigError: A global batch the ranks cannot share, or a DeepSpeed file that is not one.
    """
    loop, optim = training_sections(verb, config)
    batch = plan_batch(
        global_batch_size=loop.global_batch_size, max_micro_batch_size=assumed_micro_batch(loop), world_size=world_size
    )
    path, document = read_ds_file(config.launch.ds_config, device=device)
    checked = check_ds_file(document, where=str(path))
    return TrainingPlan(
        batch=batch,
        steps=-(-loop.budget_images // loop.global_batch_size),
        ds_path=str(path),
        ds_config=build_ds_config(
            checked,
            batch=batch,
            precision=working_precision(loop.precision, native_bf16=_likely_bf16(device)),
            max_grad_norm=optim.max_grad_norm,
        ),
    )
