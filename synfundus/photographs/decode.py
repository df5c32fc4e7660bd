"""Decode untrusted photographs, and encode the images of a set.

The format of a file must be in a short list, its size is checked in the header before any pixel is decoded, and any
fault becomes a named reason, never a crash or a grey image: a JPEG's stream is checked for damage that its decoder
conceals, and so are the strips of a compressed TIFF.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from synfundus.photographs.bare_picture import bare_picture
from synfundus.photographs.decoding.colour_profile import to_srgb
from synfundus.photographs.decoding.jpeg_stream import END_MARKER, check_stream
from synfundus.photographs.decoding.tiff_strips import check_strips
from synfundus.photographs.undecodable import DECODER_ERRORS, Undecodable, UndecodableImage

__all__ = [
    "FORMATS",
    "ImageFormat",
    "Undecodable",
    "UndecodableImage",
    "decode_flagged",
    "decode_photograph",
    "decode_picture",
    "encode_image",
]

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")
"""Formats that are decoded; no other decoder of Pillow is ever called."""

ImageFormat = Literal["png", "webp"]

_LFS_POINTER = "a Git LFS pointer"
_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "TIFF": rb"(II[*+]\0|MM\0[*+])",
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM",
    "PPM": rb"P[1-6][\s#]",
    "GIF": rb"GIF8",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "JPEG 2000": rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)",
    "HEIF or AVIF": rb".{4}ftyp",
    "PostScript": rb"%!PS",
    "icon": rb"\0\0\x01\0",
    "ZIP": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    _LFS_POINTER: rb"version https://git-lfs\.github\.com/spec/",
}
"""Patterns of the first bytes, those of `FORMATS` and of files that are often taken for photographs."""

_PLANES = 284  # TIFF tag; 2 for separate planes
_FIRST_OF_16_BIT = 64  # high byte of the first value that 14 bits do not hold

_OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": f"RGB;16{'BL'[sys.byteorder == 'big']}"}
"""Pillow reads the high byte of 16-bit colours; in the other byte order it reads the low byte."""

_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_photograph(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file as `decode_flagged` does, without the flags."""
    return decode_flagged(data, max_pixels=max_pixels)[0]


def decode_flagged(data: bytes, *, max_pixels: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode a JPEG, PNG, TIFF, WebP, BMP, PPM, PGM or DICOM file to RGB, upright, in sRGB.

    CMYK, palette, grey and 16-bit images are converted; 16 bits by scaling, not by clipping, and if no value reaches a
    quarter of their range, as of a camera's 10, 12 or 14 bits; transparency is composited on black; the colour profile
    and the EXIF orientation are applied; only the first frame is used. Other metadata are removed before a decoder
    sees the file, so they cannot cost time or leak.

    Args:
        data: The file.
        max_pixels: Larger pictures are refused by their header, before decoding. Pillow's own limit (about 179 million
            pixels) also applies.

    Returns:
        uint8 ``[h, w, 3]``, and reasons for a person to check it: ``values_of_12_bit`` (8, 10, 14) and
        `colour_profile.UNUSED_PROFILE`.

    Raises:
        UndecodableImage: With a reason from `Undecodable`.
    """
    if data[128:132] == b"DICM":
        from synfundus.photographs.dicom import decode_dicom  # its dependency is optional and slow to import

        return decode_dicom(data, max_pixels=max_pixels)
    return decode_picture(data, _sniff(data), max_pixels=max_pixels)


def decode_picture(data: bytes, file_format: str, *, max_pixels: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode a file whose format, one of `FORMATS`, is known; see `decode_flagged`."""
    # Another library may have enabled it; truncated photographs are refused.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # At debug level, Pillow logs the tags of the files it opens.
    logging.getLogger("PIL").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Pillow warns about odd metadata, and about sizes that are checked here.
        warnings.simplefilter("ignore")
        try:
            bare = bare_picture(data, file_format, max_pixels=max_pixels)
            picture = bare.data + END_MARKER if file_format == "JPEG" else bare.data  # it may lack it
            with Image.open(io.BytesIO(picture), formats=(file_format,)) as image:
                if file_format == "JPEG":
                    check_stream(bare.data)
                elif file_format == "TIFF":
                    check_strips(picture, image)
                codes = _codes(image)
                image.load()
                base, flags = _narrow(image, picture, codes)
                if bare.profile is not None or "icc_profile" in image.info:
                    base, more = to_srgb(base, bare.profile or image.info.get("icc_profile"))
                    flags += more
            method = _ORIENTATIONS.get(bare.orientation)
            turned = base if method is None else base.transpose(method)
            return np.array(turned.convert("RGB"), dtype=np.uint8), flags
        except Image.DecompressionBombError as error:
            raise UndecodableImage(Undecodable.TOO_MANY_PIXELS, str(error)) from error
        except UnidentifiedImageError as error:
            reason = Undecodable.TRUNCATED if _is_truncated(data, file_format) else Undecodable.DAMAGED
            raise UndecodableImage(reason, f"the header of this {file_format} file cannot be read") from error
        except DECODER_ERRORS as error:
            truncated = "truncat" in str(error).lower() or _is_truncated(data, file_format)
            reason = Undecodable.TRUNCATED if truncated else Undecodable.DAMAGED
            raise UndecodableImage(reason, f"{file_format} file: {error}") from error


