"""Options of what is done before and after a run: planning it, averages put together from its snapshots."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synfundus.config.base import NonNegativeFloat, PositiveInt, Section

SigmaRel = Annotated[float, Field(gt=0.0, le=0.28)]


class PostHocConfig(Section):
    """Averages of lengths nobody tracked (`synfundus ema`; EDM2, arXiv 2312.02696)."""

    sigma_rel: SigmaRel | None = None
    """Width of the average relative to the run's length."""
    at_images: PositiveInt | None = None
    """Time of the average, in images; by default the last snapshot's."""
    out: str | None = None
    """Folder for the model; by default below the run."""


class ExportConfig(Section):
    """Writing a model of its own (`synfundus export`); where to stands in ``sample.out``."""

    checkpoint: Annotated[str, Field(pattern=r"^images-\d{12}$")] | None = None
    """Checkpoint to make the model of; by default the finished export, or the newest checkpoint where there is none."""
    weights: Literal["averaged", "raw"] = "averaged"
    """Which weights of a checkpoint."""


class PlanConfig(Section):
    """What a run will need (`synfundus plan`)."""

    gpu: Literal["v100", "a100-40", "a100", "a6000", "l40s", "rtx4090", "h100", "h200"] = "h100"
    """Processor to plan for."""
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Part of its peak it computes at: the MFU of a run that computes nothing twice; published runs of such U-Nets have
    .2 to .4. Gradient checkpointing keeps the part and lowers the MFU, which the plan says."""
    num_images: PositiveInt = 1_000_000
    """Images of the set, for the size of its latents."""
    price_per_gpu_hour: NonNegativeFloat | None = None
    """What an hour of one GPU costs, in any currency."""


class WatchConfig(Section):
    """Looking at a run from its files (`synfundus watch`)."""

    run_dir: str | None = None
    """Folder of a run of `train` or `train-vae`."""
    once: bool = False
    """Show it once instead of until Ctrl-C."""
    refresh_s: Annotated[float, Field(ge=0.2, le=3600.0)] = 3.0
    """Seconds between two looks."""


class PlotConfig(Section):
    """Curves of runs from their files (`synfundus plot`)."""

    run_dirs: tuple[str, ...] = ()
    """Folders of runs of `train` or `train-vae`."""
    out: Annotated[str, Field(pattern=r"(?i)\.png$")] = "curves.png"
    """PNG to write; an older one is replaced."""
    curves: tuple[str, ...] = ()
    """Names in metrics.jsonl, one panel each; by default the usual ones."""
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Weight of the past in the strong line, 0 for none; by default the more, the more points a curve has."""
