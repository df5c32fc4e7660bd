"""PNGs are decoded by libspng, which is fast and trusting; what pillow would refuse or see otherwise must not pass."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pyspng
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_sets import encode_png

from synfundus.errors import CorruptShard
from synfundus.shards.members import decode_image

Pixels = NDArray[np.uint8]
PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*extra: bytes, rows: Callable[[int], bytes] = lambda y: b"\0" + PIXELS[y].tobytes()) -> bytes:
    height, width, _ = PIXELS.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(rows(y) for y in range(height))))
    return SIGNATURE + header + b"".join(extra) + data + chunk(b"IEND", b"")


def by_pillow(data: bytes) -> Pixels | None:
    """What pillow alone makes of it; None where it refuses."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError):
        return None


def by_us(data: bytes) -> Pixels | None:
    try:
        return decode_image(data, where="x", extension="png")
    except CorruptShard:
        return None


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 9, 3), (64, 33, 3)])
@pytest.mark.parametrize("smooth", [True, False])
def test_pixels_are_those_pillow_reads(shape: tuple[int, int, int], smooth: bool) -> None:
    """A smooth picture makes pillow's encoder use every filter."""
    noise = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    ramp = (np.indices(shape).sum(axis=0) * 3 + noise % 3).astype(np.uint8)
    pixels = ramp if smooth else noise
    assert np.array_equal(decode_image(encode_png(pixels), where="x"), pixels)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"tRNS", b"\0\1\0\2\0\3"),
        chunk(b"sBIT", b"\5\5\5"),
        chunk(b"PLTE", bytes(9)),
        chunk(b"tEXt", b"key\0text"),
    ],
    ids=lambda data: data[4:8].decode(),
)
def test_other_chunks_change_no_pixel(extra: bytes) -> None:
    assert np.array_equal(decode_image(png(extra), where="x"), PIXELS)


def test_libspng_alone_would_take_damaged_pixels_for_good() -> None:
    """Why the checksums are looked at here."""
    data = bytearray(png())
    data[data.index(b"IDAT") + 12] ^= 4
    assert not np.array_equal(pyspng.load(bytes(data)), PIXELS)
    assert by_us(bytes(data)) is None


def test_every_damaged_bit_and_every_cut_is_judged_as_by_pillow() -> None:
    whole = png(chunk(b"tEXt", b"key\0text"))
    damaged = [whole[:length] for length in range(len(whole))]
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            damaged.append(bytes(flipped))
    refused = 0
    for data in damaged:
        theirs, ours = by_pillow(data), by_us(data)
        assert (theirs is None) == (ours is None), data
        if theirs is None or ours is None:
            refused += 1
        else:
            assert np.array_equal(theirs, ours), data
    assert refused > len(damaged) // 2


def test_a_stream_that_is_wrong_under_right_checksums_is_refused() -> None:
    """Pillow leaves the rows black that are not there."""
    short = png(rows=lambda y: b"\0" + PIXELS[y].tobytes() if y < 3 else b"")
    with pytest.raises(CorruptShard, match=r"not a readable image: .*too short"):
        decode_image(short, where="x")
