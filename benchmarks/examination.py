"""What `sample --check` notices and what it refuses wrongly: ``python -m benchmarks.examination [--data FOLDER]``.

With ``--data`` a folder of photographs, else drawn eyes alone. Photographs are split in two by a keyed hash of their
names: thresholds of discs were set on half 0, figures are of half 1. False alarms are whole photographs refused; recall
is the share of planted faults that are named. Where discs lie in photographs stands in ``--places``, a table
image,x,y,side in half widths of the crop, made by a person; without it the examiner's own find is taken, and only
photographs where it found a disc count for planted faults.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.planted_faults import FAULTS, Eye
from synfundus.evaluation.examination.anatomy import find_anatomy
from synfundus.evaluation.examination.clarity import working_copy
from synfundus.evaluation.examination.verdict import examine
from synfundus.evaluation.intervals import share_interval
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, READABLE
from synfundus.phantoms.draw import Variety, draw_phantom
from synfundus.photographs.field_of_view import find_field_of_view
from synfundus.photographs.rim import Circle
from synfundus.photographs.transforms import crop_to_field_of_view
from synfundus.seeding import keyed_generator

_SIDES = ("right", "left")
_USUAL_RADIUS = 0.15


def half_of(name: str) -> int:
    """Return 0 or 1: the half to which a photograph belongs."""
    return hashlib.blake2b(name.encode(), key=b"examination").digest()[0] % 2


def read_photographs(folder: Path, *, half: int, size_px: int, places: Path | None) -> list[Eye]:
    """Crop the photographs of one half; ``radius`` is 0 where no disc is known."""
    table = {}
    if places is not None:
        with places.open(encoding="utf-8") as file:
            table = {row["image"]: row for row in csv.DictReader(file)}
    eyes = []
    for path in sorted(one for one in folder.rglob("*") if one.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"}):
        if half_of(path.stem) != half:
            continue
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        crop = crop_to_field_of_view(pixels, find_field_of_view(pixels), size_px)
        if row := table.get(path.stem):
            eyes.append(Eye(crop, (float(row["x"]), float(row["y"])), _USUAL_RADIUS, row["side"]))
        else:
            disc = find_anatomy(working_copy(crop)).discs[0]
            eyes.append(Eye(crop, (disc.x, disc.y), disc.radius if disc.score > 0 and not table else 0.0))
    return eyes


def draw_eyes(number: int, *, size_px: int, variety: Variety) -> list[Eye]:
    """Draw eyes that can be read and whose disc is in the field."""
    eyes: list[Eye] = []
    index = 1
    while len(eyes) < number:
        drawn = draw_phantom(seed=7, index=index, image_size_px=size_px * 9 // 8, variety=variety)
        index += 3
        truth = drawn.truth
        middle = np.array([truth.center_x_px, truth.center_y_px])
        x, y = ((np.array([truth.disc_x_px, truth.disc_y_px]) - middle) / truth.radius_px).tolist()
        if all(drawn.true_labels[name] for name in READABLE) and np.hypot(x, y) < 0.95:
            crop = crop_to_field_of_view(
                drawn.pixels, Circle(truth.center_x_px, truth.center_y_px, truth.radius_px), size_px
            )
            radius = truth.disc_radius_px / truth.radius_px
            eyes.append(Eye(crop, (x, y), radius, _SIDES[drawn.true_labels["eye_side"]]))
    return eyes


def asked(eye: Eye) -> dict[str, int | None]:
    """Return the labels of a readable photograph of this eye."""
    row: dict[str, int | None] = dict.fromkeys(READABLE, 1)
    return row | {"eye_side": _SIDES.index(eye.side) if eye.side else None}


def share(name: str, count: int, total: int) -> dict[str, float]:
    """Print a share with its interval; returns it for the JSON line."""
    low, high = share_interval(count, max(total, 1))
    print(f"  {name:34} {count:5} of {total:5}  {count / max(total, 1):.4f} ({low:.4f} to {high:.4f})")
    return {"count": count, "n": total, "low": round(low, 4), "high": round(high, 4)}


def measure(title: str, eyes: Sequence[Eye], *, planted: int) -> dict[str, object]:
    """Print false alarms and recall on some eyes."""
    print(f"{title}: {len(eyes)}")
    alarms = [
        verdict.faults for eye in eyes if not (verdict := examine(eye.pixels, asked(eye), DEFAULT_LABEL_SCHEMA)).passed
    ]
    found: dict[str, object] = {"false alarms": share("false alarms", len(alarms), len(eyes))}
    if alarms:
        print("    as", dict(Counter(fault.value for faults in alarms for fault in faults)))
    known = [eye for eye in eyes if eye.radius]
    total = noticed = named = 0
    for fault, (plant, names) in FAULTS.items():
        able = [eye for eye in known if eye.side] if fault == "wrong side" else known
        if not able:
            continue
        results = []
        for number in range(planted):
            draw = keyed_generator(11, f"benchmark.{fault}", index=number)
            eye = able[number % len(able)]
            results.append(examine(plant(eye, draw), asked(eye), DEFAULT_LABEL_SCHEMA).faults)
        right = sum(bool(set(faults) & set(names)) for faults in results)
        seen = sum(bool(faults) for faults in results)
        found[fault] = share(f"{fault}, named", right, planted) | {"refused": seen}
        total, noticed, named = total + planted, noticed + seen, named + right
    found["refused of all planted"] = share("refused of all planted", noticed, total)
    found["named of all planted"] = share("named of all planted", named, total)
    return found


def speed(eyes: Sequence[Eye]) -> float:
    """Return the milliseconds of processor time of a look at an image, on one core."""
    began = time.process_time()
    for eye in eyes[:100]:
        examine(eye.pixels, asked(eye), DEFAULT_LABEL_SCHEMA)
    spent = 1000 * (time.process_time() - began) / len(eyes[:100])
    print(f"{spent:.1f} ms an image of {len(eyes[0].pixels)} px")
    return spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--places", type=Path, help="table of their discs: image,x,y,side")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--planted", type=int, default=334, help="of each kind and source; 6 kinds")
    parser.add_argument("--phantoms", type=int, default=200, help="of each variety")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"name": "examination", "size_px": given.size, "half": given.half}
    if given.data is not None:
        eyes = read_photographs(given.data, half=given.half, size_px=given.size, places=given.places)
        result["photographs"] = measure("photographs", eyes, planted=given.planted)
        result["ms"] = round(speed(eyes), 2)
    for variety in ("demo", "wide") if given.phantoms else ():
        eyes = draw_eyes(given.phantoms, size_px=given.size, variety=variety)
        result[variety] = measure(f"phantoms, {variety}", eyes, planted=given.planted)
        result["ms"] = round(speed(eyes), 2)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
