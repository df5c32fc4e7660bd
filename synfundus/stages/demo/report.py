"""The results of the demo: a table, demo.json and demo.png."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.run_folder import versions
from synfundus.evaluation.label_control import HEADLINE_FIGURES
from synfundus.labels.schema import LabelSchema
from synfundus.pictures.sheets import PictureRow, PictureSection, encode_png, titled_rows
from synfundus.stages.demo.conditions import matching_rows
from synfundus.stages.demo.plan import IMAGES_PER_CONDITION, GenerationPlan
from synfundus.stages.judging import LabelControl, LabelledImages, show_label_control
from synfundus.stages.vessel_detail import (
    VESSEL_FIGURES,
    describe_vessels,
    lost_vessels,
    missing_vessels,
    vessel_table,
)
from synfundus.telemetry.console import Console

_TILE_PX = 128
_TITLE_WIDTH_PX = 150
_COMPRESS_LEVEL = 6
WITHHELD = "figures withheld: the generated images do not look like fundus photographs (too little training?)"
_UNREADABLE_MEAN = 12
"""Photographs darker than this mean grey value are not shown beside their reconstruction."""


@dataclass(frozen=True)
class StageResult:
    """One line of the table."""

    name: str
    seconds: float
    merit: str
    summary: dict[str, Any]


@dataclass
class DemoResult:
    """All figures of a demo.

    Attributes:
        minutes: Its given minutes.
        pace_images_per_s: The pace that scaled the budgets (`measure_pace`).
        world_size: Processes.
        stages: In order.
        label_control: What the judges say.
        num_generated: Images behind the figures on generated images.
        judged_on: What the photographs are that reconstructions and figures on real photographs are of.
        peak_memory_gib: Largest resident size of this process and, if larger, of a worker.
    """

    minutes: float
    pace_images_per_s: float
    world_size: int
    stages: list[StageResult] = field(default_factory=list)
    label_control: LabelControl = field(default_factory=LabelControl)
    num_generated: int = 0
    judged_on: str = ""
    peak_memory_gib: float = 0.0

    def add_stage(self, name: str, seconds: float, merit: str, summary: dict[str, Any]) -> None:
        """Add a line."""
        self.stages.append(StageResult(name, seconds, merit, summary))

    def summary_of(self, name: str) -> dict[str, Any]:
        """Return the summary of a stage; empty if it did not run."""
        return next((stage.summary for stage in self.stages if stage.name == name), {})

    def headline_text(self) -> str:
        """Return the figures on generated images in one line."""
        if self.label_control.withheld:
            return WITHHELD
        generated, shown = self.label_control.agreements["generated"], []
        for one in HEADLINE_FIGURES:
            value, bounds = generated[one.label].figure(one.measure) if one.label in generated else (None, None)
            if value is not None and bounds is not None:
                shown.append(f"{one.short} {value:.2f} ({bounds[0]:.2f}, {bounds[1]:.2f})")
        return ", ".join(shown) or "no figure defined"


def peak_memory_gib() -> float:
    """Return the largest resident size so far of this process or any of its children, in GiB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20


def report_document(result: DemoResult, *, seed: int, budgets: Mapping[str, int | None]) -> dict[str, Any]:
    """Return the content of demo.json.

    Args:
        result: Figures of the stages and of the judge.
        seed: Seed of the run.
        budgets: Images by purpose.
    """
    vae = result.summary_of("train-vae")
    return {
        "minutes": result.minutes,
        "pace_images_per_s": round(result.pace_images_per_s, 1),
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "stages": [
            {"name": stage.name, "seconds": round(stage.seconds, 2), "merit": stage.merit, "summary": stage.summary}
            for stage in result.stages
        ],
        "autoencoder": {name: vae.get(name) for name in ("psnr_db", "ssim", "evaluated_images", *VESSEL_FIGURES)},
        "generated_vessel_energy": result.label_control.generated_vessels.energy,
        "generated_vessel_lines": result.label_control.generated_vessels.lines,
        "engine": {name: result.summary_of("train").get(name) for name in ("engine", "zero_stage", "parameters")},
        **result.label_control.to_document(),
        "num_generated": result.num_generated,
        "judged_on": result.judged_on,
        "peak_memory_gib": round(result.peak_memory_gib, 2),
        "world_size": result.world_size,
        "versions": versions(),
        "seed": seed,
        "budgets": dict(budgets),
    }


