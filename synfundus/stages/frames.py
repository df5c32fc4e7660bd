"""Frames of a course of labels, for `progress` and `edit`: captions, figures, differences, animations, sheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.artifacts.model import Model
from synfundus.artifacts.progression import Course
from synfundus.evaluation.judge import Judge, predict_labels
from synfundus.evaluation.label_control import is_nominal
from synfundus.labels.schema import LabelSchema
from synfundus.pictures.sheets import contact_sheet, encode_png, source_xmp
from synfundus.stages.sample.checking import open_inspector
from synfundus.storage import filesystem

Pixels = NDArray[np.uint8]
_TILE_PX, _FRAME_MS, COMPRESS_LEVEL = 256, 250, 6
_DIFFERENCE_GAIN = 2.0
_BRIGHTER, _DARKER = (np.array(ink, dtype=np.float32) for ink in ((230, 97, 1), (5, 113, 176)))


def ends(schema: LabelSchema, name: str, text: int | str) -> tuple[int | None, int | None]:
    """Read ``FIRST..LAST``, or a single value for both, by number or name.

    Raises:
        DataError: A label or value that the schema does not have.
    """
    first, _, last = str(text).partition("..")
    return schema.check_value(name, first.strip()), schema.check_value(name, (last or first).strip())


def described(course: Course) -> str:
    """Return the course in words: ``dr_grade 0 to 4``."""
    return ", ".join(f"{name} {course.first[name]} to {course.last[name]}" for name in course.moved)


def frame_caption(course: Course, frame: int, num_frames: int) -> str:
    """Return the values of a frame: ``dr_grade 1.5``."""
    values = course.values(frame, num_frames)
    return ", ".join(f"{name} {values[name]:.3g}" for name in course.moved)


def open_judge(folder: str | None, model: Model) -> Judge | None:
    """Return the judge of a folder that `judge` wrote; None without one.

    Raises:
        DataError: There is none, or it is for other labels.
    """
    if folder is None:
        return None
    return open_inspector(model.label_schema, model.image_size_px, most_redraws=0, judge=folder)[0].judge


def judged_values(judge: Judge, frames: Pixels, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the expected value of labels by a judge, for each frame; of ordinal and binary labels."""
    predictions = dict(zip(judge.schema.names, predict_labels(judge, frames), strict=True))
    return {
        name: predictions[name].at_least.sum(axis=1).tolist()
        for name in names
        if name in predictions and not is_nominal(judge.schema[name])
    }


def difference_map(frame: Pixels, first: Pixels) -> Pixels:
    """Return where a frame ``[h, w, 3]`` is brighter than the first one (orange) and where darker (blue), on grey.

    Orange and blue are told apart by everybody; the change is that of the green channel, in which blood is darkest.
    """
    change = (frame[..., 1].astype(np.float32) - first[..., 1]) / 255.0 * _DIFFERENCE_GAIN
    share = np.clip(np.abs(change), 0.0, 1.0)[..., None]
    ink = np.where(change[..., None] > 0, _BRIGHTER, _DARKER)
    ground = first.mean(axis=2, keepdims=True) * 0.5 + 64
    return np.asarray(np.round(ground * (1 - share) + ink * share), dtype=np.uint8)


def animated(frames: Pixels, kind: str) -> bytes:
    """Return frames ``[n, h, w, 3]`` as an animation, there and back, that says it is synthetic."""
    there_and_back = [*frames, *frames[-2:0:-1]]
    first, *rest = [Image.fromarray(pixels) for pixels in there_and_back]
    stream = io.BytesIO()
    more: dict[str, Any] = {"xmp": source_xmp("yes"), "quality": 90} if kind == "webp" else {"comment": b"synthetic"}
    first.save(stream, kind.upper(), save_all=True, append_images=rest, duration=_FRAME_MS, loop=0, **more)
    return stream.getvalue()


def frames_table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows of figures as CSV; nan is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else _short(v) for v in row.values()])
    return stream.getvalue().encode()


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def write_sheet(
    out: str,
    name: str,
    pictures: Sequence[Pixels],
    *,
    captions: Sequence[str],
    columns: int,
    title: str,
    marks: Mapping[str, str],
) -> None:
    """Write pictures ``[h, w, 3]`` with captions as one PNG that carries ``marks``."""
    tile_px = min(pictures[0].shape[1], _TILE_PX)
    sheet = contact_sheet(list(pictures), captions=list(captions), columns=columns, tile_px=tile_px, title=title)
    filesystem.write_bytes(filesystem.join(out, name), encode_png(sheet, text=marks, compress_level=COMPRESS_LEVEL))


def write_animations(out: str, stem: str, frames: Pixels, *, gif: bool) -> None:
    """Write frames ``[n, h, w, 3]`` as WebP, and as GIF if asked for."""
    for kind in ("webp", "gif") if gif else ("webp",):
        filesystem.write_bytes(filesystem.join(out, f"{stem}.{kind}"), animated(frames, kind))
