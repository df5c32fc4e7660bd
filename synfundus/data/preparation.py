"""One photograph from file bytes to the image of a set, and the process that does many of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synfundus.data.burned_text import WORKING_SIZE_PX, BurnedTextError, find_burned_text
from synfundus.data.decode import ImageFormat, UndecodableImage, decode_photograph, encode_image
from synfundus.data.field_of_view import FieldOfViewError, find_field_of_view
from synfundus.data.ingest import PlannedSample
from synfundus.data.transforms import EYE_SIDE, RIM_SHRINK, crop_to_field_of_view
from synfundus.errors import StorageError
from synfundus.storage import filesystem

CROP = {"method": "field-of-view circle", "rim_shrink": RIM_SHRINK, "version": 1}
"""How images are cropped, for manifests; the version grows when the same photograph gives other pixels."""

TEXT_FLAG = "text_in_image"
"""Flag, and reason of rejection, of an image with writing inside the field of view."""

BurnedText = Literal["flag", "quarantine", "off"]
"""What happens to writing inside the field of view: it is flagged, it costs the image its place, or nobody looks."""

_BYTES_PER_PIXEL = 8  # the most a photograph needs without compression: four channels of 16 bit
_METADATA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Task:
    """Some photographs for one process.

    Attributes:
        source: Folder of the photographs.
        samples: Which of them.
        image_size_px: Edge of the images.
        image_format: How they are stored.
        max_pixels: Larger photographs are refused by their header.
        collection: Name of the collection, written into every sample.
        burned_text: What to do about writing inside the field of view.
    """

    source: str
    samples: tuple[PlannedSample, ...]
    image_size_px: int
    image_format: ImageFormat
    max_pixels: int
    collection: str
    burned_text: BurnedText


@dataclass(frozen=True)
class PreparedPixels:
    """An image of the set before it is encoded.

    Attributes:
        pixels: uint8 ``[s, s, 3]``.
        flags: Names of what a person should look at, e.g. `TEXT_FLAG`.
    """

    pixels: NDArray[np.uint8]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A sample ready for a shard.

    Attributes:
        sample: Which photograph it was.
        members: Contents by extension.
        flags: Names of what a person should look at; they stay out of the set's samples.
        pixels_hash: Perceptual hash of the pixels, 64 bit; 0 where none was computed.
    """

    sample: PlannedSample
    members: Mapping[str, bytes]
    flags: tuple[str, ...] = ()
    pixels_hash: int = 0


@dataclass(frozen=True)
class Unusable:
    """A photograph that is not in the set."""

    sample: PlannedSample
    stage: str
    reason: str
    detail: str


def prepare_pixels(data: bytes, *, image_size_px: int, max_pixels: int, burned_text: BurnedText) -> PreparedPixels:
    """Decode a photograph, crop it to its field of view and look for writing; only pixels go on.

    Args:
        data: The file.
        image_size_px: Edge ``s`` of the image.
        max_pixels: Larger photographs are refused by their header.
        burned_text: What to do about writing inside the field of view.

    Raises:
        UndecodableImage: The file is no photograph that can be decoded.
        FieldOfViewError: There is no field of view in it.
        BurnedTextError: There is writing inside the field of view, and ``burned_text`` is ``quarantine``.
    """
    photograph = decode_photograph(data, max_pixels=max_pixels)
    circle = find_field_of_view(photograph)
    pixels = crop_to_field_of_view(photograph, circle, image_size_px)
    if burned_text == "off":
        return PreparedPixels(pixels)
    region = find_burned_text(photograph, circle, size_px=max(image_size_px, WORKING_SIZE_PX))
    if region is None:
        return PreparedPixels(pixels)
    if burned_text == "quarantine":
        raise BurnedTextError(region)
    return PreparedPixels(pixels, (TEXT_FLAG,))


def sample_document(labels: Mapping[str, int | None], *, collection: str, image_size_px: int, image: bytes) -> bytes:
    """Return ``KEY.json`` of an image sample: labels and provenance, nothing about the patient."""
    document = {
        "labels": dict(labels),
        "eye_side": labels.get(EYE_SIDE),
        "source": collection,
        "size_px": image_size_px,
        "sha256_image": hashlib.sha256(image).hexdigest(),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def run_task(task: Task) -> list[Prepared | Unusable]:
    """Prepare the photographs of a task, in order; for a process pool."""
    return [_prepare(task, sample) for sample in task.samples]


def _prepare(task: Task, sample: PlannedSample) -> Prepared | Unusable:
    """Prepare one photograph.

    Raises:
        StorageError: The disk or store failed in a way that is not this file's fault.
    """
    limit = task.max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
    if sample.size_bytes > limit:
        return Unusable(sample, "decode", "file_too_large", f"{sample.size_bytes} bytes, allowed are {limit}")
    try:
        data = filesystem.read_bytes(filesystem.join(task.source, sample.source))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Unusable(sample, "files", "missing_file", "it was there when the run began")
        if isinstance(error.__cause__, PermissionError | IsADirectoryError):
            return Unusable(sample, "files", "unreadable_file", error.message)
        raise
    try:
        prepared = prepare_pixels(
            data, image_size_px=task.image_size_px, max_pixels=task.max_pixels, burned_text=task.burned_text
        )
    except UndecodableImage as error:
        return Unusable(sample, "decode", error.reason.value, error.message)
    except FieldOfViewError as error:
        return Unusable(sample, "crop", error.reason.value, error.message)
    except BurnedTextError as error:
        return Unusable(sample, "crop", TEXT_FLAG, error.message)
    image = encode_image(prepared.pixels, task.image_format)
    document = sample_document(sample.labels, collection=task.collection, image_size_px=task.image_size_px, image=image)
    return Prepared(sample, {task.image_format: image, "json": document}, prepared.flags)
