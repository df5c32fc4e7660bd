"""Read a picture file's size and orientation from its bytes, and drop metadata before a decoder sees them.

Pillow parses metadata while it opens a file: texts are inflated, EXIF entries are copied one by one, and in a crafted
file this can cost far more than its length. So JPEG and PNG files are reduced to what decoding needs, and a TIFF
directory is checked before it is decoded. All loops are bounded.

Source: ITU-T T.81 annex B (JPEG markers), PNG third edition section 5, TIFF 6.0 section 2, RFC 9649 (WebP), CIPA
DC-008 (EXIF orientation).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from synfundus.photographs.decoding.colour_profile import PROFILE_SEGMENT, jpeg_profile, png_profile
from synfundus.photographs.undecodable import Undecodable, UndecodableImage, check_size

_MAX_PARTS = 2000  # JPEG header segments or PNG and WebP chunks, plus one per KiB of the file; usually 8
_MAX_SCANS = 100  # a progressive JPEG has about ten
_FULL_SIZE_SCANS = 20  # at the largest allowed size
_MAX_TAGS = 4096
_MAX_TAG_VALUES = 200_000  # values in a TIFF tag: a 16-bit colour map has 196,608
_SMALL_TILE_PIXELS = 2**22
_XMP_BYTES = 2**18

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_BYTE_TYPES = frozenset({1, 2, 6, 7})
_TIFF_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability: Pillow reads them after loading
_NEEDED_SEGMENTS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PPM_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PPM_HEADER = re.compile(rb"P([1-6])" + 2 * (_PPM_SPACE + rb"(\d{1,9})") + rb"(?:" + _PPM_SPACE + rb"(\d{1,5}))?\s")
_PPM_HEADER_BYTES = 2**12
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_TEXT = b"XML:com.adobe.xmp\0\0"  # keyword, uncompressed


@dataclass(frozen=True, slots=True)
class BarePicture:
    """A picture file without metadata.

    Attributes:
        data: The file for the decoder.
        orientation: EXIF orientation 1 to 8, not yet applied.
        profile: Colour profile of a JPEG or PNG, empty if it cannot be read; those of others are left in ``data``.
    """

    data: bytes
    orientation: int = 1
    profile: bytes | None = None


def bare_picture(data: bytes, file_format: str, *, max_pixels: int) -> BarePicture:
    """Check a file by its header and remove its metadata.

    Args:
        data: The file.
        file_format: ``JPEG``, ``PNG``, ``TIFF``, ``WEBP``, ``BMP`` or ``PPM``.
        max_pixels: Larger pictures are refused.

    Raises:
        UndecodableImage: Too many pixels or scans, or a PPM file that is not of 8-bit binary values.
        ValueError: The header cannot be read.
        struct.error: The header is truncated.
    """
    if file_format == "JPEG":
        return _bare_jpeg(data, max_pixels)
    if file_format == "PNG":
        return _bare_png(data, max_pixels)
    if file_format == "WEBP":
        return _check_webp(data, max_pixels)
    if file_format == "TIFF":
        _check_tiff(data, max_pixels)
    elif file_format == "PPM":
        _check_ppm(data, max_pixels)
    else:
        _check_bmp(data, max_pixels)
    return BarePicture(data)


def _bare_jpeg(data: bytes, max_pixels: int) -> BarePicture:
    """Keep what decoding needs, including JFIF and Adobe markers, which define the colour space."""
    kept = [b"\xff\xd8"]
    pixels, orientation, from_xmp, scan_at = 0, None, None, -1
    profile: list[bytes] = []
    for code, start, end in _jpeg_segments(data):
        if code == 0xDA:
            scan_at = start
            break
        payload_at = start + 4
        if code in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, payload_at + 1)
            check_size((width, height), max_pixels)
            pixels = max(pixels, width * height)
        if code == 0xE1 and orientation is None and data.startswith(b"Exif\0\0", payload_at):
            orientation = exif_orientation(data[payload_at + 6 : end])
        elif code == 0xE1 and data.startswith(_XMP_SEGMENT, payload_at):
            from_xmp = from_xmp or _xmp_orientation(data[payload_at:end])
        elif code == 0xE2 and data.startswith(PROFILE_SEGMENT, payload_at):
            profile.append(data[payload_at:end])
        if _is_needed(code, data[payload_at : payload_at + 5]):
            kept.append(data[start:end])
    if pixels == 0 or scan_at < 0:
        raise ValueError("no frame header before the first scan")
    _check_scans(data, scan_at, pixels, max_pixels)
    whole = b"".join([*kept, memoryview(data)[scan_at:]]) if sum(map(len, kept)) != scan_at else data
    return BarePicture(whole, orientation or from_xmp or 1, jpeg_profile(profile) if profile else None)


def _is_needed(code: int, payload_start: bytes) -> bool:
    """Whether decoding needs a JPEG segment: no comment, no segment of another application."""
    if code in _NEEDED_SEGMENTS:
        return payload_start.startswith(_NEEDED_SEGMENTS[code])
    return not 0xE1 <= code <= 0xEF and code != 0xFE


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker code, start, end) up to the first scan.

    Raises:
        ValueError: The file is truncated or has too many segments.
    """
    at = 2
    allowed = _MAX_PARTS + len(data) // 1024
    for _ in range(allowed):
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) - 1 and data[at + 1] == 0xFF:
            at += 1
        if at < 0 or at + 4 > len(data):
            raise ValueError("a segment longer than the file")
        code = data[at + 1]
        if code == 0 or code in _STANDALONE_MARKERS:
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if code == 0xD9 or end < at + 4:
            raise ValueError("a segment without content")
        if end > len(data):
            raise ValueError("a segment longer than the file")
        yield code, at, end
        at = end
    raise ValueError(f"more than {allowed} segments before the picture")


