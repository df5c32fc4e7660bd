"""`prepare` against a bare loop of decode, resize and encode over the same JPEG files; and two ranks against one.

Ours reads, decodes, finds the field of view, crops, masks, looks for writing, encodes, hashes, compares every
photograph with every other one, divides patients, and writes shards, index, manifest and crosswalk, from the first
read of the table to the manifest: with one worker process, start included. The bare loop is Pillow with its defaults:
open, convert, resize, save as PNG. The goal: at least 0.8 of the bare loop, and 1.8 times as fast with two ranks.

Two figures without a goal stand beside them. The bare loop that writes its PNG files as `prepare` does, which is
faster than Pillow's default, says what everything but the pixels costs. Two bare loops at once, each in a process of
its own over half the files, say how much more two cores of this machine do than one: no two ranks can do better.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import interleaved, rate, report
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.phantoms.draw import LABEL_NAMES, draw_phantom
from synfundus.stages.prepare import job as prepare
from synfundus.telemetry.console import SilentConsole

NUM_PHANTOMS = 30
PHOTOGRAPH_PX = 1200
IMAGE_SIZE_PX = 512
PAIRS = 3


def views_of(pixels: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the eight rotations and reflections of a photograph: other pixels at the price of one drawing."""
    for turned in (pixels, pixels[:, ::-1]):
        for quarter in range(4):
            yield np.ascontiguousarray(np.rot90(turned, quarter))


def write_photographs(folder: Path) -> list[Path]:
    """Write JPEG files and their table."""
    files, rows = [], []
    for index in range(NUM_PHANTOMS):
        phantom = draw_phantom(seed=0, index=index, image_size_px=PHOTOGRAPH_PX)
        for view, pixels in enumerate(views_of(phantom.pixels)):
            path = folder / f"{index:04d}-{view}.jpg"
            Image.fromarray(pixels).save(path, quality=92)
            files.append(path)
            rows.append({"file": path.name, "patient_id": phantom.patient_id, **phantom.labels})
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("file", "patient_id", *LABEL_NAMES))
        writer.writeheader()
        writer.writerows(rows)
    return files


def bare_loop(files: list[Path], **options: int) -> int:
    """Decode, resize and encode; returns the number of files."""
    for path in files:
        stream = io.BytesIO()
        with Image.open(path) as image:
            small = image.convert("RGB").resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.LANCZOS)
        small.save(stream, "PNG", **options)
    return len(files)


def bare_processes_rate(files: list[Path], processes: int) -> float:
    """Return images per second of bare loops side by side, each over its share of the files, start not counted."""
    shares = [files[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(bare_loop, [share[:4] for share in shares]))  # both are up
        return rate(lambda: sum(pool.map(bare_loop, shares)))


def ranks_rate(folder: Path, out: Path, ranks: int) -> float:
    """Return images per second of a run of the command line, one process a rank, from plan to manifest."""
    options = ["--source", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out), "--workers", "0"]
    command = [sys.executable, "-m", "synfundus", "prepare", *options, "--procs-per-node", str(ranks), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["images_per_s"])


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photographs")
        folder.mkdir()
        files = write_photographs(folder)

        def ours(number: int) -> float:
            section = {"source": str(folder), "labels": str(folder / "labels.csv"), "out": f"{scratch}/set-{number}"}
            config = RunConfig.model_validate({"prepare": {**section, "image_size_px": IMAGE_SIZE_PX, "workers": 1}})
            return rate(lambda: int(prepare.run(config, LocalWorld(), SilentConsole())["num_samples"]))

        ours_rate, bare_rate, _ = interleaved(ours, lambda _: rate(lambda: bare_loop(files)), pairs=PAIRS)
        same_rate = rate(lambda: bare_loop(files, compress_level=6, compress_type=zlib.Z_RLE))
        print(f"  against a bare loop that writes PNG as we do ({same_rate:.1f} images/s): {ours_rate / same_rate:.3f}")
        machine = statistics.median(bare_processes_rate(files, 2) / bare_processes_rate(files, 1) for _ in range(PAIRS))
        print(f"  two bare loops at once: {machine:.3f} times one, the most two ranks could reach")
        two, one, _ = interleaved(
            lambda number: ranks_rate(folder, Path(scratch, f"two-{number}"), 2),
            lambda number: ranks_rate(folder, Path(scratch, f"one-{number}"), 1),
            pairs=PAIRS,
        )
    report(name="prepare_two_ranks", ours=two, reference=one, goal=1.8, unit="images/s")
    report(name="prepare", ours=ours_rate, reference=bare_rate, goal=0.8, unit="images/s")


if __name__ == "__main__":
    main()
