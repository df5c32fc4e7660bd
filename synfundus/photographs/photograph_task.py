"""What a worker process does with one photograph: read it once, and return all that is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from synfundus.errors import CorruptShard, StorageError
from synfundus.photographs.burned_text import BurnedTextError
from synfundus.photographs.decode import ImageFormat, UndecodableImage, encode_image
from synfundus.photographs.dicom import dicom_eye_side
from synfundus.photographs.field_of_view import FieldOfViewError
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.near_duplicates import appearance_of, hash_to_bytes
from synfundus.photographs.preparation import (
    TEXT_FLAG,
    BurnedText,
    PreparedPixels,
    Unusable,
    prepare_pixels,
    sample_document,
)
from synfundus.photographs.transforms import EYE_SIDE
from synfundus.processes.pool import Lost
from synfundus.storage import filesystem

KILLED_THE_WORKER = "killed_the_worker"
TOOK_TOO_LONG = "took_too_long"

_BYTES_PER_PIXEL = 8  # the most a photograph needs without compression: four channels of 16 bit
_METADATA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PhotographTask:
    """One photograph for a worker.

    Attributes:
        sample: Which one.
        source: Folder of the photographs.
        image_size_px: Edge of the images.
        image_format: How they are stored.
        max_pixels: Larger photographs are refused by their header.
        collection: Name of the collection, written into every sample.
        burned_text: What to do about writing inside the field of view.
    """

    sample: PlannedSample
    source: str
    image_size_px: int
    image_format: ImageFormat
    max_pixels: int
    collection: str
    burned_text: BurnedText


@dataclass(frozen=True)
class PreparedPhotograph:
    """All that is kept of a photograph.

    Attributes:
        sample: Which one; its labels are those of the table and, where that has no side, the side the file states.
        members: Contents of the sample by extension.
        flags: Names of what a person should look at.
        file_sha256: Hash of the file.
        image_sha256: Hash of the encoded image.
        look: Perceptual hash, `near_duplicates.HASH_BYTES` bytes.
        thumbnail: Small copy, row by row.
    """

    sample: PlannedSample
    members: Mapping[str, bytes]
    flags: tuple[str, ...]
    file_sha256: str
    image_sha256: str
    look: bytes
    thumbnail: bytes


def prepare_photograph(task: PhotographTask) -> PreparedPhotograph | Unusable:
    """Prepare one photograph; for a process pool.

    Raises:
        StorageError: The disk or store failed in a way that is not this file's fault.
    """
    limit = task.max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
    if task.sample.size_bytes > limit:
        return Unusable(task.sample, "decode", "file_too_large", f"{task.sample.size_bytes} bytes, allowed are {limit}")
    data = _read(task)
    if isinstance(data, Unusable):
        return data
    try:
        prepared = prepare_pixels(
            data, image_size_px=task.image_size_px, max_pixels=task.max_pixels, burned_text=task.burned_text
        )
    except UndecodableImage as error:
        return Unusable(task.sample, "decode", error.reason.value, error.message)
    except FieldOfViewError as error:
        return Unusable(task.sample, "crop", error.reason.value, error.message)
    except BurnedTextError as error:
        return Unusable(task.sample, "crop", TEXT_FLAG, error.message)
    return _finish(task, data, prepared)


def _read(task: PhotographTask) -> bytes | Unusable:
    url = filesystem.join(task.source, task.sample.source)
    try:
        filesystem.protocol_of(url)
    except StorageError as error:
        return Unusable(task.sample, "files", "unsafe_name", error.message)
    try:
        return filesystem.read_bytes(url)
    except CorruptShard as error:
        return Unusable(task.sample, "files", "damaged_in_store", error.message)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Unusable(task.sample, "files", "missing_file", "it was there when the run began")
        if isinstance(error.__cause__, PermissionError | IsADirectoryError):
            return Unusable(task.sample, "files", "unreadable_file", error.message)
        # the name of the file may be the name of a patient: messages get the key
        which = (
            "the file *.plan.jsonl with this key, in work/chunks of the crosswalk folder, says which photograph it is"
        )
        hint = f"{error.hint}; {which}" if error.hint else which
        raise StorageError(error.message, where=f"photograph {task.sample.key}", hint=hint) from None


def _finish(task: PhotographTask, data: bytes, prepared: PreparedPixels) -> PreparedPhotograph:
    sample = with_eye_side(task.sample, data)
    image = encode_image(prepared.pixels, task.image_format)
    look = appearance_of(prepared.pixels)
    document = sample_document(sample.labels, collection=task.collection, image_size_px=task.image_size_px, image=image)
    return PreparedPhotograph(
        sample=sample,
        members={"json": document, task.image_format: image},
        flags=prepared.flags,
        file_sha256=hashlib.sha256(data).hexdigest(),
        image_sha256=hashlib.sha256(image).hexdigest(),
        look=hash_to_bytes(look.hash),
        thumbnail=look.thumbnail.tobytes(),
    )


def with_eye_side(sample: PlannedSample, data: bytes) -> PlannedSample:
    """Return a sample with the side of the eye its DICOM file states, where the table does not know it."""
    if sample.labels.get(EYE_SIDE, 0) is not None or data[128:132] != b"DICM":
        return sample
    labels = {**sample.labels, EYE_SIDE: dicom_eye_side(data)}
    return PlannedSample(sample.key, sample.source, sample.patient, labels, sample.size_bytes)


def name_loss(lost: Lost[PhotographTask]) -> Unusable:
    """Return the reject for a photograph that took its worker with it."""
    reason = TOOK_TOO_LONG if lost.hung else KILLED_THE_WORKER
    return Unusable(lost.task.sample, "work", reason, lost.detail)