def _check_scans(data: bytes, scan_at: int, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG with more scans than any encoder writes: each costs a pass over all pixels.

    Raises:
        UndecodableImage: With reason ``too_many_scans``.
    """
    allowed = min(_MAX_SCANS, max(1, _FULL_SIZE_SCANS * max_pixels // pixels))
    if data.count(b"\xff\xda", scan_at) <= allowed:
        return
    at, scans = scan_at, 0
    while (match := _MARKER.search(data, at)) is not None and scans <= allowed:
        at, code = match.end(), data[match.start() + 1]
        if code == 0xD9:
            break
        scans += code == 0xDA
        at += max(int.from_bytes(data[at : at + 2]), 2)
    if scans > allowed:
        raise UndecodableImage(Undecodable.TOO_MANY_SCANS, f"more than {allowed} scans for {pixels} pixels")


def _bare_png(data: bytes, max_pixels: int) -> BarePicture:
    """Keep the chunks that decoding needs; of an animated file the default picture."""
    kept: list[tuple[int, int]] = []
    orientation, from_xmp, profile, at = None, None, None, 8
    for _ in range(_MAX_PARTS + len(data) // 1024):
        length, name = struct.unpack_from(">I4s", data, at)
        start, at = at, at + 12 + length
        if at > len(data):
            raise ValueError("a chunk longer than the file")
        if start == 8:
            if name != b"IHDR" or length != 13:
                raise ValueError("no IHDR chunk")
            check_size(struct.unpack_from(">II", data, 16), max_pixels)
        if name in _PIXEL_CHUNKS:
            if kept and kept[-1][1] == start:
                kept[-1] = (kept[-1][0], at)
            else:
                kept.append((start, at))
        elif name == b"iCCP":
            profile = png_profile(data[start + 8 : at - 4])
        elif name == b"eXIf":
            orientation = orientation or exif_orientation(data[start + 8 : at - 4])
        elif name == b"iTXt" and data.startswith(_XMP_TEXT, start + 8):
            from_xmp = from_xmp or _xmp_orientation(data[start + 8 : at - 4])
        if name == b"IEND":
            break
    else:
        raise ValueError("too many chunks for the length of the file")
    view = memoryview(data)
    whole = data if kept == [(8, len(data))] else b"".join([view[:8], *(view[a:b] for a, b in kept)])
    return BarePicture(whole, orientation or from_xmp or 1, profile)


def _check_webp(data: bytes, max_pixels: int) -> BarePicture:
    """Check the canvas, which a decoder allocates first, and read the orientation."""
    name = data[12:16]
    if name == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError("no picture chunk")
    check_size((width, height), max_pixels)
    orientation, from_xmp, at = None, None, 12
    for _ in range(_MAX_PARTS + len(data) // 1024 if name == b"VP8X" else 0):
        if at + 8 > len(data):
            break
        chunk, length = struct.unpack_from("<4sI", data, at)
        if chunk == b"EXIF":
            orientation = orientation or exif_orientation(data[at + 8 : at + 8 + length])
        elif chunk == b"XMP ":
            from_xmp = from_xmp or _xmp_orientation(data[at + 8 : at + 8 + min(length, _XMP_BYTES)])
        at += 8 + length + (length & 1)
    return BarePicture(data, orientation or from_xmp or 1)


def _check_bmp(data: bytes, max_pixels: int) -> None:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    check_size((abs(width), abs(height)), max_pixels)


def _check_ppm(data: bytes, max_pixels: int) -> None:
    """Check the size, and that the values need no decoder: Pillow reads text and other ranges number by number."""
    header = _PPM_HEADER.match(data[:_PPM_HEADER_BYTES])
    if header is None:
        raise ValueError("no header of a PPM or PGM file")
    kind, width, height, largest = (int(number) for number in header.groups(b"1"))
    check_size((width, height), max_pixels)
    if kind not in (5, 6) or largest != 255:
        raise UndecodableImage(
            Undecodable.UNSUPPORTED_MODE, f"P{kind} with values to {largest}; read are P5, P6 to 255"
        )


def _check_tiff(data: bytes, max_pixels: int) -> None:
    """Check the sizes that Pillow and libtiff would allocate: tag values, the picture, one tile.

    The values of a directory may overlap, so a small file can request gigabytes.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    tags, total = _tiff_directory(data, first, order, big=big)
    for pointer in _TIFF_DIRECTORIES:
        if pointer in tags:
            inner, size = _tiff_directory(data, tags[pointer], order, big=big)
            total += size
            if 0xA005 in inner:
                total += _tiff_directory(data, inner[0xA005], order, big=big)[1]
    if total > len(data):
        raise ValueError(f"tags of {total} bytes in a file of {len(data)}")
    width, height = tags.get(0x100, 0), tags.get(0x101, 0)
    check_size((width, height), max_pixels)
    tile = tags.get(0x142, 0) * tags.get(0x143, 0)
    if tile > max(4 * width * height, _SMALL_TILE_PIXELS):
        raise ValueError(f"tiles of {tile} pixels in a picture of {width} x {height}")


def _tiff_directory(data: bytes, at: int, order: str, *, big: bool) -> tuple[dict[int, int], int]:
    """Return the single-value tags of a directory, and the total bytes of all its values.

    Raises:
        ValueError: More tags, or more values in a tag, than any photograph has.
    """
    (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if number > _MAX_TAGS:
        raise ValueError(f"{number} tags")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    at += 8 if big else 2
    singles, total = {}, 0
    for _ in range(number):
        tag, kind, count, value = entry.unpack_from(data, at)
        at += entry.size
        if count > _MAX_TAG_VALUES and kind not in _TIFF_BYTE_TYPES:
            raise ValueError(f"{count} values in tag {tag}")
        total += count * _TIFF_SIZES.get(kind, 0)
        code = {3: "H", 4: "I", 13: "I", 16: "Q"}.get(kind)
        if count == 1 and code is not None and struct.calcsize(code) <= len(value):
            singles[tag] = struct.unpack_from(order + code, value)[0]
    return singles, total


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation 1 to 8 of EXIF data; None if it is missing or cannot be read.

    Only the first directory is read; no values are copied.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (number,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(min(number, _MAX_TAGS)):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, at + 2 + 12 * entry)
            if tag == 0x0112 and count == 1 and kind in (3, 4):
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, at + 10 + 12 * entry)
                return value if 1 <= value <= 8 else None
    except struct.error:
        pass
    return None


def _xmp_orientation(xmp: bytes) -> int | None:
    match = _XMP_ORIENTATION.search(xmp[:_XMP_BYTES])
    return None if match is None else int(match[1])
