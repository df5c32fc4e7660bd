"""Read the pixels of a DICOM photograph, and nothing else.

The header is read for what the pixels need (size, colour, bits, transfer syntax), the SOP class, and, on request, the
side of the eye. No attribute is kept, neither those that PS3.15 annex E lists for removal nor any other. pydicom reads
the header and decodes uncompressed and RLE frames; JPEG frames go to the same decoder as JPEG files. Reading a header
is bounded in steps and bytes, and its image size is checked before the pixel data are read.

Source: DICOM PS3.3 C.7.6.3 (image pixel module), PS3.5 A.4 (encapsulated frames), PS3.15 E (attributes to remove).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.photographs.bare_picture import bare_picture
from synfundus.photographs.decoding.colour_profile import to_srgb
from synfundus.photographs.decoding.jpeg_stream import END_MARKER, check_stream
from synfundus.photographs.undecodable import DECODER_ERRORS, Undecodable, UndecodableImage, check_size

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit Image Storage",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "Ophthalmic Photography 16 Bit Image Storage",
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image Storage",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image Storage",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture Image Storage",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture Image Storage",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture Image Storage",
}
"""SOP classes that can contain a fundus photograph."""

_IMPLICIT_LITTLE, _EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT_LITTLE, "1.2.840.10008.1.2.1", _EXPLICIT_BIG)
_RLE, _JPEG_BASELINE = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}

_PIXEL_DATA = 0x7FE00010
_SOP_CLASS, _META_SOP_CLASS, _TRANSFER_SYNTAX = 0x00080016, 0x00020002, 0x00020010
_LATERALITY, _IMAGE_LATERALITY, _ICC_PROFILE = 0x00200060, 0x00200062, 0x00282000
_EXTENDED_OFFSETS = (0x7FE00001, 0x7FE00002)
_IMAGE_PIXEL_TAGS = (
    0x00280002,  # samples per pixel
    0x00280004,  # photometric interpretation
    0x00280006,  # planar configuration
    0x00280008,  # number of frames
    0x00280010,  # rows
    0x00280011,  # columns
    0x00280100,  # bits allocated
    0x00280101,  # bits stored
    0x00280102,  # high bit
    0x00280103,  # pixel representation
    *(0x00281101, 0x00281102, 0x00281103),  # palette: numbers of entries
    *(0x00281201, 0x00281202, 0x00281203),  # palette: entries
)
_READ_TAGS = (_SOP_CLASS, _LATERALITY, _IMAGE_LATERALITY, _ICC_PROFILE, *_IMAGE_PIXEL_TAGS, *_EXTENDED_OFFSETS)

_HEADER_READS = 10_000  # the header of an eye camera needs hundreds; two reads per element
_HEADER_BYTES = 64 * 2**20  # previews and private blocks come before the pixels
_VALUE_BYTES = 2**20  # the largest palette has 128 KiB
_FRAGMENT_READS = 100_000


class _BoundedBytes(io.BytesIO):
    """A file in memory with bounded reads, so that a crafted header cannot keep a process busy."""

    def __init__(self, data: bytes, *, reads: int, value_bytes: int, end: int) -> None:
        super().__init__(data)
        self._reads, self._value_bytes, self._end = reads, value_bytes, end

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads -= 1
        if size is None or not 0 <= size <= self._value_bytes or self._reads < 0 or self.tell() > self._end:
            raise ValueError("the header has too many or too large elements")
        return super().read(size)


@dataclass(frozen=True, slots=True)
class _Header:
    """The header before the pixel data.

    Attributes:
        dataset: Only the attributes of `_READ_TAGS`.
        syntax: Transfer syntax UID.
        pixels_at: Offset of the pixel data in the file; None if there are none.
        pixels_bytes: Their declared length; None if undefined, as for compressed frames.
    """

    dataset: Dataset
    syntax: str
    pixels_at: int | None
    pixels_bytes: int | None

    def number(self, keyword: str, *, default: int | None = None) -> int:
        """Return an attribute as an integer.

        Raises:
            UndecodableImage: It is missing or not a number.
        """
        value = self.dataset.get(keyword)
        if value is None or value == "":
            if default is not None:
                return default
            raise UndecodableImage(Undecodable.DAMAGED, f"this DICOM file has no {keyword}")
        return int(value)


def decode_dicom(data: bytes, *, max_pixels: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode the first frame of a DICOM photograph to sRGB.

    Values are scaled from BitsStored to 8 bits; the colour profile of a colour photograph is applied, windows are not.

    Args:
        data: The file.
        max_pixels: Larger pictures are refused by their header.

    Returns:
        uint8 ``[h, w, 3]``, and flags; see `decode_flagged`.

    Raises:
        UndecodableImage: Not a photograph, an unsupported compression, truncated, damaged, or pydicom is not installed.
    """
    with _undecodable_errors():
        header = _read_header(data)
        sop_class = str(header.dataset.get("SOPClassUID", ""))
        if sop_class not in _CLASSES:
            kind = f"{_registered_name(sop_class)} is not an accepted kind of photograph"
            raise UndecodableImage(Undecodable.UNSUPPORTED_DICOM_CLASS, kind)
        if header.pixels_at is None:
            raise UndecodableImage(Undecodable.TRUNCATED, "this DICOM file ends before its pixel data")
        rows, columns = header.number("Rows"), header.number("Columns")
        if rows < 1 or columns < 1:
            raise UndecodableImage(Undecodable.DAMAGED, f"this DICOM file has {columns} x {rows} px")
        check_size((columns, rows), max_pixels)
        colour = _check_pixel_layout(header)
        if header.syntax == _JPEG_BASELINE:
            bare = bare_picture(_first_frame(data, header), "JPEG", max_pixels=max_pixels)
            pixels = _decode_jpeg_frame(bare.data, colour, rows, columns)
        else:
            frame = _native_frame(data, header, colour) if header.syntax in _NATIVE else _rle_frame(data, header)
            pixels = _to_rgb(_decode_frame(frame, header), header, colour)
        profile = header.dataset.get("ICCProfile")
        if profile and not colour.startswith("MONOCHROME"):
            converted, flags = to_srgb(Image.fromarray(pixels), bytes(profile))
            return np.array(converted), flags
        return pixels, ()


