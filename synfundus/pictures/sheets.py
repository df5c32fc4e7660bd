"""Contact sheets and titled rows of images on a dark, neutral background.

Uses only pillow and numpy; all functions are pure: the same arguments give the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, ImageFont, load_default
from PIL.PngImagePlugin import PngInfo

from synfundus.errors import DataError

Pixels = NDArray[np.uint8]
"""An RGB image, uint8 ``[h, w, 3]``."""

_BACKGROUND = (22, 23, 26)
_INK = (214, 216, 220)
_FAINT_INK = (150, 153, 160)
_RULE = (58, 60, 66)
_GAP_PX = 6
_MARGIN_PX = 18
_CAPTION_SIZE_PX = 11
_TITLE_SIZE_PX = 22
_ROW_TITLE_SIZE_PX = 14
_SUBTITLE_SIZE_PX = 13
_LINE_SPACING = 1.25
_MAX_CAPTION_LINES = 4
_WIDEST_WORD_PX = 110
_CUT = "…"
_SOURCE_TYPES = {
    "yes": "trainedAlgorithmicMedia",
    "in part": "compositeWithTrainedAlgorithmicMedia",
    "drawn": "algorithmicMedia",
}
"""IPTC's words for what the mark ``synthetic`` says."""
PATIENTS_NOTE = "contains photographs of patients: do not pass on"
"""What a picture says in which photographs are shown that nobody is known to have drawn."""
XMP_KEYWORD = "XML:com.adobe.xmp"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/{}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
"""Source: IPTC standard of picture metadata, Digital Source Type."""


@dataclass(frozen=True)
class PictureRow:
    """A titled row of images.

    Attributes:
        title: Text in the left column, wrapped.
        groups: Images side by side; groups are separated by a gap and aligned with the column titles.
    """

    title: str
    groups: Sequence[Sequence[Pixels]]


@dataclass(frozen=True)
class PictureSection:
    """Rows under a heading.

    Attributes:
        title: Heading.
        subtitle: One line below it; may be empty.
        column_titles: One per group; may be empty.
        rows: The rows, top to bottom.
    """

    title: str
    subtitle: str
    column_titles: Sequence[str]
    rows: Sequence[PictureRow]


def _line_height(size_px: int) -> int:
    return round(size_px * _LINE_SPACING)


def _split_long(word: str, font: FreeTypeFont | ImageFont, width_px: int) -> list[str]:
    """Split a word that is wider than a line."""
    pieces, piece = [], ""
    for letter in word:
        if piece and font.getlength(piece + letter) > width_px:
            pieces.append(piece)
            piece = ""
        piece += letter
    return [*pieces, piece]


def wrap_text(text: str, *, size_px: int, width_px: int) -> list[str]:
    """Wrap a text to lines no wider than ``width_px`` in the default font; a line feed starts a new line."""
    font = load_default(size_px)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width_px:
                line = f"{line} {word}"
                continue
            if line:
                lines.append(line)
            *full, line = _split_long(word, font, width_px)
            lines.extend(full)
        lines.append(line)
    return lines if any(lines) else []


def _shortened(text: str, font: FreeTypeFont | ImageFont, width_px: int, mark: str) -> str:
    """Return a text with a mark at its end, without as many letters as it needs to fit."""
    while text and font.getlength(text.rstrip(" ,") + mark) > width_px:
        text = text[:-1]
    return text.rstrip(" ,") + mark


def wrap_caption(text: str, *, width_px: int) -> list[str]:
    """Wrap a list of findings: lines end between findings where they can, else between words, never in a word.

    What does not fit, a word or the rest of the list, is cut with a mark.
    """
    font = load_default(_CAPTION_SIZE_PX)
    lines: list[str] = []
    for finding in text.split(", "):
        if lines and font.getlength(f"{lines[-1]}, {finding}") <= width_px:
            lines[-1] += f", {finding}"
        elif font.getlength(finding) <= width_px:
            lines.append(finding)
        else:
            line = ""
            for word in finding.split():
                if line and font.getlength(f"{line} {word}") <= width_px:
                    line = f"{line} {word}"
                    continue
                lines += [line] if line else []
                line = word if font.getlength(word) <= width_px else _shortened(word, font, width_px, _CUT)
            lines.append(line)
    if len(lines) > _MAX_CAPTION_LINES:
        lines = [*lines[: _MAX_CAPTION_LINES - 1], _shortened(lines[_MAX_CAPTION_LINES - 1], font, width_px, _CUT)]
    return lines if any(lines) else []


