"""Sets of generated images for tests, drawn by a model with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_pipeline import write_tiny_pipeline

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.stages.sample import job as sample
from synfundus.telemetry.console import SilentConsole

BATCH = 8


def tiny_model(folder: Path) -> Path:
    """Write a run with a model; returns the run."""
    return write_tiny_pipeline(folder / "run" / "export").parent


def draw_samples(model: Path, out: Path, number: int, **options: Any) -> Path:
    """Draw images that alternate between sides and grades; the last of every 16 has no side."""
    plan = out.parent / f"{out.name}-plan.csv"
    rows = [f"{image % 5},{image % 3 // 2},{'' if image % 16 == 15 else image % 2}" for image in range(number)]
    plan.write_text("\n".join(["dr_grade,is_gc,eye_side", *rows]) + "\n")
    section = {"batch_size": BATCH, "num_steps": 2, "sampler": "ddim", "contact_sheet_images": 4, **options}
    settings = {"sample": {"model": str(model), "out": str(out), "labels": str(plan), **section}}
    sample.run(RunConfig.model_validate({**settings, "launch": {"device": "cpu"}}), LocalWorld(), SilentConsole())
    return out