def _sniff(data: bytes) -> str:
    """Return the format by its first bytes.

    Raises:
        UndecodableImage: Empty, an unsupported format, or not a picture.
    """
    if not data:
        raise UndecodableImage(Undecodable.EMPTY_FILE, "the file is empty")
    name = next((name for name, pattern in _SIGNATURES.items() if re.match(pattern, data, re.DOTALL)), None)
    if name is None:
        raise UndecodableImage(Undecodable.NOT_AN_IMAGE, "the file does not start like a picture")
    if name == _LFS_POINTER:
        raise UndecodableImage(Undecodable.GIT_LFS_POINTER, "the photograph itself is not here: run `git lfs pull`")
    if name not in FORMATS:
        raise UndecodableImage(Undecodable.UNSUPPORTED_FORMAT, f"{name} is not one of {', '.join(FORMATS)}, DICOM")
    return name


def _is_truncated(data: bytes, file_format: str) -> bool:
    """Whether the end of the file is missing."""
    if file_format == "JPEG":
        return b"\xff\xd9" not in data[-1024:]
    if file_format == "PNG":
        return b"IEND" not in data[-1024:]
    if file_format == "WEBP":
        return len(data) < 12 or len(data) < int.from_bytes(data[4:8], "little") + 8
    if file_format == "BMP":
        return len(data) < 6 or len(data) < int.from_bytes(data[2:6], "little")
    return len(data) < 8


def _codes(image: Image.Image) -> str:
    """Return Pillow's name of the layout of a file's pixels, such as ``RGB;16B``; empty if it has none."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _narrow(image: Image.Image, data: bytes, codes: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert any supported mode to L, RGB or CMYK of 8 bits; transparency is composited on black."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _scale(np.asarray(image))
    if mode not in {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}:
        raise UndecodableImage(Undecodable.UNSUPPORTED_MODE, f"pixels of mode {mode!r} have no defined range")
    dark = ";16" in codes and max(high for _, high in np.atleast_2d(image.getextrema())[:3]) < _FIRST_OF_16_BIT
    if dark and (codes not in _OTHER_BYTE or getattr(image, "tag_v2", {}).get(_PLANES) == 2):
        raise UndecodableImage(Undecodable.UNSUPPORTED_MODE, f"pixels as {codes!r} fill less than 14 of 16 bits")
    if dark:
        high = np.asarray(image).astype(np.uint16)
        with Image.open(io.BytesIO(data), formats=(str(image.format),)) as again:
            assert isinstance(again, ImageFile.ImageFile)
            other = _OTHER_BYTE[codes]
            again.tile = [
                tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
                for tile in again.tile
            ]
            return _scale(high << 8 | np.asarray(again))
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        return Image.fromarray(((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)), ()
    return (image if mode in {"L", "CMYK"} else image.convert("RGB")), ()


def _scale(wide: NDArray[np.uint16]) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale 16-bit values to 8 bits, by the bits that they fill: cameras write 10, 12 and 14 bits unshifted."""
    largest = int(wide.max())
    bits = next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    top = 2**bits - 1
    table = ((np.arange(top + 1, dtype=np.uint32) * 255 + (top + 1) // 2) // top).astype(np.uint8)
    return Image.fromarray(table[wide]), () if bits == 16 else (f"values_of_{bits}_bit",)


def encode_image(pixels: NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """Encode uint8 ``[h, w, 3]`` without loss and without metadata as PNG or WebP; the same pixels, the same bytes."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    if image_format == "png":
        # runs alone: on the filtered rows of a photograph a search for longer matches costs four times the time and
        # finds nothing (1,200 px phantoms at 512 px: 21 ms and 221 KB, without 83 ms and 228 KB)
        image.save(stream, format="PNG", compress_level=6, compress_type=zlib.Z_RLE)
    else:
        image.save(stream, format="WEBP", lossless=True, quality=50, method=3, exact=True)
    return stream.getvalue()