def _caption_width(captions: Sequence[str], tile_px: int) -> int:
    """Return the width of a column: of a tile, or of the longest word below one, up to a limit."""
    font = load_default(_CAPTION_SIZE_PX)
    words = {word for caption in captions for word in caption.split()}
    return max([tile_px, *(min(_WIDEST_WORD_PX, int(font.getlength(word)) + 1) for word in words)])


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    *,
    left_px: int,
    top_px: int,
    size_px: int,
    ink: tuple[int, int, int],
    centre_in_px: int = 0,
) -> None:
    """Draw lines of text; with ``centre_in_px`` each is centred in a column of that width."""
    font = load_default(size_px)
    for number, line in enumerate(lines):
        shift = (centre_in_px - font.getlength(line)) / 2 if centre_in_px else 0.0
        draw.text((left_px + shift, top_px + number * _line_height(size_px)), line, fill=ink, font=font)


def _check(pixels: Pixels) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(f"a picture needs uint8 RGB images [h, w, 3], got {pixels.dtype} {pixels.shape}")


def _tile(pixels: Pixels, tile_px: int) -> Image.Image:
    """Scale an image to fit a square tile, and centre it."""
    _check(pixels)
    image = Image.fromarray(pixels)
    if image.size != (tile_px, tile_px):
        scale = tile_px / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (tile_px, tile_px), (0, 0, 0))
    tile.paste(image, ((tile_px - image.width) // 2, (tile_px - image.height) // 2))
    return tile


def contact_sheet(
    images: Sequence[Pixels], *, captions: Sequence[str], columns: int, tile_px: int, title: str
) -> Pixels:
    """Arrange images in a grid, each with a caption below it.

    Args:
        images: RGB images; each is scaled to fit a square tile.
        captions: One per image, findings separated by commas; a row of empty captions takes no space.
        columns: Images per row.
        tile_px: Edge of a tile.
        title: Heading; empty for none.

    Raises:
        DataError: No images, a different number of captions, or an array that is not an RGB image.
    """
    if not images or len(captions) != len(images) or columns < 1:
        raise DataError(f"a contact sheet of {len(images)} images, {len(captions)} captions, {columns} columns")
    cell_px = _caption_width(captions, tile_px)
    wrapped = [wrap_caption(caption, width_px=cell_px) for caption in captions]
    columns = min(columns, len(images))
    width = 2 * _MARGIN_PX + columns * cell_px + (columns - 1) * _GAP_PX
    heading = wrap_text(title, size_px=_ROW_TITLE_SIZE_PX, width_px=width - 2 * _MARGIN_PX)
    heading_px = len(heading) * _line_height(_ROW_TITLE_SIZE_PX) + (_GAP_PX if heading else 0)
    row_lines = [max(len(lines) for lines in wrapped[at : at + columns]) for at in range(0, len(images), columns)]
    row_heights = [
        tile_px + _GAP_PX + (count * _line_height(_CAPTION_SIZE_PX) + _GAP_PX if count else 0) for count in row_lines
    ]
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + heading_px + sum(row_heights) - _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, heading, left_px=_MARGIN_PX, top_px=_MARGIN_PX, size_px=_ROW_TITLE_SIZE_PX, ink=_INK)
    for number, (pixels, lines) in enumerate(zip(images, wrapped, strict=True)):
        row, column = divmod(number, columns)
        left = _MARGIN_PX + column * (cell_px + _GAP_PX)
        top = _MARGIN_PX + heading_px + sum(row_heights[:row])
        sheet.paste(_tile(pixels, tile_px), (left + (cell_px - tile_px) // 2, top))
        _write(
            draw,
            lines,
            left_px=left,
            top_px=top + tile_px + _GAP_PX // 2,
            size_px=_CAPTION_SIZE_PX,
            ink=_INK,
            centre_in_px=cell_px,
        )
    return np.asarray(sheet, dtype=np.uint8)


@dataclass(frozen=True)
class _Layout:
    """Positions of the groups of a section's rows."""

    tile_px: int
    title_width_px: int
    group_sizes: tuple[int, ...]

    def group_width_px(self, group: int) -> int:
        count = self.group_sizes[group]
        return count * self.tile_px + max(count - 1, 0) * _GAP_PX

    def group_left_px(self, group: int) -> int:
        before = sum(self.group_width_px(number) + 3 * _GAP_PX for number in range(group))
        return _MARGIN_PX + self.title_width_px + _GAP_PX + before

    @property
    def width_px(self) -> int:
        last = len(self.group_sizes) - 1
        return self.group_left_px(last) + self.group_width_px(last) + _MARGIN_PX


def _layout(rows: Sequence[PictureRow], *, tile_px: int, title_width_px: int) -> _Layout:
    columns = zip_longest(*(row.groups for row in rows), fillvalue=())
    return _Layout(tile_px, title_width_px, group_sizes=tuple(max(map(len, groups)) for groups in columns))


def _draw_row(row: PictureRow, layout: _Layout) -> Image.Image:
    strip = Image.new("RGB", (layout.width_px, layout.tile_px + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    lines = wrap_text(row.title, size_px=_ROW_TITLE_SIZE_PX, width_px=layout.title_width_px)
    top = (layout.tile_px - len(lines) * _line_height(_ROW_TITLE_SIZE_PX)) // 2
    _write(draw, lines, left_px=_MARGIN_PX, top_px=max(top, 0), size_px=_ROW_TITLE_SIZE_PX, ink=_INK)
    for number, group in enumerate(row.groups):
        for position, pixels in enumerate(group):
            left = layout.group_left_px(number) + position * (layout.tile_px + _GAP_PX)
            strip.paste(_tile(pixels, layout.tile_px), (left, 0))
    return strip


def _draw_head(section: PictureSection, layout: _Layout) -> Image.Image:
    inner = layout.width_px - 2 * _MARGIN_PX
    title = wrap_text(section.title, size_px=_TITLE_SIZE_PX, width_px=inner)
    subtitle = wrap_text(section.subtitle, size_px=_SUBTITLE_SIZE_PX, width_px=inner)
    title_px = len(title) * _line_height(_TITLE_SIZE_PX)
    subtitle_px = len(subtitle) * _line_height(_SUBTITLE_SIZE_PX)
    columns_px = _line_height(_SUBTITLE_SIZE_PX) + _GAP_PX if section.column_titles else 0
    height = _GAP_PX + title_px + subtitle_px + 2 * _GAP_PX + columns_px
    head = Image.new("RGB", (layout.width_px, height), _BACKGROUND)
    draw = ImageDraw.Draw(head)
    _write(draw, title, left_px=_MARGIN_PX, top_px=_GAP_PX, size_px=_TITLE_SIZE_PX, ink=_INK)
    _write(draw, subtitle, left_px=_MARGIN_PX, top_px=_GAP_PX + title_px, size_px=_SUBTITLE_SIZE_PX, ink=_FAINT_INK)
    for number, text in enumerate(section.column_titles[: len(layout.group_sizes)]):
        left, width = layout.group_left_px(number), layout.group_width_px(number)
        top = height - columns_px
        draw.line((left, height - 4, left + width - 1, height - 4), fill=_RULE)
        _write(draw, [text], left_px=left, top_px=top, size_px=_SUBTITLE_SIZE_PX, ink=_INK)
    return head


def titled_rows(sections: Sequence[PictureSection], *, tile_px: int, title_width_px: int) -> Pixels:
    """Stack sections of titled rows; the groups of a section's rows are aligned.

    Args:
        sections: Sections, top to bottom.
        tile_px: Edge of an image.
        title_width_px: Width of the column with the row titles.

    Raises:
        DataError: Nothing to show, or an array that is not an RGB image.
    """
    if not sections or any(not section.rows for section in sections):
        raise DataError("a picture of titled rows needs sections, and each section rows")
    strips: list[Image.Image] = []
    for section in sections:
        if strips:
            strips.append(Image.new("RGB", (1, _MARGIN_PX), _BACKGROUND))
        layout = _layout(section.rows, tile_px=tile_px, title_width_px=title_width_px)
        strips.append(_draw_head(section, layout))
        strips.extend(_draw_row(row, layout) for row in section.rows)
    width, height = max(strip.width for strip in strips), sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (width, height + 2 * _MARGIN_PX), _BACKGROUND)
    top = _MARGIN_PX
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return np.asarray(sheet, dtype=np.uint8)


def patients_note(properties: Mapping[str, Any]) -> str:
    """Return what a picture of photographs says of them, from the properties of their set: nothing if all are drawn."""
    return "" if properties.get("drawn") else PATIENTS_NOTE


def source_xmp(mark: str) -> bytes:
    """Return XMP that says what made a picture, in IPTC's words; ``mark`` is what it says as ``synthetic``."""
    return _XMP.format(_SOURCE_TYPES[mark]).encode()


def encode_png(pixels: Pixels, *, text: Mapping[str, str], compress_level: int) -> bytes:
    """Encode an RGB image as PNG with tEXt chunks; the same arguments give the same bytes.

    What is marked as ``synthetic`` is marked once more as other programs read it, in XMP.

    Args:
        pixels: uint8 ``[h, w, 3]``.
        text: Keyword -> text, Latin-1; written in this order, without those that are empty.
        compress_level: zlib level, 0 (fast) to 9 (small).
    """
    _check(pixels)
    info = PngInfo()
    for keyword, value in text.items():
        if value:
            info.add_text(keyword, value)
    if text.get("synthetic") in _SOURCE_TYPES:
        info.add_itxt(XMP_KEYWORD, source_xmp(text["synthetic"]).decode())
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", pnginfo=info, compress_level=compress_level)
    return stream.getvalue()
