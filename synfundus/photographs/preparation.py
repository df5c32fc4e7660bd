"""From the bytes of a photograph to the pixels and the JSON document of a sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synfundus.photographs.burned_text import WORKING_SIZE_PX, BurnedTextError, find_burned_text
from synfundus.photographs.decode import decode_flagged
from synfundus.photographs.field_of_view import FieldOfViewError, NoFieldOfView, find_field_of_view
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.transforms import EYE_SIDE, RIM_SHRINK, crop_to_field_of_view, has_few_levels, is_flat

CROP = {"method": "field-of-view circle", "rim_shrink": RIM_SHRINK, "version": 2}
"""How images are cropped, for manifests; the version changes if the same photograph gives other pixels."""

FIRST_CROP = {**CROP, "version": 1}
"""What the fingerprint of the inputs holds, whatever the version: a finished set stays complete."""

TEXT_FLAG = "text_in_image"
"""Flag, and reject reason, of an image with text inside the field of view."""

SYNTHETIC = "synthetic"
"""Reject reason of an image that a model generated; where it is let in, its flag and its collection."""

ENLARGED_FLAG = "enlarged"
"""Flag of an image whose field of view has fewer pixels across in the photograph than in the set."""

BurnedText = Literal["flag", "quarantine", "off"]
"""What to do about text inside the field of view: flag the image, reject it, or do not search for text."""


@dataclass(frozen=True)
class PreparedPixels:
    """An image of the set before encoding.

    Attributes:
        pixels: uint8 ``[s, s, 3]``.
        diameter_px: Diameter of the field of view in the photograph: its pixels across.
        flags: Reasons for a person to check it, e.g. `TEXT_FLAG`, or those of `decode_flagged`.
    """

    pixels: NDArray[np.uint8]
    diameter_px: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unusable:
    """A photograph that cannot be used, and why."""

    sample: PlannedSample
    stage: str
    reason: str
    detail: str


def prepare_pixels(data: bytes, *, image_size_px: int, max_pixels: int, burned_text: BurnedText) -> PreparedPixels:
    """Decode a photograph, crop it to its field of view and search for text; only pixels are kept.

    Args:
        data: The file.
        image_size_px: Edge ``s`` of the image.
        max_pixels: Larger photographs are refused by their header.
        burned_text: What to do about text inside the field of view.

    Raises:
        UndecodableImage: The file cannot be decoded.
        FieldOfViewError: It has no field of view.
        BurnedTextError: There is text inside the field of view, and ``burned_text`` is ``quarantine``.
    """
    photograph, flags = decode_flagged(data, max_pixels=max_pixels)
    circle = find_field_of_view(photograph)
    pixels = crop_to_field_of_view(photograph, circle, image_size_px)
    if is_flat(pixels):
        reason = "the disc is of one colour: a mask of a field of view, no photograph"
        raise FieldOfViewError(NoFieldOfView.FLAT, reason)
    if has_few_levels(photograph, circle):
        reason = "the disc has a few greys and next to nothing between: a mask of what was marked, no photograph"
        raise FieldOfViewError(NoFieldOfView.FLAT, reason)
    diameter_px = round(2 * circle.radius_px)
    flags += (ENLARGED_FLAG,) if diameter_px < image_size_px else ()
    if burned_text != "off":
        region = find_burned_text(photograph, circle, size_px=max(image_size_px, WORKING_SIZE_PX))
        if region is not None and burned_text == "quarantine":
            raise BurnedTextError(region)
        flags += () if region is None else (TEXT_FLAG,)
    return PreparedPixels(pixels, diameter_px, flags)


def sample_document(labels: Mapping[str, int | None], *, collection: str, image_size_px: int, image: bytes) -> bytes:
    """Return ``KEY.json`` of an image sample: labels and provenance, but nothing about the patient."""
    document = {
        "labels": dict(labels),
        "eye_side": labels.get(EYE_SIDE),
        "source": collection,
        "size_px": image_size_px,
        "sha256_image": hashlib.sha256(image).hexdigest(),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
