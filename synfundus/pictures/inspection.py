"""Charts of a whole set: the known values of each label, and which findings occur together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.ImageFont import load_default

from synfundus.pictures.sheets import Pixels

_BACKGROUND = (22, 23, 26)
_INK = (214, 216, 220)
_FAINT_INK = (150, 153, 160)
_UNKNOWN = (52, 54, 60)
_VALUES = ((68, 92, 118), (214, 158, 74), (205, 122, 78), (186, 86, 90), (146, 66, 110), (108, 60, 130))
"""Colour of value 0, 1, ...; further values get the last colour."""
_EMPTY_CELL = (32, 33, 37)
_FULL_CELL = (233, 178, 96)
_TEXT_PX = 12
_TITLE_PX = 15
_ROW_PX = 20
_CELL_PX = 30
_BAR_PX = 280
_GAP_PX = 8
_MARGIN_PX = 18


def _widest(texts: Sequence[str], size_px: int) -> int:
    return int(max((load_default(size_px).getlength(text) for text in texts), default=0)) + 1


def _canvas(width: int, height: int, title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (max(width, _widest([title], _TITLE_PX)), height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), title, fill=_INK, font=load_default(_TITLE_PX))
    return image, draw


def _counts_text(counts: Mapping[str, int]) -> str:
    """Describe the counts of a label: the positives of a binary label, the count of each value of a grade."""
    *values, unknown = counts.values()
    known = sum(values)
    if known == 0:
        return "nothing known"
    text = f"{values[1]:,} of {known:,}" if len(values) == 2 else " / ".join(f"{value:,}" for value in values)
    return f"{text}, {unknown:,} unknown" if unknown else text


def label_bars(values: Mapping[str, Mapping[str, int]]) -> Pixels:
    """Draw a stacked bar per label: its values from left to right, then the unknown samples in grey.

    Args:
        values: Label -> value -> number of samples, unknown last; all labels have the same sum.
    """
    texts = {name: _counts_text(counts) for name, counts in values.items()}
    left = _widest(list(values), _TEXT_PX) + _GAP_PX
    top = _ROW_PX + 2 * _GAP_PX
    width = left + _BAR_PX + _GAP_PX + _widest(list(texts.values()), _TEXT_PX)
    image, draw = _canvas(width, top + _ROW_PX * len(values), "labels: values 0, 1, ... and unknown (grey)")
    for row, (name, counts) in enumerate(values.items()):
        y = top + row * _ROW_PX
        draw.text((0, y + 2), name, fill=_INK, font=load_default(_TEXT_PX))
        total, before = max(sum(counts.values()), 1), 0
        for number, count in enumerate(counts.values()):
            last = number == len(counts) - 1
            colour = _UNKNOWN if last else _VALUES[min(number, len(_VALUES) - 1)]
            begin, end = (left + round(_BAR_PX * part / total) for part in (before, before + count))
            if count:
                draw.rectangle((begin, y + 2, max(begin, end - 1), y + _ROW_PX - 4), fill=colour)
            before += count
        draw.text((left + _BAR_PX + _GAP_PX, y + 2), texts[name], fill=_FAINT_INK, font=load_default(_TEXT_PX))
    return np.asarray(image, dtype=np.uint8)


def _sideways(text: str) -> Image.Image:
    """Draw a text rotated by 90 degrees."""
    strip = Image.new("RGB", (_widest([text], _TEXT_PX), _TEXT_PX + 4), _BACKGROUND)
    ImageDraw.Draw(strip).text((0, 0), text, fill=_INK, font=load_default(_TEXT_PX))
    return strip.transpose(Image.Transpose.ROTATE_90)


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def co_occurrence_map(counts: Mapping[str, Mapping[str, int]]) -> Pixels:
    """Draw the number of samples with two findings; a brighter cell is a larger share of the row's samples.

    Args:
        counts: Label -> label -> number of samples with both above 0. Labels that are never above 0 get no row.
    """
    names = [name for name, row in counts.items() if row[name]]
    left = _widest(names, _TEXT_PX) + _GAP_PX
    titles = [_sideways(name) for name in names]
    top = _ROW_PX + 2 * _GAP_PX + max((title.height for title in titles), default=0) + _GAP_PX
    edge = _CELL_PX * len(names)
    image, draw = _canvas(left + edge, top + edge, "co-occurrence: samples with both, bright = share of the row")
    for column, title in enumerate(titles):
        image.paste(title, (left + column * _CELL_PX + (_CELL_PX - title.width) // 2, top - _GAP_PX - title.height))
    font = load_default(_TEXT_PX - 2)
    for row, name in enumerate(names):
        y = top + row * _CELL_PX
        draw.text((0, y + (_CELL_PX - _TEXT_PX) // 2), name, fill=_INK, font=load_default(_TEXT_PX))
        for column, other in enumerate(names):
            count = counts[name][other]
            share = count / counts[name][name]
            colour = tuple(round(low + (high - low) * share) for low, high in zip(_EMPTY_CELL, _FULL_CELL, strict=True))
            x = left + column * _CELL_PX
            draw.rectangle((x, y, x + _CELL_PX - 2, y + _CELL_PX - 2), fill=colour)
            if count:
                ink = _BACKGROUND if share > 0.5 else _INK
                shift = (_CELL_PX - font.getlength(_short(count))) / 2
                draw.text((x + shift, y + (_CELL_PX - _TEXT_PX) // 2), _short(count), fill=ink, font=font)
    if not names:
        draw.text((0, _ROW_PX + _GAP_PX), "no finding in any sample", fill=_FAINT_INK, font=load_default(_TEXT_PX))
    return np.asarray(image, dtype=np.uint8)


def moments_picture(
    moments: NDArray[np.float16], *, mean: Sequence[float], std: Sequence[float], edge_px: int
) -> Pixels:
    """Show the first three channels of a posterior mean as RGB; the range is 2.5 standard deviations either way.

    Args:
        moments: Mean, then log-variance, ``[2c, h, w]``.
        mean: Mean of each channel over the set, ``[c]``.
        std: Standard deviation of each channel over the set, ``[c]``.
        edge_px: Minimum edge of the picture; latent pixels are repeated, not interpolated.
    """
    channels = min(3, moments.shape[0] // 2)
    chosen = moments[:channels].astype(np.float32)
    centre = np.asarray(mean[:channels], dtype=np.float32)[:, None, None]
    spread = np.maximum(np.asarray(std[:channels], dtype=np.float32), 1e-6)[:, None, None]
    shown = np.clip(((chosen - centre) / spread / 5.0 + 0.5) * 255, 0, 255).round().astype(np.uint8)
    shown = np.concatenate([shown] + [shown[-1:]] * (3 - channels)).transpose(1, 2, 0)
    repeat = max(1, -(-edge_px // max(shown.shape[:2])))
    return np.ascontiguousarray(shown.repeat(repeat, axis=0).repeat(repeat, axis=1))


def compose_sheet(upper: Sequence[Pixels], lower: Pixels | None) -> Pixels:
    """Place pictures side by side, wrapped to the width of the sheet below them if there is one."""
    limit = max([0 if lower is None else lower.shape[1], *(picture.shape[1] + 2 * _MARGIN_PX for picture in upper)])
    placed: list[tuple[int, int, Pixels]] = []
    x, y, height = _MARGIN_PX, _MARGIN_PX, 0
    for picture in upper:
        if x > _MARGIN_PX and x + picture.shape[1] + _MARGIN_PX > limit:
            x, y, height = _MARGIN_PX, y + height + _MARGIN_PX, 0
        placed.append((x, y, picture))
        x += picture.shape[1] + 2 * _MARGIN_PX
        height = max(height, picture.shape[0])
    y += height + _MARGIN_PX
    if lower is not None:
        placed.append((0, y, lower))
        y += lower.shape[0]
    sheet = Image.new("RGB", (limit, y), _BACKGROUND)
    for left, top, picture in placed:
        sheet.paste(Image.fromarray(picture), (left, top))
    return np.asarray(sheet, dtype=np.uint8)
