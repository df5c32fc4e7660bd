"""DICOM photographs for tests, written with pydicom."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.utils import compress
from pydicom.uid import UID

OPHTHALMIC_8 = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OPHTHALMIC_16 = "1.2.840.10008.5.1.4.1.1.77.1.5.2"
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE, JPEG_BASELINE = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"


def dicom_file(dataset: Dataset, syntax: str = EXPLICIT) -> bytes:
    """Write a dataset as a DICOM file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", UID(OPHTHALMIC_8))
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def photograph_dataset(pixels: NDArray[Any], *, colour: str = "RGB", **attributes: Any) -> Dataset:
    """Return a dataset of ``[h, w]``, ``[h, w, 3]`` or ``[n, h, w, 3]`` pixels, 8 or 16 bit."""
    frames = pixels[None] if pixels.ndim == 2 or pixels.ndim == 3 else pixels
    samples = 1 if pixels.ndim == 2 else 3
    bits = 8 * pixels.dtype.itemsize
    dataset = Dataset()
    dataset.SOPClassUID = UID(OPHTHALMIC_8 if bits == 8 else OPHTHALMIC_16)
    dataset.SOPInstanceUID = UID("1.2.3.4")
    dataset.SamplesPerPixel = samples
    dataset.PhotometricInterpretation = colour
    if samples == 3:
        dataset.PlanarConfiguration = 0
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    data = frames.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def photograph_file(
    pixels: NDArray[Any],
    *,
    syntax: str = EXPLICIT,
    colour: str = "RGB",
    update: Dataset | None = None,
    **attributes: Any,
) -> bytes:
    """Return an uncompressed or RLE file; the elements of ``update`` are added."""
    dataset = photograph_dataset(pixels, colour=colour, **attributes)
    dataset.update(update or {})
    if syntax == RLE:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        compress(dataset, UID(RLE), generate_instance_uid=False)
    return dicom_file(dataset, syntax)


def jpeg_photograph_file(
    frames: list[bytes], *, rows: int, columns: int, colour: str, update: Dataset | None = None
) -> bytes:
    """Return a file of JPEG frames; ``rows`` and ``columns`` are only what the header says."""
    grey = colour.startswith("MONOCHROME")
    dataset = photograph_dataset(np.zeros((1, 1) if grey else (1, 1, 3), dtype=np.uint8), colour=colour)
    dataset.Rows, dataset.Columns = rows, columns
    if len(frames) > 1:
        dataset.NumberOfFrames = len(frames)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.update(update or {})
    return dicom_file(dataset, JPEG_BASELINE)


def jpeg(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    """Encode pixels as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **{"quality": 95, "subsampling": 0, **options})
    return stream.getvalue()
