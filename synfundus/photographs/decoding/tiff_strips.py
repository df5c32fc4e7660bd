"""Check the compressed strips or tiles of a TIFF, whose decoder passes over damage in them.

Source: TIFF 6.0 section 9 (PackBits) and 22 (JPEG), TIFF Technical Note 2 (JPEG tables), Adobe Photoshop TIFF Technical
Notes (deflate).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from PIL import Image

from synfundus.photographs.decoding.jpeg_stream import check_stream
from synfundus.photographs.undecodable import Undecodable, UndecodableImage

_BITS, _COMPRESSION, _PLANES, _JPEG_TABLES = 258, 259, 284, 347
_RAW, _JPEG, _DEFLATE, _PACKBITS = 1, 7, (8, 32946), 32773
_PHOTOMETRIC, _YCBCR = 262, 6  # colours may be subsampled: a strip holds less than its pixels
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles
_BYTES_PER_PIXEL = 16


def check_strips(data: bytes, image: Image.Image) -> None:
    """Refuse an open TIFF with a damaged deflate, JPEG or PackBits strip; other compressions have no check.

    Raises:
        UndecodableImage: ``damaged``; ``unsupported_mode`` for 16-bit planes without compression, misread by Pillow.
    """
    tags = getattr(image, "tag_v2", {})
    compression = tags.get(_COMPRESSION)
    if compression == _RAW and tags.get(_PLANES) == 2 and 16 in tags.get(_BITS, ()):
        raise UndecodableImage(Undecodable.UNSUPPORTED_MODE, "16-bit colours in separate planes cannot be read")
    if compression not in (_JPEG, _PACKBITS, *_DEFLATE):
        return
    sizes = _unpacked_sizes(image)
    left = _BYTES_PER_PIXEL * (image.width + 1024) * (image.height + 1024)  # tiles reach beyond the picture
    tables = bytes(tags.get(_JPEG_TABLES, b""))
    for offsets, lengths in _PLACES:
        for start, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            strip = data[start : start + length]
            if compression == _JPEG:
                check_stream(tables[:-2] + strip[2:] if tables else strip)
                continue
            if compression == _PACKBITS:
                if tags.get(_PHOTOMETRIC) != _YCBCR and not _unpacks_to(strip, next(sizes)):
                    raise UndecodableImage(Undecodable.DAMAGED, "TIFF file: a compressed strip is damaged")
                continue
            inflater = zlib.decompressobj()
            left -= len(inflater.decompress(strip, max(left, 1)))
            if not inflater.eof:
                raise UndecodableImage(Undecodable.DAMAGED, "TIFF file: a compressed strip is damaged")


def _unpacked_sizes(image: Image.Image) -> Iterator[int]:
    """Yield the bytes that each strip or tile holds, in their order, endlessly."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS) or (8,)
    planes = len(bits) if tags.get(_PLANES) == 2 else 1
    bits_per_pixel = sum(bits) // planes
    tile_width, tile_height = tags.get(_TILE_WIDTH), tags.get(_TILE_HEIGHT)
    width, rows = tile_width or image.width, tile_height or min(tags.get(_ROWS_PER_STRIP, image.height), image.height)
    row_bytes = (width * bits_per_pixel + 7) // 8
    while True:
        for top in range(0, image.height, max(rows, 1)):
            yield row_bytes * (rows if tile_height else min(rows, image.height - top))


def _unpacks_to(strip: bytes, size: int) -> bool:
    """Whether PackBits gives exactly so many bytes, and nothing but a byte of padding follows."""
    at = found = 0
    while found < size and at < len(strip):
        head = strip[at]
        literal = head < 128
        found += head + 1 if literal else 257 - head if head > 128 else 0
        at += (head + 2 if literal else 2) if head != 128 else 1
    return found == size and len(strip) - 1 <= at <= len(strip)
