"""Decode photographs from unknown hands, and encode the images of a set.

A file is untrusted: its format is one of a short list, its size is read from the header before a single
pixel is decoded, and whatever is wrong with it ends as a named reason, never as a crash or a grey image.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from synfundus.errors import DataError

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
"""Formats that are decoded; every other decoder of Pillow stays out of reach."""

ImageFormat = Literal["png", "webp"]

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_FOREIGN_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "GIF"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftyp", "HEIF or AVIF"),
    (128, b"DICM", "DICOM"),
    (0, b"%!PS", "PostScript"),
    (0, b"\0\0\x01\0", "icon"),
    (0, b"PK\x03\x04", "ZIP"),
)
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged bytes."""

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(StrEnum):
    """Why a file was not decoded; the values are the reasons in ``rejects.jsonl``."""

    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_MODE = "unsupported_mode"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"


class UndecodableImage(DataError):
    """A file that is not a photograph this program can decode.

    Attributes:
        reason: The name of the rejection.
    """

    title = "Image file"

    def __init__(self, reason: Undecodable, message: str) -> None:
        super().__init__(message)
        self.args = (reason, message)  # what pickling calls the class with
        self.reason = reason


def decode_photograph(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, TIFF, WebP or BMP file to RGB, upright.

    CMYK, palette, grey and 16-bit images are converted (16 bit by scaling, not by clipping); transparency is
    composited on black; the EXIF orientation is applied; of several frames the first counts.

    Args:
        data: The file.
        max_pixels: Larger pictures are refused by their header, before anything is decoded. Pillow's own
            guard (about 179 million pixels) holds besides.

    Returns:
        uint8 ``[h, w, 3]``.

    Raises:
        UndecodableImage: With a reason from `Undecodable`.
    """
    known = _sniff(data)
    with warnings.catch_warnings():
        # Pillow warns about odd metadata and about sizes that are judged here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, max_pixels)
                image.load()
                return _to_rgb(_upright(image))
        except Image.DecompressionBombError as error:
            raise UndecodableImage(Undecodable.TOO_MANY_PIXELS, str(error)) from error
        except UnidentifiedImageError as error:
            reason = Undecodable.TRUNCATED if _is_cut(data, known) else Undecodable.DAMAGED
            raise UndecodableImage(reason, f"the header of this {known} file cannot be read") from error
        except _DECODER_ERRORS as error:
            cut = "truncat" in str(error).lower() or _is_cut(data, known)
            reason = Undecodable.TRUNCATED if cut else Undecodable.DAMAGED
            raise UndecodableImage(reason, f"{known} file: {error}") from error


def _sniff(data: bytes) -> str:
    """Return the format by its first bytes.

    Raises:
        UndecodableImage: Empty, a format that is not supported, or no picture at all.
    """
    if not data:
        raise UndecodableImage(Undecodable.EMPTY_FILE, "the file is empty")
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for offset, signature, name in _FOREIGN_SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            raise UndecodableImage(Undecodable.UNSUPPORTED_FORMAT, f"{name} is not one of {', '.join(FORMATS)}")
    raise UndecodableImage(Undecodable.NOT_AN_IMAGE, "the file does not begin like any picture")


def _is_cut(data: bytes, known: str) -> bool:
    """Whether the end of the file is missing."""
    if known == "JPEG":
        return b"\xff\xd9" not in data[-1024:]
    if known == "PNG":
        return b"IEND" not in data[-1024:]
    if known == "WEBP":
        return len(data) < 12 or len(data) < int.from_bytes(data[4:8], "little") + 8
    if known == "BMP":
        return len(data) < 6 or len(data) < int.from_bytes(data[2:6], "little")
    return len(data) < 8


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UndecodableImage(
            Undecodable.TOO_MANY_PIXELS, f"{width} x {height} px is more than the allowed {max_pixels} pixels"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; metadata that cannot be read has none."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_ERRORS:
        orientation = 1
    method = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert any supported mode to uint8 ``[h, w, 3]``."""
    mode = image.mode
    if mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((wide + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode not in {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}:
        raise UndecodableImage(Undecodable.UNSUPPORTED_MODE, f"pixels of mode {mode!r} have no defined range")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 ``[h, w, 3]`` as PNG without any metadata; the same pixels give the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def encode_image(pixels: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """Encode uint8 ``[h, w, 3]`` without loss and without metadata as PNG or WebP."""
    if image_format == "png":
        return encode_png(pixels)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="WEBP", lossless=True, quality=50, method=3, exact=True)
    return stream.getvalue()
