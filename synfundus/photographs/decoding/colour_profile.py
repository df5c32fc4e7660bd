"""Convert pixels to sRGB by the colour profile of their file.

Pixels without a profile are taken as sRGB. A profile is applied with relative colorimetric intent and black point
compensation; one that changes no colour by more than two levels, such as sRGB's own, changes nothing.

Source: ICC.1:2022; PNG third edition 11.3.2.3; RFC 9649 2.7.1.4; DICOM PS3.3 C.11.15.
"""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

UNUSED_PROFILE = "colour_profile_not_applied"
"""Flag of a photograph whose profile is damaged, too large, or made for pixels of another kind."""

PROFILE_SEGMENT = b"ICC_PROFILE\0"

_SAME_LEVELS = 2
_MAX_BYTES = 4 * 2**20  # a printer's profile has up to 2 MiB, a camera's a few KiB


def jpeg_profile(segments: list[bytes]) -> bytes:
    """Return the profile in the segments of a JPEG that begin with `PROFILE_SEGMENT`; empty if one is missing."""
    parts = sorted(segment.removeprefix(PROFILE_SEGMENT) for segment in segments)
    whole = [tuple(part[:2]) for part in parts] == [(at, len(parts)) for at in range(1, len(parts) + 1)]
    return b"".join(part[2:] for part in parts) if whole else b""


def png_profile(chunk: bytes) -> bytes:
    """Return the profile in an iCCP chunk; empty if it is damaged or too large."""
    try:
        inflater = zlib.decompressobj()
        profile = inflater.decompress(chunk[chunk.index(b"\0") + 2 :], _MAX_BYTES)
    except (ValueError, zlib.error):
        return b""
    return profile if inflater.eof else b""


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert an image of mode L, RGB or CMYK to sRGB.

    Returns:
        The image, in mode RGB if it was converted, and the flags of the photograph.
    """
    transform = _transform(profile, image.mode) if profile and len(profile) <= _MAX_BYTES else None
    if transform is None and image.mode == "L":  # it may be a profile of colours
        return to_srgb(image.convert("RGB"), profile)
    if transform is None:
        return image, (UNUSED_PROFILE,)
    return (image if _changes_nothing(transform, image.mode) else transform.apply(image)), ()


@lru_cache(maxsize=4)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@lru_cache(maxsize=4)
def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves a grid of colours as they are; never of CMYK."""
    if mode not in {"L", "RGB"}:
        return False
    steps = np.linspace(0, 255, 9, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
    after = np.asarray(transform.apply(before), dtype=np.int16)
    return int(np.abs(after - np.asarray(before.convert("RGB"))).max()) <= _SAME_LEVELS
