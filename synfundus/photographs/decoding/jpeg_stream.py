"""Find damage in the coded pixels of a JPEG that decoders conceal.

A decoder fills what is missing with grey and goes on; Pillow drops libjpeg's warnings about it. So the stream is decoded
once more, at an eighth of the size, by a decoder whose warnings can be had, and what no warning tells is looked for: scans
that never came, runs of zero bytes that no encoder writes, coded data left over after the last block.

Source: ITU-T T.81 annex B (markers), F (sequential) and G (progressive mode).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from synfundus.photographs.undecodable import Undecodable, UndecodableImage

END_MARKER = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; others are left to the decoder alone
_PROGRESSIVE = 0xC2
_MAX_SEGMENTS = 2000
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
"""Beginnings of libjpeg's warnings that tell of damage; others tell of odd but harmless headers."""

_ZERO_RUN = 16  # bytes; by far the longest run in photographs is 5, where zeros are not a flat area
_MIN_STEPS = 16


@dataclass(frozen=True, slots=True)
class _Component:
    """A component of the frame: its sampling factors."""

    across: int
    down: int


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan: its components with the symbol that a code of zeros means in their tables, its band, its bytes.

    Attributes:
        zeros: By component: the DC and the AC symbol; None if unknown.
        first: First coefficient.
        last: Last coefficient.
        high: Bits known before; 0 in the first scan of a band.
        low: Bits still unknown.
        start: Offset of the coded data.
        end: Offset of the marker behind them.
    """

    zeros: dict[int, tuple[int | None, int | None]]
    first: int
    last: int
    high: int
    low: int
    start: int
    end: int


@dataclass(slots=True)
class _Stream:
    """Frame and scans of a file; ``end`` is the offset of its end marker, -1 without one."""

    frame: int = 0
    width: int = 0
    components: dict[int, _Component] | None = None
    scans: tuple[_Scan, ...] = ()
    end: int = -1


def check_stream(data: bytes) -> None:
    """Refuse a JPEG whose coded pixels are damaged; one that lacks its end marker alone is whole.

    Damage that leaves a valid stream of the right length is not found: single wrong bits, whole restart intervals in
    each other's place.

    Args:
        data: The file without metadata.

    Raises:
        UndecodableImage: ``damaged``, or ``truncated`` if the end marker is missing too.
    """
    stream = _read(data)
    whole = stream.end >= 0
    if not whole:
        data = data.rstrip(b"\xff") + END_MARKER
        stream = _read(data)
    damage = _damage(data, stream) if stream.frame in _HUFFMAN_FRAMES else ""
    if damage:
        reason = Undecodable.DAMAGED if whole else Undecodable.TRUNCATED
        raise UndecodableImage(reason, f"JPEG file: {damage}")


def _damage(data: bytes, stream: _Stream) -> str:
    """Return what is wrong with the coded pixels, or an empty string."""
    if stream.end < 0:
        return "a segment between its scans is longer than the file"
    if _is_incomplete(stream):
        return "scans of a part of its pixels are missing"
    if any(_has_strange_zeros(data, scan, progressive=stream.frame == _PROGRESSIVE) for scan in stream.scans):
        return "a part of its coded pixels is overwritten with zeros"
    warning, eighth = _decoder_warning(data[: stream.end + 2], stream)
    if warning:
        return warning
    if any(_has_lost_bits(data, scan, stream, eighth) for scan in stream.scans):
        return "a part of its coded pixels is overwritten with zeros"
    last = data[: stream.end].rstrip(b"\xff")[:-1]
    # a decoder reads ahead, and does not tell of the last bytes: the picture must not be whole without its last one
    if len(stream.scans) == 1 and eighth.size and not _decoder_warning(last + END_MARKER, stream)[0]:
        return "coded pixels are left over behind the last one"
    return ""


def _decoder_warning(data: bytes, stream: _Stream) -> tuple[str, NDArray[np.uint8]]:
    """Return the decoder's first warning of damage, if any, and the picture at an eighth of its size."""
    colours = "CMYK" if len(stream.components or {}) == 4 else "GRAY"
    size = {"min_height": 1, "min_width": 1, "min_factor": 8}
    try:
        return "", simplejpeg.decode_jpeg(data, colours, **size)
    except ValueError as error:
        return str(error) if str(error).startswith(_DAMAGE) else "", np.zeros((0, 0, 1), np.uint8)


