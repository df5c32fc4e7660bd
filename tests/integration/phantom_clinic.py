"""A clinic whose photographs are phantoms, and the configuration that prepares them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from PIL import Image

from synfundus.config.schema import RunConfig
from synfundus.phantoms.draw import LABEL_NAMES, draw_phantom

SECRET = bytes(range(32)).hex() + "\n"


def picture(index: int, size: int = 96) -> Image.Image:
    return Image.fromarray(draw_phantom(seed=31, index=index, image_size_px=size).pixels)


def write_clinic(folder: Path, number: int, *, size: int = 96) -> list[dict[str, str]]:
    """Write phantoms, two a patient, among them what cannot be used; returns the rows of their table."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(number):
        name = f"clinic/{index:03d}.jpg"
        (folder / name).parent.mkdir(exist_ok=True)
        picture(index, size).save(folder / name, quality=92)
        rows.append({"file": name, "patient_id": f"P{index // 2}", "dr_grade": str(index % 5)})
    (folder / "clinic" / "cut.jpg").write_bytes((folder / "clinic" / "000.jpg").read_bytes()[:900])
    (folder / "clinic" / "same.jpg").write_bytes((folder / "clinic" / "001.jpg").read_bytes())
    rows[number // 2 : number // 2] = [
        {"file": "clinic/cut.jpg", "patient_id": "Q1"},
        {"file": "clinic/same.jpg", "patient_id": "Q2"},
        {"file": "clinic/gone.jpg", "patient_id": "Q3"},
    ]
    write_table(folder, rows)
    return rows


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("file", "patient_id", *LABEL_NAMES))
        writer.writeheader()
        writer.writerows(rows)


def keyed_crosswalk(folder: Path) -> str:
    """Make a crosswalk folder whose secret is known, so that two runs give the same keys."""
    folder.mkdir(parents=True)
    (folder / "secret.key").write_text(SECRET)
    return str(folder)


def config_of(folder: Path | str, out: Path | str, crosswalk: Path | str, **options: Any) -> RunConfig:
    section = {
        "source": str(folder),
        "labels": f"{folder}/labels.csv",
        "out": str(out),
        "crosswalk": str(crosswalk),
        "image_size_px": 64,
        "workers": 0,
        "shard_max_samples": 8,
        **options,
    }
    return RunConfig.model_validate({"prepare": section})
