"""The verdict on a generated image: what is wrong with it, measured against what it was asked for.

The thresholds of the disc lie beyond the extremes of one half of 413 photographs of one camera; that of sharpness was
chosen with both halves in view. `benchmarks/examination.py` prints false alarms and recall; docs/LOG.md has figures,
which fall short of what they should be. An image is refused for what no photograph of an eye has, not for what is rare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.evaluation.examination.anatomy import Anatomy, find_anatomy
from synfundus.evaluation.examination.clarity import Clarity, Field, find_field, measure_clarity, working_copy
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema

SMALLEST_SIZE_PX = 64

_BLACK, _DARK_SHARE = 0.06, 0.5
_WHITE_SHARE = 0.5
_FLAT = 0.04
_BLURRED = 0.0090
_NO_DISC, _DISC = 0.15, 0.40
_FOVEA, _BESIDE = 0.0, 0.2
_DISC_DIAMETERS = (0.06, 0.40)


class Fault(StrEnum):
    """What is wrong with an image; the values stand in ``checks.jsonl``."""

    BLACK = "black"
    SATURATED = "saturated"
    NO_FIELD = "no_field_of_view"
    CROPPED = "cropped_field"
    FLAT = "no_contrast"
    BLURRED = "blurred"
    NO_DISC = "no_optic_disc"
    SEVERAL_DISCS = "several_optic_discs"
    DISC_SIZE = "optic_disc_size"
    WRONG_SIDE = "wrong_eye_side"
    CONTRADICTED = "labels_contradicted"


@dataclass(frozen=True)
class Expectation:
    """What an image should show, by the labels it was asked for.

    Attributes:
        readable: The photograph as a whole; False where ``is_fundus`` is 0.
        disc_visible: The optic disc; False too where ``is_optic_disc_readable`` is 0.
        retina_visible: Disc, macula and the rest; False where any of them is unreadable.
        side: The eye; None where it was not asked for.
    """

    readable: bool = True
    disc_visible: bool = True
    retina_visible: bool = True
    side: Literal["right", "left"] | None = None


def expectation(row: Mapping[str, int | None], schema: LabelSchema) -> Expectation:
    """Return what an image of these labels should show.

    What is unknown, or no label of the schema, counts as readable: a set without such labels is of readable
    photographs. Names of the values of ``eye_side`` count where the schema has them, else 0 is a right eye.
    """
    unreadable = {name for name in DEFAULT_LABEL_SCHEMA.names if name.startswith("is_") and row.get(name) == 0}
    readable = "is_fundus" not in unreadable
    parts = {"is_optic_disc_readable", "is_macular_readable", "is_retinal_region_readable"}
    side: Literal["right", "left"] | None = None
    if "eye_side" in schema.names and (value := row.get("eye_side")) is not None:
        spec = schema["eye_side"]
        names = spec.values_by_name if spec.names else DEFAULT_LABEL_SCHEMA["eye_side"].values_by_name
        side = "right" if names.get("right") == value else "left" if names.get("left") == value else None
    return Expectation(
        readable=readable,
        disc_visible=readable and "is_optic_disc_readable" not in unreadable,
        retina_visible=readable and not parts & unreadable,
        side=side,
    )


@dataclass(frozen=True)
class Examination:
    """What was seen of an image.

    Attributes:
        faults: What is wrong, in the order of `Fault`; empty: it passed.
        figures: What was measured; None where it cannot be.
        contradicted: Labels that a judge cannot believe.
    """

    faults: tuple[Fault, ...] = ()
    figures: Mapping[str, float | None] = field(default_factory=dict)
    contradicted: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def examine(pixels: NDArray[np.uint8], row: Mapping[str, int | None], schema: LabelSchema) -> Examination:
    """Look at one image: a pure function of its pixels and of the labels it was asked for.

    Args:
        pixels: uint8 ``[h, w, 3]``, RGB, square.
        row: Labels asked for; None or missing is unknown.
        schema: The labels.

    Raises:
        DataError: Pixels of another shape or type.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1]:
        raise DataError(f"an image to look at is uint8 [s, s, 3], this is {pixels.dtype} {list(pixels.shape)}")
    if pixels.shape[0] < SMALLEST_SIZE_PX:
        raise DataError(f"an image of {pixels.shape[0]} px is too small to look at; {SMALLEST_SIZE_PX} px are needed")
    asked, copy = expectation(row, schema), working_copy(pixels)
    clarity, seen = measure_clarity(copy), find_field(pixels, copy)
    anatomy = find_anatomy(copy)
    faults = [*clarity_faults(clarity, asked), *field_faults(seen, clarity, asked)]
    if not faults:  # what a black or cropped image has of anatomy says nothing
        faults = disc_faults(anatomy, asked)
    order = list(Fault)
    return Examination(tuple(sorted(faults, key=order.index)), _figures(clarity, seen, anatomy))


