"""Check the compressed strips or tiles of a TIFF, whose decoder passes over damage in them.

Source: TIFF 6.0 section 22 (JPEG), TIFF Technical Note 2 (JPEG tables), Adobe Photoshop TIFF Technical Notes (deflate).
"""

from __future__ import annotations

import zlib

from PIL import Image

from synfundus.photographs.decoding.jpeg_stream import check_stream
from synfundus.photographs.undecodable import Undecodable, UndecodableImage

_BITS, _COMPRESSION, _PLANES, _JPEG_TABLES = 258, 259, 284, 347
_RAW, _JPEG, _DEFLATE = 1, 7, (8, 32946)
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles
_BYTES_PER_PIXEL = 16


def check_strips(data: bytes, image: Image.Image) -> None:
    """Refuse an open TIFF with a damaged deflate or JPEG strip; other compressions have no check.

    Raises:
        UndecodableImage: ``damaged``; ``unsupported_mode`` for 16-bit planes without compression, misread by Pillow.
    """
    tags = getattr(image, "tag_v2", {})
    compression = tags.get(_COMPRESSION)
    if compression == _RAW and tags.get(_PLANES) == 2 and 16 in tags.get(_BITS, ()):
        raise UndecodableImage(Undecodable.UNSUPPORTED_MODE, "16-bit colours in separate planes cannot be read")
    if compression != _JPEG and compression not in _DEFLATE:
        return
    left = _BYTES_PER_PIXEL * (image.width + 1024) * (image.height + 1024)  # tiles reach beyond the picture
    tables = bytes(tags.get(_JPEG_TABLES, b""))
    for offsets, lengths in _PLACES:
        for start, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False):
            strip = data[start : start + length]
            if compression == _JPEG:
                check_stream(tables[:-2] + strip[2:] if tables else strip)
                continue
            inflater = zlib.decompressobj()
            left -= len(inflater.decompress(strip, max(left, 1)))
            if not inflater.eof:
                raise UndecodableImage(Undecodable.DAMAGED, "TIFF file: a compressed strip is damaged")
