"""Find damage in the coded pixels of a JPEG that decoders conceal.

A decoder fills what is missing with grey and continues; Pillow drops the warnings of libjpeg about it. So the stream is
decoded once more, at an eighth of the size, by a decoder whose warnings can be had, and what no warning tells is looked
for: scans that never came, runs of zero bytes that no encoder writes, coded data left over behind the last block.

Source: ITU-T T.81 annex B (markers), F (sequential) and G (progressive mode).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from synfundus.photographs.undecodable import Undecodable, UndecodableImage

END_MARKER = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; others are left to the decoder alone
_MAX_SEGMENTS = 2000
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
"""Beginnings of libjpeg's warnings that tell of damage; others tell of odd but harmless headers."""

_ZEROS = "a part of its coded pixels is overwritten with zeros"
_ZERO_RUN = 16  # bytes; the longest in photographs is 5, but for flat areas
_MIN_STEPS = 16


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan: of its components, what a code of zeros means in their tables; its band, its bits, its bytes.

    Attributes:
        zeros: DC and AC symbol by component; None if unknown.
        band: First and last coefficient.
        high: Bits known before; 0 in the first scan of a band.
        low: Bits still unknown.
        start: Offset of the coded data.
        end: Offset of the marker behind them.
    """

    zeros: dict[int, tuple[int | None, int | None]]
    band: tuple[int, int]
    high: int
    low: int
    start: int
    end: int

    @property
    def is_plain(self) -> bool:
        """Whether a progressive scan has one bit a block, without codes: it refines DC coefficients."""
        return self.band[0] == 0 < self.high


@dataclass(slots=True)
class _Stream:
    """Frame and scans; ``sampling`` is across and down by component, ``end`` the offset of the end marker or -1."""

    progressive: bool = False
    width: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    scans: list[_Scan] = field(default_factory=list)
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
    damage = _damage(data, stream) if stream.sampling else ""
    if damage:
        reason = Undecodable.DAMAGED if whole else Undecodable.TRUNCATED
        raise UndecodableImage(reason, f"JPEG file: {damage}")


def _damage(data: bytes, stream: _Stream) -> str:
    """Return what is wrong with the coded pixels, or an empty string."""
    if stream.end < 0:
        return "a segment between its scans is longer than the file"
    if _is_incomplete(stream):
        return "scans of a part of its pixels are missing"
    if any(_has_strange_zeros(data, scan, progressive=stream.progressive) for scan in stream.scans):
        return _ZEROS
    warning, eighth = _decoder_warning(data[: stream.end + 2], stream)
    if warning or not eighth.size:
        return warning
    if any(_has_lost_bits(data, scan, stream, eighth) for scan in stream.scans):
        return _ZEROS
    # a decoder reads ahead, and does not tell of the last bytes: the picture must not be whole without its last one
    last = data[: stream.end].rstrip(b"\xff")[:-1]
    if len(stream.scans) == 1 and not _decoder_warning(last + END_MARKER, stream)[0]:
        return "coded pixels are left over behind the last one"
    return ""


def _decoder_warning(data: bytes, stream: _Stream) -> tuple[str, NDArray[np.uint8]]:
    """Return the decoder's first warning of damage, if any, and the picture at an eighth of its size."""
    colours = "CMYK" if len(stream.sampling) == 4 else "GRAY"
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
                stream.progressive, stream.width = code == 0xC2, int.from_bytes(payload[3:5])
                stream.sampling = {
                    payload[at]: (payload[at + 1] >> 4, payload[at + 1] & 15) for at in range(6, 6 + 3 * payload[5], 3)
                }
            elif code == 0xDA:
                stream.scans.append(_read_scan(data, payload, at, tables))
                at = stream.scans[-1].end
        except (IndexError, struct.error):  # the decoder will name it
            continue
    return stream


def _zero_symbols(payload: bytes) -> dict[int, int | None]:
    """Return the symbol of the code of zeros alone, the first of the shortest, by class and number of table.

    The end of a block, 0, counts as 1 in the table of an encoder that writes runs of them as one: it repeats none.
    """
    found: dict[int, int | None] = {}
    while len(payload) >= 17:
        number = sum(payload[1:17])
        symbols = payload[17 : 17 + number]
        has_runs = any(symbol & 15 == 0 and 0 < symbol < 0xF0 for symbol in symbols)
        found[payload[0]] = (symbols[0] or int(has_runs)) if symbols else None
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
    return _Scan(zeros, (first, last), bits >> 4, bits & 15, start, len(data) if match is None else match.start())


def _is_incomplete(stream: _Stream) -> bool:
    """Whether bits of coefficients are in no scan: the file was cut between two scans, or lost one."""
    missing = {(name, at): 16 for name in stream.sampling for at in range(64)}
    for scan in stream.scans:
        first, last = scan.band if stream.progressive else (0, 63)
        missing |= {(name, at): stream.progressive * scan.low for name in scan.zeros for at in range(first, last + 1)}
    return any(missing.values())


def _has_strange_zeros(data: bytes, scan: _Scan, *, progressive: bool) -> bool:
    """Whether a long run of zero bytes means anything but a flat area: no change of brightness, no detail."""
    if data.find(bytes(_ZERO_RUN), scan.start, scan.end) < 0 or (progressive and scan.is_plain):
        return False
    symbols = [dc for dc, _ in scan.zeros.values() if scan.band[0] == 0]
    symbols += [ac for _, ac in scan.zeros.values() if scan.band[0] > 0 or not progressive]
    return any(symbols)


def _has_lost_bits(data: bytes, scan: _Scan, stream: _Stream, eighth: NDArray[np.uint8]) -> bool:
    """Whether a run of zeros in plain bits, where they are valid everywhere, lies where brightness changes.

    In an untouched file each change in such a run has the chance of a coin.
    """
    if not (stream.progressive and scan.is_plain and len(scan.zeros) == len(stream.sampling)):
        return False
    coded = data[scan.start : scan.end].replace(b"\xff\0", b"\xff")
    found = re.search(rb"\0{%d,}" % _ZERO_RUN, coded)
    if found is None or 2 * (coded.count(0) - len(found[0])) > len(coded) - len(found[0]):
        return False
    sampling = list(stream.sampling.values()) if len(stream.sampling) > 1 else [(1, 1)]
    across, down = sampling[0]
    if sampling[0] != max(sampling):
        return False
    bits = sum(across * down for across, down in sampling)
    row, column = np.divmod(
        np.arange(-(-8 * found.start() // bits), 8 * found.end() // bits), -(-stream.width // (8 * across))
    )
    inside = (row * down < eighth.shape[0]) & (column * across < eighth.shape[1])
    levels: list[int] = eighth[row[inside] * down, column[inside] * across, 0].tolist()
    return sum(a != b for a, b in pairwise(levels)) >= _MIN_STEPS
