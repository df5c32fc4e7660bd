"""Whether a file says of itself that a model generated it, before anything in it is decoded.

Looked for are the text chunk of PNG files that `sample` writes, Synthetic Data of DICOM files, and IPTC's digital
source type ``trainedAlgorithmicMedia``, also as part of a composite, in XMP or in a C2PA manifest of any format. All
are searched as bytes, which costs milliseconds; only compressed texts of PNG files are opened, a bounded number of
bytes of each.

A mark is found, never its absence proved: whoever saves a picture again can lose it.

Source: IPTC NewsCodes, digital source type; DICOM PS3.3 C.12.1 (0008,001C); PNG third edition section 11.3.3.
"""

from __future__ import annotations

import re
import struct
import zlib

_SOURCE_TYPE = "rainedAlgorithmicMedia"
"""Ends ``trainedAlgorithmicMedia`` and ``compositeWithTrainedAlgorithmicMedia``; a drawing is ``algorithmicMedia``."""
_ENCODINGS = ("ascii", "utf-16-le", "utf-16-be")
_MARKS = (b"tEXtsynthetic\0yes", *(_SOURCE_TYPE.encode(encoding) for encoding in _ENCODINGS))
_HEX_MARK = _SOURCE_TYPE.encode().hex().encode()
_DICOM_MARKS = (b"\x08\0\x1c\0CS\x04\0YES", b"\x08\0\x1c\0\x04\0\0\0YES", b"\0\x08\0\x1cCS\0\x04YES")
"""In explicit and implicit little endian, and in big endian."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_COMPRESSED_TEXTS = (b"zTXt", b"iTXt")
_MOST_TEXTS, _TEXT_BYTES = 16, 2**18


def is_marked_synthetic(data: bytes) -> bool:
    """Whether a file, of any format, carries a mark that a model generated it or a part of it."""
    if any(mark in data for mark in _MARKS):
        return True
    if data[128:132] == b"DICM":
        return any(mark in data for mark in _DICOM_MARKS)
    return data.startswith(_PNG_START) and _in_compressed_text(data)


def _in_compressed_text(data: bytes) -> bool:
    """Whether a compressed text of a PNG file names the source type, as text or as digits of a raw profile."""
    at, left = len(_PNG_START), _MOST_TEXTS
    while at + 8 <= len(data) and left:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in _COMPRESSED_TEXTS:
            left -= 1
            text = _inflated(data[at + 8 : at + 8 + length], kind)
            if any(mark in text for mark in _MARKS) or _HEX_MARK in re.sub(rb"\s", b"", text).lower():
                return True
        at += 12 + length
    return False


def _inflated(chunk: bytes, kind: bytes) -> bytes:
    """Return the beginning of a compressed text; empty if it is not compressed or damaged."""
    _, _, rest = chunk.partition(b"\0")
    if kind == b"iTXt":
        if rest[:2] != b"\x01\0":
            return b""
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        rest = rest[1:]
    try:
        return zlib.decompressobj().decompress(rest, _TEXT_BYTES)
    except zlib.error:
        return b""