def dicom_eye_side(data: bytes) -> int | None:
    """Return the eye side of a DICOM file, 0 right and 1 left, from Image Laterality or Laterality.

    None for other files, for both or no side, for unreadable headers, and without pydicom.
    """
    try:
        with _undecodable_errors():
            dataset = _read_header(data).dataset
            for keyword in ("ImageLaterality", "Laterality"):
                side = {"R": 0, "L": 1}.get(str(dataset.get(keyword, "")).strip())
                if side is not None:
                    return side
    except UndecodableImage:
        pass
    return None


@lru_cache(maxsize=1)
def _reader_errors() -> tuple[type[Exception], ...]:
    """Return what decoders and pydicom raise on damaged bytes; some pydicom errors have no common base class."""
    known = (*DECODER_ERRORS, RuntimeError)  # recursion too deep, or no decoder succeeded
    try:
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        return known
    return (*known, BytesLengthException, InvalidDicomError)


@contextmanager
def _undecodable_errors() -> Iterator[None]:
    """Convert errors of pydicom and Pillow into a named reason, without header values in messages or warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UndecodableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableImage(Undecodable.TOO_MANY_PIXELS, str(error)) from None
    except _reader_errors() as error:
        reason = Undecodable.TRUNCATED if "truncat" in str(error).lower() else Undecodable.DAMAGED
        raise UndecodableImage(reason, f"this DICOM file cannot be read ({type(error).__name__})") from None


def _read_header(data: bytes) -> _Header:
    """Read the attributes of `_READ_TAGS` up to the pixel data.

    Raises:
        UndecodableImage: Not a DICOM file, or pydicom is not installed.
    """
    try:
        from pydicom.filereader import read_dataset
    except ImportError as error:
        message = "reading DICOM files needs pydicom: pip install 'synfundus[dicom]'"
        raise UndecodableImage(Undecodable.DICOM_SUPPORT_MISSING, message) from error
    # Its messages quote values, which may be names.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if data[128:132] != b"DICM":
        raise UndecodableImage(Undecodable.NOT_AN_IMAGE, "the file is not a DICOM file")
    stream = _BoundedBytes(data, reads=_HEADER_READS, value_bytes=_VALUE_BYTES, end=_HEADER_BYTES)
    stream.seek(132)
    meta = read_dataset(
        stream,
        False,
        True,
        stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
        specific_tags=[_META_SOP_CLASS, _TRANSFER_SYNTAX],
    )
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax not in (*_NATIVE, _RLE, _JPEG_BASELINE):
        # This includes deflate, which pydicom would inflate without a limit.
        raise UndecodableImage(
            Undecodable.UNSUPPORTED_TRANSFER_SYNTAX,
            f"DICOM pixels as {_registered_name(syntax)}; supported are uncompressed, RLE and JPEG baseline",
        )
    found: list[tuple[int, int]] = []

    def at_pixel_data(tag: int, _vr: str | None, length: int) -> bool:
        number = int(tag)  # comparisons of pydicom tags would take a fifth of the time
        if number == _PIXEL_DATA:
            found.append((stream.tell(), length))
        return number >= _PIXEL_DATA

    dataset = read_dataset(
        stream,
        syntax == _IMPLICIT_LITTLE,
        syntax != _EXPLICIT_BIG,
        stop_when=at_pixel_data,
        specific_tags=list(_READ_TAGS),
    )
    if _SOP_CLASS not in dataset and "MediaStorageSOPClassUID" in meta:
        dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    at, length = found[0] if found else (None, 0)
    return _Header(dataset, syntax, at, None if length == 0xFFFFFFFF else length)


def _registered_name(uid: str) -> str:
    """Return the standard name of a UID; unregistered UIDs are not quoted."""
    from pydicom.uid import UID

    name = UID(uid).name
    return "an unregistered UID" if name == uid else str(name)


def _check_pixel_layout(header: _Header) -> str:
    """Return the photometric interpretation.

    Raises:
        UndecodableImage: Colours or bits without a defined conversion.
    """
    colour = str(header.dataset.get("PhotometricInterpretation", ""))
    samples, allocated = header.number("SamplesPerPixel"), header.number("BitsAllocated")
    stored = header.number("BitsStored", default=allocated)
    signed = header.number("PixelRepresentation", default=0)
    usable = _SAMPLES.get(colour) == samples and allocated in (8, 16) and 1 < stored <= allocated and signed == 0
    usable &= header.number("HighBit", default=stored - 1) == stored - 1
    if header.syntax == _JPEG_BASELINE:
        usable &= allocated == 8 and colour != "PALETTE COLOR"
    if not usable:
        known = colour if colour in _SAMPLES else "another colour space"
        raise UndecodableImage(
            Undecodable.UNSUPPORTED_MODE,
            f"DICOM pixels of {samples} samples in {stored} of {allocated} bits, {known}, have no defined range",
        )
    return colour


def _native_frame(data: bytes, header: _Header, colour: str) -> bytes:
    """Return the bytes of the first uncompressed frame.

    Raises:
        UndecodableImage: The pixel data are shorter than the header states.
    """
    samples = 2 if colour == "YBR_FULL_422" else header.number("SamplesPerPixel")
    size = header.number("Rows") * header.number("Columns") * samples * header.number("BitsAllocated") // 8
    total = size * max(header.number("NumberOfFrames", default=1), 1)
    at, declared = header.pixels_at or 0, header.pixels_bytes
    if declared is None or declared < total:
        raise UndecodableImage(Undecodable.DAMAGED, f"the pixel data have {declared} bytes and need {total}")
    if len(data) - at < total:
        raise UndecodableImage(Undecodable.TRUNCATED, f"only {len(data) - at} of {total} bytes of the pixel data exist")
    return data[at : at + size]


def _first_frame(data: bytes, header: _Header) -> bytes:
    """Return the bytes of the first compressed frame, with its fragments joined."""
    from pydicom.encaps import get_frame

    if header.pixels_bytes is not None:
        raise UndecodableImage(Undecodable.DAMAGED, "compressed pixel data are not in fragments")
    stream = _BoundedBytes(data, reads=_FRAGMENT_READS, value_bytes=len(data), end=len(data))
    stream.seek(header.pixels_at or 0)
    offsets = [header.dataset.get(tag) for tag in _EXTENDED_OFFSETS]
    extended = None if None in offsets else tuple(element.value for element in offsets)
    number = max(header.number("NumberOfFrames", default=1), 1)
    return get_frame(stream, 0, number_of_frames=number, extended_offsets=extended)


def _rle_frame(data: bytes, header: _Header) -> bytes:
    """Return the first RLE frame, encapsulated for pydicom.

    Raises:
        UndecodableImage: It is longer than any encoder writes; decoding would need 64 times its size in memory.
    """
    from pydicom.encaps import encapsulate

    frame = _first_frame(data, header)
    size = header.number("Rows") * header.number("Columns") * header.number("SamplesPerPixel")
    if len(frame) > 2 * size * header.number("BitsAllocated") // 8 + 4096:
        raise UndecodableImage(Undecodable.DAMAGED, f"{len(frame)} bytes of RLE for {size} samples")
    return encapsulate([frame])


def _decode_frame(frame: bytes, header: _Header) -> NDArray[np.unsignedinteger]:
    """Decode a frame to ``[h, w]`` or ``[h, w, 3]`` with BitsStored bits, in the colour space of the file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = UID(header.syntax)
    for tag in _IMAGE_PIXEL_TAGS:
        if tag in header.dataset:
            bare[tag] = header.dataset[tag]
    bare.NumberOfFrames = 1
    bare.PixelData = frame
    bare["PixelData"].VR = "OB" if header.number("BitsAllocated") == 8 else "OW"
    bare["PixelData"].is_undefined_length = header.syntax == _RLE
    return pixel_array(bare, index=0, raw=True)


