"""Decoders of shard members, by extension, from a fixed table; none of them can run code.

A member is untrusted even if its checksum is right: the writer of a set also writes the checksums. The size in a header
is compared with the actual bytes before memory is allocated. Any fault of a member is a `CorruptShard`.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyspng
from numpy.typing import NDArray
from PIL import Image

from synfundus.errors import ConfigError, CorruptShard, DataError
from synfundus.labels.schema import LabelSchema
from synfundus.storage.shard_index import MAX_IMAGE_BYTES, MAX_JSON_BYTES, MAX_NPY_BYTES

Bytes = bytes | memoryview
"""Content of a member."""

META = "json"
"""The member that holds a sample's document."""

MAX_IMAGE_PIXELS = 4096 * 4096
"""The largest image of a prepared set."""
MAX_JSON_DEPTH = 16
"""The JSON of a sample has two levels."""
MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten scans; each costs a pass over the whole image."""

IMAGE_FORMATS: Mapping[str, str] = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""Extension -> the only format pillow may decode."""

_PNG_RGB8 = (8, 2)
_PNG_DEPTH_AND_COLOUR = slice(24, 26)
_JPEG_SCAN = b"\xff\xda"
_NPY_MAGIC = b"\x93NUMPY"
_MAX_NPY_HEADER_BYTES = 1024
_NPY_HEADER = re.compile(
    r"\{'descr': '(?P<descr>\|[biu]1|<[iu][248]|<f[248])', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>|\d{1,12},|\d{1,12}(?:, \d{1,12}){1,7}),?\), ?\} *\n"
)
"""The header numpy writes for arrays of little-endian numbers; no objects, fields or strings."""

# pillow warns at half the limit of the error; both mean more pixels than any real image has
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def _check_png(data: Bytes) -> str:
    """Return why a PNG is refused, or an empty string: pillow would silently truncate 16 bits to 8."""
    found = tuple(bytes(data[_PNG_DEPTH_AND_COLOUR]))
    return "" if found == _PNG_RGB8 else "it is not an 8-bit RGB image"


def _check_jpeg(data: Bytes) -> str:
    """Return why a JPEG is refused, or an empty string."""
    scans = bytes(data).count(_JPEG_SCAN)
    return "" if scans <= MAX_JPEG_SCANS else f"it has {scans} scans, more than {MAX_JPEG_SCANS}"


_HEADER_CHECKS: Mapping[str, Callable[[Bytes], str]] = {"PNG": _check_png, "JPEG": _check_jpeg, "MPO": _check_jpeg}


