"""Reasons why a file cannot be decoded as a photograph."""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum

from synfundus.errors import DataError

DECODER_ERRORS = (
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
"""Errors of decoders on damaged bytes."""


class Undecodable(StrEnum):
    """Why a file was not decoded; the values are the reasons in ``rejects.jsonl``."""

    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    GIT_LFS_POINTER = "git_lfs_pointer"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_MODE = "unsupported_mode"
    UNSUPPORTED_DICOM_CLASS = "unsupported_dicom_class"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    DICOM_SUPPORT_MISSING = "dicom_support_missing"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_SCANS = "too_many_scans"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"


class UndecodableImage(DataError):
    """A file that cannot be decoded as a photograph.

    Attributes:
        reason: Reason of the rejection.
    """

    title = "Image file"

    def __init__(self, reason: Undecodable, message: str) -> None:
        super().__init__(message)
        self.args = (reason, message)  # arguments for unpickling
        self.reason = reason


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse a picture by its size (width, height).

    Raises:
        UndecodableImage: With reason ``too_many_pixels``.
    """
    width, height = size
    if width * height > max_pixels:
        raise UndecodableImage(
            Undecodable.TOO_MANY_PIXELS, f"{width} x {height} px is more than the allowed {max_pixels} pixels"
        )
