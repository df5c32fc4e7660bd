"""The plan of the demo: budgets for the given minutes, and the labels to generate. Pure decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.config.generation import DemoConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig
from synfundus.evaluation.label_control import control_rows
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import LabelSchema
from synfundus.stages.demo.conditions import Condition, known_conditions
from synfundus.storage import filesystem

REFERENCE_MINUTES = DemoConfig().minutes
"""Minutes that the preset's budgets are made for."""
REFERENCE_PACE = 82.0
"""Images/s of `measure_pace` on the reference machine of the preset's budgets: two cores with AVX2 alone."""
_PACE_GAINS = (1.0, 4.0)
"""Minimum and maximum scale of the budgets: with fewer images labels are not learned, more gain little."""
_MUCH_LONGER = 1.5
"""From this multiple of the minutes asked for, there is a warning."""
USEFUL_MINUTES = 2.0
"""The least that is advised, on the reference machine: 5,264 images for the U-Net. Where images begin is not measured:
after 144 they are static, after 18,400 discs and vessels (docs/LOG.md, entry 11)."""
IMAGES_PER_CONDITION = 5
_MIN_PHANTOMS = 96
_MIN_GENERATED = 16


def _scaled(value: int, scale: float, *, at_least: int, multiple_of: int = 1) -> int:
    return max(at_least, math.ceil(value * scale / multiple_of) * multiple_of)


def _scaled_loop(loop: LoopConfig, scale: float) -> dict[str, Any]:
    """Return the fields of a training loop that count images, scaled."""
    batch = loop.global_batch_size
    budget = _scaled(loop.budget_images, scale, at_least=batch, multiple_of=batch)
    return {
        "budget_images": budget,
        "checkpoint_every_images": _scaled(loop.checkpoint_every_images, scale, at_least=batch, multiple_of=batch),
        "preview_every_images": _scaled(loop.preview_every_images, scale, at_least=batch, multiple_of=batch)
        if loop.preview_every_images
        else 0,
        "log_every_images": min(_scaled(loop.log_every_images, 1, at_least=batch), budget),
    }


def pace_gain(pace: float) -> float:
    """Return the scale of the budgets for a machine's pace.

    Args:
        pace: Images/s of `measure_pace`.
    """
    least, most = _PACE_GAINS
    return min(max(pace / REFERENCE_PACE, least), most)


def estimate_minutes(minutes: float, pace: float) -> float:
    """Return the minutes a demo takes whose budgets are for ``minutes``, on a machine with this pace.

    Args:
        minutes: What was asked for.
        pace: Images/s of `measure_pace`; all stages are taken to be faster or slower by the same factor.
    """
    return minutes * pace_gain(pace) * REFERENCE_PACE / pace


def describe_pace(minutes: float, pace: float) -> tuple[str, str]:
    """Return what to say about the budgets before the demo begins, and a warning where another time should be given.

    It will take far longer than asked, or trains on so few images that noise is all that comes out.

    Args:
        minutes: What was asked for.
        pace: Images/s of `measure_pace`.
    """
    whole, gain = estimate_minutes(minutes, pace), pace_gain(pace)
    budgets = f"the preset's budgets x {gain:.2f}" if gain > 1 else "the preset's budgets, which are never reduced"
    said = f"this machine trains {pace:.3g} images/s: {budgets}; about {_duration(whole)} in all"
    slow = f"this machine trains {pace:.3g} images/s, the preset counts on {REFERENCE_PACE:.0f}"
    useful = float(f"{USEFUL_MINUTES / gain:.2g}")
    fewer = float(f"{minutes * minutes / whole:.1g}")
    smallest = (
        f"the smallest useful demo here is --minutes {useful:g}, about {_duration(estimate_minutes(useful, pace))}"
    )
    if minutes < useful:
        return said, (
            f"--minutes {minutes:g} trains on so few images that hardly more than noise comes out: it shows that the "
            f"chain runs, no more. For images stop it and give more, and another --out: {smallest}"
        )
    if whole <= _MUCH_LONGER * minutes:
        return said, ""
    late = f"the demo will take about {_duration(whole)}, not {_duration(minutes)}: {slow}"
    if fewer < useful:
        return said, f"{late}. {smallest[0].upper()}{smallest[1:]}: use a faster machine, or let it run"
    return said, (
        f"{late}. Stop it and give --minutes {fewer:g} and another --out for about "
        f"{_duration(estimate_minutes(fewer, pace))} with fewer images, or use a faster machine"
    )


