"""Sheets of small images: many in one file, so that a page of 100,000 opens a few dozen of them at a time.

A sheet of thumbnails has 8 x 8 tiles, one of larger views 4 x 4: about a megapixel, which a browser decodes in
milliseconds. Filters and orders mix images of many sheets on a screen, and larger sheets would have to be decoded
for a tile or two. JPEG: WebP is smaller by a quarter and takes about ten times as long to write. Tiles are multiples of
16 pixels, the blocks of JPEG, so that none bleeds into its neighbour.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synfundus.errors import CorruptShard
from synfundus.pictures.sheets import source_xmp
from synfundus.shards.members import decode_image
from synfundus.stages.gallery.sources import Found, Mark, Part
from synfundus.storage import documents, filesystem

THUMBNAIL_PX = 128
SIDE = 8
"""Thumbnails in a row of a sheet, and rows."""
LARGE_SIDE = 4
PART_IMAGES = SIDE * SIDE
FEATURE_PX = 8
"""Edge of the miniatures that are compared for the map."""
RECORD_FORMAT = "synfundus-gallery-part"
_QUALITY = {"quality": 85, "subsampling": 2}
_FINE = {"quality": 92, "subsampling": 0}
"""Of the sheets with the largest view of an image."""
_BLOCK_PX = 16
_LUMA = (0.299, 0.587, 0.114)

Record = dict[str, Any]


@dataclass(frozen=True)
class SheetTask:
    """What one process makes of consecutive images.

    Attributes:
        part: The images.
        number: Number of the part.
        out: The gallery.
        group: Name of the images' group in it, part of file names.
        mark: What made the images.
        large_px: Edge of a large tile; 0 for none.
        full: Whether to copy the files.
    """

    part: Part
    number: int
    out: str
    group: str
    mark: Mark
    large_px: int
    full: bool


def large_tile_px(wanted_px: int, image_size_px: int, *, full: bool) -> int:
    """Return the edge of the large tiles, a multiple of 16; 0 where thumbnails or full images are as good."""
    edge = min(wanted_px, image_size_px or wanted_px) // _BLOCK_PX * _BLOCK_PX
    return 0 if full or edge <= THUMBNAIL_PX else edge


def record_name(group: str, number: int) -> str:
    """Return the place of the record of a part."""
    return f"parts/{group}-{number:06d}.json"


def make_sheets(task: SheetTask) -> Record:
    """Write the sheets of a part, and then its record.

    Returns:
        By image ``names``, ``states``, ``brightness`` (0 to 255) and ``miniatures`` (192 bytes, as hexadecimal digits);
        the ``rejects``, each position in the part, name and reason; and the ``extension`` of the images.
    """
    names, states, rejects, extension = [], [], [], ""
    small, large = (Tiles(px, side) for px, side in ((THUMBNAIL_PX, SIDE), (task.large_px, LARGE_SIDE)))
    miniatures = np.zeros((PART_IMAGES, FEATURE_PX, FEATURE_PX, 3), np.uint8)
    for position, found in enumerate(task.part.read()):
        picture, problem = _decoded(found)
        names.append(found.name)
        states.append(found.states)
        if picture is None:
            rejects.append([position, found.name, problem])
            continue
        extension = found.extension
        small.add(position, picture)
        large.add(position, picture)
        miniatures[position] = np.asarray(picture.resize((FEATURE_PX, FEATURE_PX), Image.Resampling.BOX))
        if task.full:
            place = f"images/{task.group}-{task.number * PART_IMAGES + position:08d}.{found.extension}"
            filesystem.write_bytes(filesystem.join(task.out, place), found.data)
    miniatures = miniatures[: len(names)]
    small.write(task, "tiles", task.number, fine=not task.large_px)
    if task.large_px:
        large.write(task, "large", task.number * (PART_IMAGES // LARGE_SIDE**2), fine=True)
    record = {
        "names": names,
        "extension": extension,
        "states": states,
        "brightness": (miniatures @ np.array(_LUMA)).mean(axis=(1, 2)).round().astype(int).tolist(),
        "miniatures": miniatures.tobytes().hex(),
        "rejects": rejects,
    }
    place = filesystem.join(task.out, record_name(task.group, task.number))
    documents.write_document(place, record, format_name=RECORD_FORMAT, version=1)
    return record


def miniatures_of(records: Sequence[Record]) -> NDArray[np.uint8]:
    """Return the miniatures of all images, ``[n, 192]``."""
    data = b"".join(bytes.fromhex(record["miniatures"]) for record in records)
    return np.frombuffer(data, np.uint8).reshape(-1, FEATURE_PX**2 * 3)


def _decoded(found: Found) -> tuple[Image.Image | None, str]:
    if found.problem:
        return None, found.problem
    try:
        return Image.fromarray(decode_image(found.data, where=found.name, extension=found.extension)), ""
    except KeyError:
        return None, f"a file of kind .{found.extension} is no image"
    except CorruptShard as error:
        return None, error.message


class Tiles:
    """Tiles of a part, on one or several sheets.

    Args:
        edge_px: Edge of a tile; 0 for none.
        side: Tiles in a row, and rows.
    """

    def __init__(self, edge_px: int, side: int) -> None:
        self._edge = edge_px
        self._side = side
        self._sheets: dict[int, Image.Image] = {}

    def add(self, position: int, picture: Image.Image) -> None:
        """Paste an image, shrunk, onto its tile; what is not square gets margins."""
        if not self._edge:
            return
        number, tile = divmod(position, self._side**2)
        size = (self._edge * self._side,) * 2
        sheet = self._sheets.setdefault(number, Image.new("RGB", size))
        row, column = divmod(tile, self._side)
        fitted = ImageOps.pad(picture, (self._edge, self._edge), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (column * self._edge, row * self._edge))

    def write(self, task: SheetTask, folder: str, first: int, *, fine: bool) -> None:
        """Write the sheets, the first with the given number, each marked for what it shows."""
        for number, sheet in self._sheets.items():
            stream = io.BytesIO()
            marks = {"xmp": source_xmp(task.mark), "comment": f"synthetic: {task.mark}"} if task.mark else {}
            sheet.save(stream, "JPEG", **(_FINE if fine else _QUALITY), **marks)
            filesystem.write_bytes(
                filesystem.join(task.out, f"{folder}/{task.group}-{first + number:06d}.jpg"), stream.getvalue()
            )
