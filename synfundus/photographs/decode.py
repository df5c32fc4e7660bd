"""Decode untrusted photographs, and encode the images of a set.

The format of a file must be in a short list, its size is checked in the header before any pixel is decoded, and any
fault becomes a named reason, never a crash or a grey image.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from synfundus.photographs.bare_picture import bare_picture
from synfundus.photographs.undecodable import DECODER_ERRORS, Undecodable, UndecodableImage

__all__ = [
    "FORMATS",
    "ImageFormat",
    "Undecodable",
    "UndecodableImage",
    "decode_photograph",
    "decode_picture",
    "encode_image",
]

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
"""Formats that are decoded; no other decoder of Pillow is ever called."""

ImageFormat = Literal["png", "webp"]

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "TIFF": rb"(II[*+]\0|MM\0[*+])",
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM",
    "GIF": rb"GIF8",
    "PDF": rb"%PDF",
    "Photoshop": rb"8BPS",
    "JPEG 2000": rb"(\0\0\0\x0cjP  |\xff\x4f\xff\x51)",
    "HEIF or AVIF": rb".{4}ftyp",
    "PostScript": rb"%!PS",
    "icon": rb"\0\0\x01\0",
    "ZIP": rb"PK\x03\x04",
}
"""Patterns of the first bytes, those of `FORMATS` and of files that are often taken for photographs."""

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
    """Decode a JPEG, PNG, TIFF, WebP, BMP or DICOM file to RGB, upright.

    CMYK, palette, grey and 16-bit images are converted (16 bit by scaling, not by clipping); transparency is
    composited on black; the EXIF orientation is applied; only the first frame is used. Metadata are removed before a
    decoder sees the file, so they cannot cost time or leak.

    Args:
        data: The file.
        max_pixels: Larger pictures are refused by their header, before decoding. Pillow's own limit (about 179 million
            pixels) also applies.

    Returns:
        uint8 ``[h, w, 3]``.

    Raises:
        UndecodableImage: With a reason from `Undecodable`.
    """
    if data[128:132] == b"DICM":
        from synfundus.photographs.dicom import decode_dicom  # its dependency is optional and slow to import

        return decode_dicom(data, max_pixels=max_pixels)
    return decode_picture(data, _sniff(data), max_pixels=max_pixels)


def decode_picture(data: bytes, file_format: str, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a file whose format, one of `FORMATS`, is known; see `decode_photograph`."""
    # Another library may have enabled it; truncated photographs are refused.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    # At debug level, Pillow logs the tags of the files it opens.
    logging.getLogger("PIL").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Pillow warns about odd metadata, and about sizes that are checked here.
        warnings.simplefilter("ignore")
        try:
            bare = bare_picture(data, file_format, max_pixels=max_pixels)
            with Image.open(io.BytesIO(bare.data), formats=(file_format,)) as image:
                image.load()
                method = _ORIENTATIONS.get(bare.orientation)
                return _to_rgb(image if method is None else image.transpose(method))
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