def _duration(minutes: float) -> str:
    unit, count = ("second", 60 * minutes) if minutes < 1 else ("minute", minutes)
    if minutes >= 120:
        unit, count = "hour", minutes / 60
    return f"{count:.0f} {unit}{'' if round(count) == 1 else 's'}"


def plan_demo(config: RunConfig, *, pace: float) -> RunConfig:
    """Return the config with budgets for the machine, and all stages below ``demo.out``.

    Args:
        config: The resolved config.
        pace: Images/s of `measure_pace`.
    """
    document = config.model_dump()
    scale_budgets(document, pace=pace)
    place_stages(document)
    return RunConfig.model_validate(document)


def scale_budgets(document: dict[str, Any], *, pace: float) -> None:
    """Scale everything in a config's document that counts images to ``demo.minutes`` and to the machine.

    Phantoms grow with the square root above the reference, so that a long demo sees more patients and each of them
    more often.

    Args:
        document: Changed in place.
        pace: Images/s of `measure_pace`.
    """
    demo, phantoms = document["demo"], document["phantoms"]
    scale = pace_gain(pace) * demo["minutes"] / REFERENCE_MINUTES
    if scale == 1.0:
        return
    growth = scale if scale < 1 else math.sqrt(scale)
    phantoms["num_images"] = _scaled(phantoms["num_images"], growth, at_least=_MIN_PHANTOMS)
    demo["num_generated"] = _scaled(demo["num_generated"], min(scale, 1.0), at_least=_MIN_GENERATED)
    for section in (document["train_vae"], document["train"]):
        section["loop"].update(_scaled_loop(LoopConfig.model_validate(section["loop"]), scale))
        section["optim"]["warmup_images"] = round(section["optim"]["warmup_images"] * scale)
        section["ema"]["half_life_images"] *= scale


def place_stages(document: dict[str, Any]) -> None:
    """Put the inputs and outputs of all stages in a config's document below ``demo.out``."""
    demo = document["demo"]

    def at(name: str) -> str:
        return filesystem.join(str(demo["out"]), name)

    own = demo["source"] is not None
    document["phantoms"]["out"] = at("phantoms")
    document["prepare"].update(
        source=demo["source"] if own else at("phantoms"),
        labels=demo["labels"] if own else at("phantoms/labels.csv"),
        mapping=demo["mapping"] if own else None,
        importer=(demo["importer"] or document["prepare"]["importer"]) if own else None,
        out=at("images"),
    )
    document["train_vae"].update(data=at("images"), run_dir=at("vae"))
    if own and demo["source_latent_channels"] is not None:
        document["train_vae"]["autoencoder"]["latent_channels"] = demo["source_latent_channels"]
    document["encode_latents"].update(data=at("images"), vae=at("vae"), out=at("latents"))
    document["train"].update(latents=at("latents"), run_dir=at("model"))
    document["sample"].update(
        model=at("model"),
        out=at("samples"),
        labels=at("label-plan.csv"),
        num_images=None,
        label={},
        format="png",
        allow_unseen=True,
    )


@dataclass(frozen=True)
class GenerationPlan:
    """The purpose of each generated image.

    Attributes:
        rows: Requested labels of every image.
        num_control: Number of images, from the first, for the label-control test.
        conditions: The picture's rows; condition c has the images from ``num_control + c * IMAGES_PER_CONDITION`` on.
    """

    rows: tuple[LabelRow, ...]
    num_control: int
    conditions: tuple[Condition, ...]

    def condition_images(self, number: int) -> range:
        """Return the images of a condition."""
        first = self.num_control + number * IMAGES_PER_CONDITION
        return range(first, first + IMAGES_PER_CONDITION)


def plan_generation(
    *,
    held_out_states: NDArray[np.int64],
    known_states: NDArray[np.int64],
    schema: LabelSchema,
    num_control: int,
    seed: int,
) -> GenerationPlan:
    """Plan the generated images: label rows of held-out photographs, then the conditions of the picture.

    Args:
        held_out_states: Label states of held-out photographs ``[n, k]``.
        known_states: Label states of all photographs ``[m, k]``, which decide the conditions and what they ask for.
        schema: The labels.
        num_control: Images for the label-control test.
        seed: The run's seed.
    """
    rows = control_rows(held_out_states, schema, count=num_control, seed=seed)
    conditions = known_conditions(schema, known_states)
    rows += [
        {**dict.fromkeys(schema.names), **condition.requested, **({"eye_side": number % 2} if condition.sides else {})}
        for condition in conditions
        for number in range(IMAGES_PER_CONDITION)
    ]
    return GenerationPlan(tuple(rows), num_control, tuple(conditions))