def _read(data: bytes) -> _Stream:
    """Read frame, tables and scans, to the end marker."""
    stream, tables, at = _Stream(), dict[int, int | None](), 2
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(data, at)
        if match is None:
            break
        at, code = match.start(), data[match.start() + 1]
        if code == END_MARKER[1]:
            stream.end = at
            break
        length = int.from_bytes(data[at + 2 : at + 4])
        payload, at = data[at + 4 : at + 2 + length], at + 2 + max(length, 2)
        try:
            if code == 0xC4:
                tables |= _zero_symbols(payload)
            elif code in _HUFFMAN_FRAMES:
                stream.frame, stream.width = code, int.from_bytes(payload[3:5])
                sampling = (payload[6 + 3 * one : 8 + 3 * one] for one in range(payload[5]))
                stream.components = {one[0]: _Component(one[1] >> 4, one[1] & 15) for one in sampling}
            elif code == 0xDA:
                scan = _read_scan(data, payload, at, tables)
                stream.scans += (scan,)
                at = scan.end
        except (IndexError, struct.error):  # the decoder will name it
            continue
    return stream


def _zero_symbols(payload: bytes) -> dict[int, int | None]:
    """Return the symbol of the code of zeros alone, the first of the shortest, by class and number of table."""
    found: dict[int, int | None] = {}
    while len(payload) >= 17:
        number = sum(payload[1:17])
        found[payload[0]] = payload[17] if number else None
        payload = payload[17 + number :]
    return found


def _read_scan(data: bytes, payload: bytes, start: int, tables: dict[int, int | None]) -> _Scan:
    number = payload[0]
    zeros = {
        payload[1 + 2 * one]: (tables.get(payload[2 + 2 * one] >> 4), tables.get(0x10 | payload[2 + 2 * one] & 15))
        for one in range(number)
    }
    first, last, bits = struct.unpack_from("3B", payload, 1 + 2 * number)
    match = _MARKER.search(data, start)
    return _Scan(zeros, first, last, bits >> 4, bits & 15, start, len(data) if match is None else match.start())


def _is_incomplete(stream: _Stream) -> bool:
    """Whether bits of coefficients are in no scan: the file was cut between two scans, or lost one."""
    missing = {name: [16] * 64 for name in stream.components or {}}
    for scan in stream.scans:
        band = range(scan.first, scan.last + 1) if stream.frame == _PROGRESSIVE else range(64)
        for name in scan.zeros:
            for coefficient in band:
                missing.setdefault(name, [16] * 64)[coefficient] = scan.low if stream.frame == _PROGRESSIVE else 0
    return any(any(low) for low in missing.values())


def _has_strange_zeros(data: bytes, scan: _Scan, *, progressive: bool) -> bool:
    """Whether a long run of zero bytes means anything but a flat area: no change of brightness, no detail."""
    if data.find(bytes(_ZERO_RUN), scan.start, scan.end) < 0 or (progressive and scan.first == 0 < scan.high):
        return False
    symbols = [dc for dc, _ in scan.zeros.values() if scan.first == 0]
    symbols += [ac for _, ac in scan.zeros.values() if scan.first > 0 or not progressive]
    return any(symbols)


def _has_lost_bits(data: bytes, scan: _Scan, stream: _Stream, eighth: NDArray[np.uint8]) -> bool:
    """Whether a run of zeros in plain bits of brightness lies where brightness changes.

    A scan that refines DC coefficients has one bit a block and no codes: zeros are valid everywhere. In an untouched
    one each change of brightness in such a run has the chance of a coin.
    """
    components = list((stream.components or {}).values())
    if not (stream.frame == _PROGRESSIVE and scan.first == 0 < scan.high and len(scan.zeros) == len(components)):
        return False
    coded = data[scan.start : scan.end].replace(b"\xff\0", b"\xff")
    found = re.search(rb"\0{%d,}" % _ZERO_RUN, coded)
    if found is None or 2 * (coded.count(0) - len(found[0])) > len(coded) - len(found[0]):
        return False
    across, down = max(one.across for one in components), max(one.down for one in components)
    luma = components[0] if len(components) > 1 else _Component(1, 1)
    if len(components) > 1 and (luma.across, luma.down) != (across, down):
        return False
    bits = sum(one.across * one.down for one in components) if len(components) > 1 else 1
    units = np.arange(-(-8 * found.start() // bits), 8 * found.end() // bits)
    row, column = np.divmod(units, -(-stream.width // (8 * luma.across)))
    row, column = row * luma.down, column * luma.across
    inside = (row < eighth.shape[0]) & (column < eighth.shape[1])
    levels = eighth[row[inside], column[inside], 0].tolist()
    return sum(a != b for a, b in pairwise(levels)) >= _MIN_STEPS