def clarity_faults(clarity: Clarity, asked: Expectation) -> list[Fault]:
    """Return what is wrong with light and sharpness; nothing where an unreadable photograph was asked for."""
    if not asked.readable:
        return []
    if clarity.brightness < _BLACK or clarity.dark > _DARK_SHARE:
        return [Fault.BLACK]
    if clarity.saturated > _WHITE_SHARE:
        return [Fault.SATURATED]
    found = [Fault.FLAT] if clarity.contrast < _FLAT else []
    return [*found, Fault.BLURRED] if asked.retina_visible and clarity.sharpness < _BLURRED else found


def field_faults(seen: Field, clarity: Clarity, asked: Expectation) -> list[Fault]:
    """Return what is wrong with the field of view; a black image has none, and that is said already."""
    if clarity.brightness < _BLACK or not asked.readable:
        return []
    if not seen.is_found:
        return [Fault.NO_FIELD]
    return [] if seen.is_whole else [Fault.CROPPED]


def disc_faults(anatomy: Anatomy, asked: Expectation) -> list[Fault]:
    """Return what is wrong with number, size and side of the optic disc."""
    first, second = anatomy.discs[:2]
    if not asked.readable:
        return []
    if second.score > _DISC:
        return [Fault.SEVERAL_DISCS]
    if first.score < _NO_DISC:
        return [Fault.NO_DISC] if asked.disc_visible else []
    low, high = _DISC_DIAMETERS
    found = [] if low <= first.radius <= high else [Fault.DISC_SIZE]
    side = eye_side(anatomy)
    return [*found, Fault.WRONG_SIDE] if asked.side and side and side != asked.side else found


def eye_side(anatomy: Anatomy) -> Literal["right", "left"] | None:
    """Return the eye of an image: its disc is nasal, on the right of the fovea in a right eye; None if it is unclear.

    Where no fovea was found the middle of the field counts, from a distance on.
    """
    disc, fovea = anatomy.discs[0], anatomy.fovea
    if disc.score < _NO_DISC:
        return None
    off = disc.x - fovea.x if fovea.score > _FOVEA else disc.x
    if abs(off) < _BESIDE:
        return None
    return "right" if off > 0 else "left"


def _figures(clarity: Clarity, seen: Field, anatomy: Anatomy) -> dict[str, float | None]:
    first, second, fovea = anatomy.discs[0], anatomy.discs[1], anatomy.fovea
    has_disc, has_fovea = first.score >= _NO_DISC, fovea.score > _FOVEA
    across, down = fovea.x - first.x, fovea.y - first.y
    both = has_disc and has_fovea and math.hypot(across, down) > first.radius
    return {
        "brightness": round(clarity.brightness, 3),
        "contrast": round(clarity.contrast, 3),
        "saturated": round(clarity.saturated, 4),
        "dark": round(clarity.dark, 4),
        "sharpness": round(clarity.sharpness, 4),
        "field_width": round(seen.width, 3),
        "num_discs": sum(disc.score > (_DISC if number else _NO_DISC) for number, disc in enumerate(anatomy.discs)),
        "disc_score": first.score,
        "second_disc_score": second.score,
        "disc_x": round(first.x, 3) if has_disc else None,
        "disc_y": round(first.y, 3) if has_disc else None,
        "disc_diameter": round(first.radius, 3) if has_disc else None,
        "fovea_score": fovea.score,
        "fovea_distance_disc_diameters": round(math.hypot(across, down) / (2 * first.radius), 2) if both else None,
        "fovea_angle_deg": round(math.degrees(math.atan2(down, abs(across))), 1) if both else None,
    }