def describe_autoencoder(summary: Mapping[str, Any]) -> str:
    """Return the figure of merit of the autoencoder's stage, and what it is of, as far as the stage says it."""
    judged = f"; of {summary['judged_on']}" if "judged_on" in summary else ""
    return f"PSNR {summary['psnr_db']:.2f} dB, SSIM {summary['ssim']:.3f}, {describe_vessels(summary)}{judged}"


def show_report(result: DemoResult, console: Console) -> None:
    """Show the tables: stages, vessels, label control."""
    total = sum(stage.seconds for stage in result.stages)
    rows = [[stage.name, f"{stage.seconds:.1f}", stage.merit] for stage in result.stages]
    rows.append(["total", f"{total:.1f}", f"peak memory {result.peak_memory_gib:.2f} GiB"])
    console.table("demo", ["stage", "seconds", "figure of merit"], rows)
    vae = result.summary_of("train-vae")
    console.table(*vessel_table(vae, result.label_control.generated_vessels))
    for warning in filter(None, (lost_vessels(vae), missing_vessels(result.label_control.generated_vessels))):
        console.warning(warning)
    show_label_control(result.label_control, console, num_generated=result.num_generated)


def reconstruction_subtitle(result: DemoResult) -> str:
    """Return what the photographs beside reconstructions are, and the figures."""
    vae = result.summary_of("train-vae")
    figures = describe_autoencoder(vae) if "psnr_db" in vae else ""
    return f"{result.judged_on}, and what is left after encoding and decoding · {figures}"


def label_control_subtitle(result: DemoResult) -> str:
    """Return what is left and right, and the figures on generated images or that they are withheld."""
    judged = "" if result.label_control.withheld else f"judged on {result.num_generated} generated images: "
    sides = "left: photographs with these labels · right: generated for these labels (synthetic)"
    return f"{sides} · {judged}{result.headline_text()}"


def _reconstruction_section(
    result: DemoResult, held_out: LabelledImages, restored: NDArray[np.uint8], *, columns: int, note: str
) -> PictureSection:
    bright = np.flatnonzero(held_out.pixels.mean(axis=(1, 2, 3)) >= _UNREADABLE_MEAN)
    chosen = (bright if len(bright) else np.arange(len(held_out)))[:columns]
    return PictureSection(
        title=f"Autoencoder{note and f' · {note}'}",
        subtitle=reconstruction_subtitle(result),
        column_titles=(),
        rows=[
            PictureRow("photograph", [list(held_out.pixels[chosen])]),
            PictureRow("reconstruction", [list(restored[chosen])]),
        ],
    )


def draw_demo(
    *,
    result: DemoResult,
    plan: GenerationPlan,
    held_out: LabelledImages,
    restored: NDArray[np.uint8],
    photographs: LabelledImages,
    generated: NDArray[np.uint8],
    schema: LabelSchema,
    note: str,
) -> bytes:
    """Draw demo.png: reconstructions below originals, then a row for each condition, real beside generated.

    Args:
        result: Figures for the headings.
        plan: Which generated image is for what.
        held_out: The photographs that figures are of.
        restored: The same after the autoencoder.
        photographs: Photographs to choose each row's real images from, held-out ones first.
        generated: Generated images in the order of the plan ``[n, s, s, 3]``.
        schema: The labels.
        note: What is to be said of the photographs (`patients_note`).
    """
    rows = []
    for number, condition in enumerate(plan.conditions):
        real = matching_rows(condition.defining, photographs.states, schema)[:IMAGES_PER_CONDITION]
        images = plan.condition_images(number)
        rows.append(
            PictureRow(condition.title, [list(photographs.pixels[real]), [generated[image] for image in images]])
        )
    sections = [_reconstruction_section(result, held_out, restored, columns=2 * IMAGES_PER_CONDITION, note=note)]
    if rows:
        sections.append(
            PictureSection(
                title="Label control",
                subtitle=label_control_subtitle(result),
                column_titles=("photographs", "generated"),
                rows=rows,
            )
        )
    picture = titled_rows(sections, tile_px=_TILE_PX, title_width_px=_TITLE_WIDTH_PX)
    return encode_png(picture, text={"synthetic": "in part", "Warning": note}, compress_level=_COMPRESS_LEVEL)