def _decode_pixels(data: Bytes, formats: tuple[str, ...]) -> NDArray[np.uint8]:
    """Decode an image whose header is within the limits.

    Raises:
        ValueError: The header is not that of a still RGB image of an allowed size.
    """
    with Image.open(io.BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(f"its header claims {width} x {height} pixels")
        check = _HEADER_CHECKS.get(image.format or "")
        if check is not None and (problem := check(data)):
            raise ValueError(problem)
        if image.mode != "RGB":
            raise ValueError(f"its mode is {image.mode}, images of a set are RGB")
        if getattr(image, "n_frames", 1) != 1:
            raise ValueError("it has more than one frame")
        if image.format == "PNG" and checksums_hold(data):
            return np.asarray(pyspng.load(bytes(data)), dtype=np.uint8)  # in less than half of pillow's time
        return np.asarray(image, dtype=np.uint8)


def checksums_hold(data: Bytes) -> bool:
    """Whether all chunks of a PNG, to its end, have the checksums they should; libspng does not look at them."""
    start, kind = 8, b""
    while start + 12 <= len(data) and kind != b"IEND":
        end = start + 8 + int.from_bytes(data[start : start + 4])
        kind = bytes(data[start + 4 : start + 8])
        if zlib.crc32(data[start + 4 : end]).to_bytes(4) != bytes(data[end : end + 4]):
            return False
        start = end + 4
    return kind == b"IEND"


def decode_image(data: Bytes, *, where: str, extension: str | None = None) -> NDArray[np.uint8]:
    """Decode an 8-bit RGB image of a shard to uint8 ``[h, w, 3]``.

    Args:
        data: The member.
        where: Name of the member, for messages.
        extension: Its extension; pillow uses only the decoder of that format. None allows all of `IMAGE_FORMATS`.

    Raises:
        CorruptShard: Not an image of the format, not 8-bit RGB, or beyond a limit.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise CorruptShard(f"not a readable image: {len(data)} bytes, more than {MAX_IMAGE_BYTES}", where=where)
    formats = tuple(dict.fromkeys(IMAGE_FORMATS.values())) if extension is None else (IMAGE_FORMATS[extension],)
    try:
        return _decode_pixels(data, formats)
    except (
        *(OSError, ValueError, SyntaxError, EOFError, MemoryError, KeyError, IndexError, TypeError, RuntimeError),
        *(OverflowError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise CorruptShard(f"not a readable image: {str(error) or type(error).__name__}", where=where) from error


@lru_cache(maxsize=256)
def _parse_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return (dtype, shape, bytes of the elements) of an npy header. Cached.

    Raises:
        ValueError: Not the header of an array of numbers in C order.
    """
    match = _NPY_HEADER.fullmatch(header.decode("latin-1"))
    if match is None:
        raise ValueError("its header is not that of an array of numbers")
    if match["fortran"] == "True":
        raise ValueError("it is in Fortran order")
    shape = tuple(int(part) for part in match["shape"].replace(",", " ").split())
    dtype = np.dtype(match["descr"])
    return dtype, shape, math.prod(shape) * dtype.itemsize


def _view_npy(data: Bytes) -> NDArray[Any]:
    if len(data) > MAX_NPY_BYTES:
        raise ValueError(f"{len(data)} bytes, more than {MAX_NPY_BYTES}")
    if bytes(data[:6]) != _NPY_MAGIC or len(data) < 12:
        raise ValueError("it does not start like an npy file")
    version = data[6], data[7]
    if version == (1, 0):
        start = 10
        first = start + int.from_bytes(data[8:10], "little")
    elif version in ((2, 0), (3, 0)):
        start = 12
        first = start + int.from_bytes(data[8:12], "little")
    else:
        raise ValueError(f"npy version {version[0]}.{version[1]}")
    if first - start > _MAX_NPY_HEADER_BYTES:
        raise ValueError(f"its header claims {first - start} bytes")
    dtype, shape, num_bytes = _parse_npy_header(bytes(data[start:first]))
    if num_bytes != len(data) - first:
        raise ValueError(f"an array {shape} of {dtype} needs {num_bytes} bytes, it has {len(data) - first}")
    if num_bytes == 0:
        return np.zeros(shape, dtype)
    view: NDArray[Any] = np.frombuffer(data, dtype, offset=first).reshape(shape)
    view.flags.writeable = False
    return view


def decode_npy(data: Bytes, *, where: str) -> NDArray[Any]:
    """Return a read-only view of the array of a member; copies nothing and runs no code.

    Raises:
        CorruptShard: Not an array of numbers in C order, or header and length disagree.
    """
    try:
        return _view_npy(data)
    except ValueError as error:
        raise CorruptShard(f"not a readable array: {error}", where=where) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is not finite")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _check_depth(value: object) -> None:
    """Refuse a document that is nested too deep; called only if it has enough brackets."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        below: list[object] = []
        for item in level:
            below.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")


def decode_json(data: Bytes, *, where: str) -> dict[str, Any]:
    """Decode a sample's JSON document.

    Raises:
        CorruptShard: Not a JSON object in UTF-8, a duplicate key, a number that is not finite, or beyond a limit.
    """
    if len(data) > MAX_JSON_BYTES:
        raise CorruptShard(f"not valid JSON: {len(data)} bytes, more than {MAX_JSON_BYTES}", where=where)
    try:
        text = str(data, "utf-8")
        document = _JSON.decode(text)
        if text.count("{") + text.count("[") > MAX_JSON_DEPTH:
            _check_depth(document)
    except (ValueError, RecursionError) as error:
        problem = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CorruptShard(f"not valid JSON: {problem}", where=where) from error
    if not isinstance(document, dict):
        raise CorruptShard("a sample's JSON must be an object", where=where)
    return document


def label_states(document: Mapping[str, Any], schema: LabelSchema, *, where: str) -> NDArray[np.int64]:
    """Return the label states ``[k]`` of a sample's JSON document.

    Raises:
        CorruptShard: No labels, or labels the schema does not have.
    """
    labels = document.get("labels")
    if not isinstance(labels, dict):
        raise CorruptShard("a sample's JSON lacks its labels", where=where)
    if not all(value is None or type(value) is int for value in labels.values()):
        raise CorruptShard("labels do not fit the schema: a value that is neither a whole number nor null", where=where)
    try:
        return np.asarray(schema.encode(labels), dtype=np.int64)
    except (ConfigError, DataError, TypeError) as error:
        raise CorruptShard(f"labels do not fit the schema: {error}", where=where) from error


def check_kind(extension: str, *, where: str) -> None:
    """Refuse a member whose extension (its last component) is not that of an image, array or JSON document.

    Raises:
        CorruptShard: It has another extension.
    """
    if extension.rpartition(".")[2] not in (*IMAGE_FORMATS, "npy", "json"):
        raise CorruptShard(f"a set must not contain members of kind .{extension}", where=where)
