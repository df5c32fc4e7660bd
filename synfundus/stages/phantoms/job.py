"""`synfundus phantoms`: a folder of drawn fundus photographs with a label table and the truth behind it.

The folder looks like the data of a clinic: ``images/000000.png ...`` and ``labels.csv`` (an empty cell is an unknown
label). ``truth.jsonl`` beside it has what no clinic knows: every true label, and all positions. The same command
resumes a stopped run and keeps finished photographs.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.samples.stores import is_complete_png
from synfundus.config.photographs import PhantomsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.labels.plan import label_table
from synfundus.phantoms.draw import LABEL_NAMES, Variety, draw_phantom
from synfundus.pictures.sheets import encode_png
from synfundus.processes.pool import process_map
from synfundus.stages import Summary
from synfundus.storage import documents, filesystem
from synfundus.telemetry.console import Console

IMAGES_DIR = "images"
LABELS_NAME = "labels.csv"
TRUTH_NAME = "truth.jsonl"
REQUEST_NAME = "phantoms.json"
_PARTS_DIR = ".parts"
_FORMAT = "synfundus-phantoms"
_VERSION = 1
_CLAIM = Claim(REQUEST_NAME, _FORMAT, _VERSION, others="other phantoms")
_CHUNK_IMAGES = 32
_COMPRESS_LEVEL = 3
_PNG_TEXT = {"synthetic": "drawn", "Software": "synfundus phantoms", "Source": "drawn, not photographed"}

Row = dict[str, Any]


@dataclass(frozen=True)
class _Chunk:
    """Consecutive photographs one process draws."""

    out: str
    seed: int
    image_size_px: int
    variety: Variety
    indices: tuple[int, ...]


def file_name(index: int) -> str:
    """Return the name of a photograph below its folder."""
    return f"{IMAGES_DIR}/{index:06d}.png"


def _draw_chunk(chunk: _Chunk) -> list[Row]:
    """Draw, write and describe the photographs of a chunk; its rows are saved after its last photograph."""
    rows = []
    for index in chunk.indices:
        phantom = draw_phantom(seed=chunk.seed, index=index, image_size_px=chunk.image_size_px, variety=chunk.variety)
        data = encode_png(phantom.pixels, text=_PNG_TEXT, compress_level=_COMPRESS_LEVEL)
        filesystem.write_bytes(filesystem.join(chunk.out, file_name(index)), data)
        rows.append(
            {
                "index": index,
                "file": file_name(index),
                "patient_id": phantom.patient_id,
                "visit": phantom.visit,
                "labels": phantom.labels,
                "true_labels": phantom.true_labels,
                "truth": asdict(phantom.truth),
            }
        )
    documents.write_lines(filesystem.join(chunk.out, _PARTS_DIR, f"{chunk.indices[0]:06d}.jsonl"), rows)
    return rows


def _known_rows(out: str, num_images: int) -> dict[int, Row]:
    """Return the rows of photographs that an earlier run finished."""
    urls = [filesystem.join(out, TRUTH_NAME)]
    parts = filesystem.join(out, _PARTS_DIR)
    urls += [filesystem.join(parts, name) for name in filesystem.list_names(parts) if name.endswith(".jsonl")]
    rows: dict[int, Row] = {}
    for url in urls:
        if not filesystem.exists(url):
            continue
        for row in documents.read_lines(url):
            index = int(row["index"])
            if index < num_images and is_complete_png(filesystem.join(out, file_name(index))):
                rows[index] = row
    return rows


def _request(section: PhantomsConfig, seed: int) -> dict[str, Any]:
    # folders from before there was a choice record none
    chosen = {} if section.variety == "demo" else {"variety": section.variety}
    return {"seed": seed, "image_size_px": section.image_size_px, **chosen}


def compare_claim(section: PhantomsConfig, seed: int) -> None:
    """Refuse a folder of other phantoms, as the run does."""
    _CLAIM.compare(str(section.out), _request(section, seed))


def _draw_folder(section: PhantomsConfig, out: str, seed: int, console: Console) -> Summary:
    """Draw a folder of phantoms; existing ones are kept."""
    began = time.perf_counter()
    _CLAIM.make(out, _request(section, seed))
    filesystem.make_dir(filesystem.join(out, IMAGES_DIR))
    num_images = section.num_images
    rows = _known_rows(out, num_images)
    missing = [index for index in range(num_images) if index not in rows]
    num_kept = len(rows)
    chunks = [
        _Chunk(out, seed, section.image_size_px, section.variety, tuple(missing[at : at + _CHUNK_IMAGES]))
        for at in range(0, len(missing), _CHUNK_IMAGES)
    ]
    with (
        process_map(min(section.workers, len(chunks)) if len(chunks) > 1 else 0) as mapped,
        console.progress("drawing phantoms", total=num_images, unit="images", start=num_kept) as progress,
    ):
        for drawn in mapped(_draw_chunk, chunks):
            rows.update((row["index"], row) for row in drawn)
            progress.advance(len(drawn))
    ordered = [rows[index] for index in range(num_images)]
    documents.write_lines(filesystem.join(out, TRUTH_NAME), ordered)
    columns = {name: [row[name] for row in ordered] for name in ("file", "patient_id", "visit")}
    table = label_table([row["labels"] for row in ordered], LABEL_NAMES, **columns)
    filesystem.write_bytes(filesystem.join(out, LABELS_NAME), table)
    filesystem.remove(filesystem.join(out, _PARTS_DIR), recursive=True)
    seconds = time.perf_counter() - began
    num_patients = len({row["patient_id"] for row in ordered})
    console.message(f"{num_images} phantoms of {num_patients} patients in {out} ({num_kept} were there)")
    return {
        "out": out,
        "num_images": num_images,
        "num_kept": num_kept,
        "num_patients": num_patients,
        "seconds": round(seconds, 3),
        "images_per_s": round((num_images - num_kept) / seconds, 1),
    }


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Draw the phantoms ``config.phantoms`` asks for; rank 0 works, the others wait.

    Collective: every rank calls it.

    Raises:
        ConfigError: No output folder, or one that holds phantoms of another seed, size or variety.
        LaunchError: A process died twice over the same photographs.
    """
    section = config.phantoms
    if section.out is None:
        raise ConfigError("phantoms need a folder to be written to", where="phantoms.out", hint="give --out DIR")
    out = section.out
    return on_rank_0(lambda: _draw_folder(section, out, config.seed, console), world)