def _to_rgb(frame: NDArray[np.unsignedinteger], header: _Header, colour: str) -> NDArray[np.uint8]:
    """Convert a frame to uint8 ``[h, w, 3]``."""
    from pydicom.pixels.processing import apply_color_lut

    if colour == "PALETTE COLOR":
        looked_up = apply_color_lut(frame, header.dataset)
        return _to_8_bit(looked_up[..., :3], 8 * looked_up.dtype.itemsize)
    values = _to_8_bit(frame, header.number("BitsStored", default=header.number("BitsAllocated")))
    if values.ndim == 2:
        return _grey_to_rgb(values, colour)
    if colour == "RGB":
        return values
    height, width = values.shape[:2]
    return np.array(Image.frombytes("YCbCr", (width, height), values.tobytes()).convert("RGB"))


def _to_8_bit(values: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8]:
    """Scale from ``bits`` to 8 bits with rounding; 8-bit values are unchanged."""
    if bits == 8 and values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    largest = 2**bits - 1
    table = ((np.arange(largest + 1, dtype=np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)
    return np.asarray(table[np.minimum(values, largest)])


def _grey_to_rgb(grey: NDArray[np.uint8], colour: str) -> NDArray[np.uint8]:
    return np.repeat((255 - grey if colour == "MONOCHROME1" else grey)[:, :, None], 3, axis=2)


def _decode_jpeg_frame(frame: bytes, colour: str, rows: int, columns: int) -> NDArray[np.uint8]:
    """Decode a JPEG frame to uint8 ``[h, w, 3]``.

    Raises:
        UndecodableImage: Its size or samples differ from the header, or it is damaged.
    """
    with Image.open(io.BytesIO(frame + END_MARKER), formats=("JPEG",)) as image:
        expected = "L" if colour.startswith("MONOCHROME") else "RGB"
        if image.size != (columns, rows) or image.mode != expected:
            raise UndecodableImage(
                Undecodable.DAMAGED,
                f"a frame of {image.size} {image.mode}, the header states {(columns, rows)} {expected}",
            )
        check_stream(frame)
        if colour == "RGB" and not {"adobe_transform", "jfif"} & set(image.info):
            # The decoder would assume YCbCr for unmarked samples and convert them.
            image.draft("YCbCr", image.size)
        values = np.array(image)
    return _grey_to_rgb(values, colour) if values.ndim == 2 else values
