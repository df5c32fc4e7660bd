"""The plan of the demo: budgets for the given minutes, and the labels to generate. Pure decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.config.generation import DemoConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import DISEASES, READABLE, LabelSchema
from synfundus.seeding import keyed_generator
from synfundus.storage import filesystem

REFERENCE_MINUTES = DemoConfig().minutes
"""Minutes that the preset's budgets are made for."""
REFERENCE_PACE = 82.0
"""Images/s of `measure_pace` on the reference machine of the preset's budgets: two cores with AVX2 alone."""
_PACE_GAINS = (1.0, 4.0)
"""Minimum and maximum scale of the budgets: with fewer images labels are not learned, more gain little."""
IMAGES_PER_CONDITION = 5
_MIN_PHANTOMS = 96
_MIN_GENERATED = 16

_HEALTHY = {**dict.fromkeys(DISEASES, 0), **dict.fromkeys(READABLE, 1)}


@dataclass(frozen=True)
class Condition:
    """A row of the demo's picture.

    Attributes:
        title: Row title.
        defining: Labels of the photographs in the row.
        requested: Labels of the generated images.
    """

    title: str
    defining: Mapping[str, int]
    requested: Mapping[str, int]


def _finding(title: str, **labels: int) -> Condition:
    return Condition(title, {**labels, "is_fundus": 1}, {**_HEALTHY, **labels})


_CONDITIONS = (
    Condition("healthy, right eye", {**_HEALTHY, "eye_side": 0}, {**_HEALTHY, "eye_side": 0}),
    Condition("healthy, left eye", {**_HEALTHY, "eye_side": 1}, {**_HEALTHY, "eye_side": 1}),
    _finding("diabetic retinopathy, mild (1)", dr_grade=1),
    _finding("diabetic retinopathy, moderate (2)", dr_grade=2),
    _finding("diabetic retinopathy, severe (3)", dr_grade=3),
    _finding("diabetic retinopathy, proliferative (4)", dr_grade=4),
    _finding("diabetic macular edema", dr_grade=2, is_dme=1),
    _finding("glaucoma", is_gc=1),
    _finding("age-related macular degeneration", is_amd=1),
    _finding("pathologic myopia", is_pm=1),
    _finding("degenerative myopia", is_dm=1),
    _finding("retinal vein occlusion", is_rvo=1),
    _finding("hypertensive retinopathy", is_htr=1),
    _finding("epiretinal membrane", is_em=1),
    _finding("choroidal retinal pathology", is_crp=1),
    _finding("anomaly of the optic nerve", is_aon=1),
    Condition("unreadable photograph", {"is_fundus": 0}, dict.fromkeys(READABLE, 0)),
)


def conditions_of(schema: LabelSchema) -> list[Condition]:
    """Return the rows of the picture for a label schema: the named ones it has labels for, or one per value."""
    names = set(schema.names)
    named = [condition for condition in _CONDITIONS if set(condition.defining) <= names]
    if named:
        return [
            Condition(
                condition.title,
                condition.defining,
                {name: value for name, value in condition.requested.items() if name in names},
            )
            for condition in named
        ]
    return [
        Condition(f"{spec.meaning or spec.name} = {value}", {spec.name: value}, {spec.name: value})
        for spec in schema.labels
        for value in range(1 if spec.num_values == 2 else 0, spec.num_values)
    ]


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
        out=at("images"),
    )
    document["train_vae"].update(data=at("images"), run_dir=at("vae"))
    document["encode_latents"].update(data=at("images"), vae=at("vae"), out=at("latents"))
    document["train"].update(latents=at("latents"), run_dir=at("model"))
    document["sample"].update(
        model=at("model"), out=at("samples"), labels=at("label-plan.csv"), num_images=None, label={}, format="png"
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

    The control rows are drawn with replacement, so that prevalences and combinations are those of held-out patients.

    Args:
        held_out_states: Label states of held-out photographs ``[n, k]``.
        known_states: Label states of all photographs ``[m, k]``; a condition without any photograph is left out.
        schema: The labels.
        num_control: Images for the label-control test.
        seed: The run's seed.
    """
    chosen = keyed_generator(seed, "demo.control").integers(len(held_out_states), size=num_control)
    rows: list[LabelRow] = [schema.decode(held_out_states[row].tolist()) for row in chosen]
    conditions = [
        condition for condition in conditions_of(schema) if matching_rows(condition.defining, known_states, schema).size
    ]
    rows += [
        {**dict.fromkeys(schema.names), **condition.requested, **_side(condition, number, schema)}
        for condition in conditions
        for number in range(IMAGES_PER_CONDITION)
    ]
    return GenerationPlan(tuple(rows), num_control, tuple(conditions))


def _side(condition: Condition, number: int, schema: LabelSchema) -> dict[str, int]:
    """Return alternating eye sides where the condition leaves the side open."""
    if "eye_side" in condition.requested or "eye_side" not in schema.names:
        return {}
    return {"eye_side": number % 2}


def matching_rows(defining: Mapping[str, int], states: NDArray[np.int64], schema: LabelSchema) -> NDArray[np.int64]:
    """Return the numbers of the rows that have these labels, those with the fewest other findings first."""
    columns = {name: column for column, name in enumerate(schema.names)}
    fits = np.ones(len(states), dtype=bool)
    for name, value in defining.items():
        fits &= states[:, columns[name]] == value + 1
    others = [columns[name] for name in DISEASES if name in columns and name not in defining]
    unread = [columns[name] for name in READABLE if name in columns and name not in defining]
    excess = (states[:, others] > 1).sum(axis=1) + (states[:, unread] == 1).sum(axis=1)
    found = np.flatnonzero(fits)
    return np.asarray(found[np.argsort(excess[found], kind="stable")], dtype=np.int64)
