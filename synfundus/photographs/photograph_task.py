"""The task of a worker process: read a photograph once and return everything that is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from synfundus.errors import CorruptShard, StorageError
from synfundus.photographs.burned_text import BurnedTextError
from synfundus.photographs.decode import ImageFormat, UndecodableImage, encode_image
from synfundus.photographs.decoding.synthetic_marks import is_marked_synthetic
from synfundus.photographs.dicom import dicom_eye_side
from synfundus.photographs.field_of_view import FieldOfViewError
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.near_duplicates import hash_to_bytes, perceptual_hash
from synfundus.photographs.preparation import (
    SYNTHETIC,
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

_BYTES_PER_PIXEL = 8  # maximum of an uncompressed photograph: four channels of 16 bits
_METADATA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PhotographTask:
    """One photograph for a worker.

    Attributes:
        sample: The photograph.
        source: Folder of the photographs.
        image_size_px: Edge of the image.
        image_format: Format of the image.
        max_pixels: Larger photographs are refused by their header.
        collection: Name of the collection, written into every sample.
        burned_text: What to do about text inside the field of view.
        allow_synthetic: Whether a generated image is flagged; otherwise it is refused.
    """

    sample: PlannedSample
    source: str
    image_size_px: int
    image_format: ImageFormat
    max_pixels: int
    collection: str
    burned_text: BurnedText
    allow_synthetic: bool = False


@dataclass(frozen=True)
class PreparedPhotograph:
    """Everything that is kept of a photograph.

    Attributes:
        sample: The photograph; its labels are from the table, an unknown eye side from the DICOM file.
        members: Members of the sample by extension.
        diameter_px: Diameter of the field of view in the photograph.
        flags: Reasons for a person to check it.
        file_sha256: Hash of the file.
        image_sha256: Hash of the encoded image.
        perceptual_hash: `near_duplicates.HASH_BYTES` bytes.
        thumbnail: Thumbnail, row by row.
    """

    sample: PlannedSample
    members: Mapping[str, bytes]
    diameter_px: int
    flags: tuple[str, ...]
    file_sha256: str
    image_sha256: str
    perceptual_hash: bytes
    thumbnail: bytes


def prepare_photograph(task: PhotographTask) -> PreparedPhotograph | Unusable:
    """Prepare one photograph; for a process pool.

    Raises:
        StorageError: The disk or the store failed, independent of this file.
    """
    limit = task.max_pixels * _BYTES_PER_PIXEL + _METADATA_BYTES
    if task.sample.size_bytes > limit:
        return Unusable(task.sample, "decode", "file_too_large", f"{task.sample.size_bytes} bytes, allowed are {limit}")
    data = _read(task)
    if isinstance(data, Unusable):
        return data
    synthetic = is_marked_synthetic(data)
    if synthetic and not task.allow_synthetic:
        return Unusable(task.sample, "files", SYNTHETIC, "by its own metadata a model generated it")
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
    return _finish(task, data, prepared, synthetic=synthetic)


def _read(task: PhotographTask) -> bytes | Unusable:
    url = filesystem.join(task.source, task.sample.source)
    try:
        filesystem.protocol_of(url)
    except StorageError as error:
        return Unusable(task.sample, "files", "unsafe_name", error.message)
    try:
        data = filesystem.read_bytes(url)
    except CorruptShard as error:
        return Unusable(task.sample, "files", "damaged_in_store", error.message)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Unusable(task.sample, "files", "missing_file", "it existed when the run began")
        if isinstance(error.__cause__, PermissionError | IsADirectoryError):
            return Unusable(task.sample, "files", "unreadable_file", error.message)
        # the file name may contain the name of a patient: messages use the key
        where_to_look = "search *.plan.jsonl in work/chunks of the crosswalk folder for this key"
        hint = f"{error.hint}; {where_to_look}" if error.hint else where_to_look
        raise StorageError(error.message, where=f"photograph {task.sample.key}", hint=hint) from None
    if len(data) != task.sample.size_bytes:  # replaced, or another copy on this host
        detail = f"{len(data)} bytes, {task.sample.size_bytes} when the run began"
        return Unusable(task.sample, "files", "changed_file", detail)
    return data


def _finish(task: PhotographTask, data: bytes, prepared: PreparedPixels, *, synthetic: bool) -> PreparedPhotograph:
    sample = with_eye_side(task.sample, data)
    image = encode_image(prepared.pixels, task.image_format)
    hashed = perceptual_hash(prepared.pixels)
    collection = SYNTHETIC if synthetic else task.collection
    document = sample_document(sample.labels, collection=collection, image_size_px=task.image_size_px, image=image)
    return PreparedPhotograph(
        sample=sample,
        members={"json": document, task.image_format: image},
        diameter_px=prepared.diameter_px,
        flags=(*prepared.flags, SYNTHETIC) if synthetic else prepared.flags,
        file_sha256=hashlib.sha256(data).hexdigest(),
        image_sha256=hashlib.sha256(image).hexdigest(),
        perceptual_hash=hash_to_bytes(hashed.bits),
        thumbnail=hashed.thumbnail.tobytes(),
    )


def with_eye_side(sample: PlannedSample, data: bytes) -> PlannedSample:
    """Return a sample with the eye side of its DICOM file if the table does not have it."""
    if sample.labels.get(EYE_SIDE, 0) is not None or data[128:132] != b"DICM":
        return sample
    return replace(sample, labels={**sample.labels, EYE_SIDE: dicom_eye_side(data)})


def reject_of_lost(lost: Lost[PhotographTask]) -> Unusable:
    """Return the reject of a photograph whose worker died or hung."""
    reason = TOOK_TOO_LONG if lost.hung else KILLED_THE_WORKER
    return Unusable(lost.task.sample, "work", reason, lost.detail)
