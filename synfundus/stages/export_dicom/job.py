"""`synfundus export-dicom`: a DICOM file for each image of a sample set; a stopped run is resumed.

Images = files + named rejects. A file is whole or not there, and the same image gives the same bytes, so that files
from before are kept. ``metadata.csv`` and ``rejects.jsonl`` are written last.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.samples.dicom_objects import SIDES, GeneratedImage, dicom_file, require_pydicom
from synfundus.artifacts.samples.layouts import SampleImages, open_sample_images
from synfundus.config.sample_sets import ExportDicomConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.labels.plan import REQUESTED, LabelRow, label_table
from synfundus.photographs.decoding.synthetic_marks import is_marked_synthetic
from synfundus.processes.pool import process_map
from synfundus.shards.members import checksums_hold, decode_image
from synfundus.stages import Summary
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.telemetry.console import Console

TABLE_NAME = "metadata.csv"
REJECTS_NAME = "rejects.jsonl"
NO_SIDE, DAMAGED, MISSING, UNMARKED = "eye_side_not_requested", "damaged", "missing", "not_marked_synthetic"
_CLAIM = Claim("request.json", "synfundus-dicom", 1, others="DICOM files of other images")
_IN_A_FOLDER = 10_000
_WORTH_A_PROCESS = 256
"""Images for which it pays to start worker processes."""
_IDENTIFYING = ("model_fingerprint", "seed", "num_images", "labels_sha256", "sampler", "num_steps", "guidance_scale")


@dataclass(frozen=True)
class _Task:
    """An image for a worker.

    Attributes:
        url: Where its file goes.
        data: Its PNG.
        labels: Requested labels.
        image: Its number.
        model: Fingerprint of the model.
        seed: Seed of the set.
        version: Version of synfundus that drew it.
        date: When the set was generated, YYYYMMDD, or empty.
    """

    url: str
    data: bytes
    labels: LabelRow
    image: int
    model: str
    seed: int
    version: str
    date: str


@dataclass(frozen=True)
class _Rejected:
    image: int
    reason: str


def file_name(image: int) -> str:
    """Return the name of an image in the folder, ten thousand to a folder."""
    return f"images/{image // _IN_A_FOLDER:04d}/{image:08d}.dcm"


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write the images of ``export_dicom.samples`` as DICOM files. One process.

    Returns:
        ``out``, ``num_images``, ``num_written``, ``num_kept`` (were there already), ``rejects`` (number by reason).

    Raises:
        ConfigError: pydicom is not installed, or the folder holds something else.
        DataError: No finished sample set, or none of its images can be written.
    """
    del world
    section = config.export_dicom
    require_pydicom()
    images = open_sample_images(require(section.samples, flag="--samples", key="export_dicom.samples"))
    out = require(section.out, flag="--out", key="export_dicom.out")
    try:
        _CLAIM.make(out, _request(images))
        return _export(images, out, section.workers, console)
    finally:
        images.close()


def compare_claim(section: ExportDicomConfig) -> None:
    """Refuse a folder of other images, as the run does."""
    _CLAIM.compare(str(section.out), _request(open_sample_images(str(section.samples))))


def rehearse(section: ExportDicomConfig) -> str:
    """Describe what would be written, for a dry run; reads no image.

    Raises:
        SynfundusError: As the run.
    """
    require_pydicom()
    images = open_sample_images(str(section.samples))
    without = sum(_side(row) is None for row in images.rows)
    size = int(images.provenance.get("image_size_px", 0))
    gib = len(images) * 3 * size**2 / 2**30
    return (
        f"# images\n{len(images) - without:,} of {len(images):,} images of model {images.model[:12]}, about {gib:.2f} "
        f"GiB uncompressed\nrejects so far: {without:,} {NO_SIDE}\n\n"
    )


def _request(images: SampleImages) -> dict[str, Any]:
    return {name: images.provenance.get(name) for name in _IDENTIFYING}


def _side(row: LabelRow) -> str | None:
    side = row.get("eye_side")
    return None if side is None else SIDES.get(side)


def _export(images: SampleImages, out: str, workers: int, console: Console) -> Summary:
    there = filesystem.list_files(out)
    kept = {image for image in range(len(images)) if file_name(image) in there}
    missing = [image for image in range(len(images)) if image not in kept]
    rejects: list[_Rejected] = []
    with (
        process_map(min(workers, len(missing) // _WORTH_A_PROCESS)) as mapped,
        console.progress("writing DICOM files", total=len(images), unit="images", start=len(kept)) as bar,
    ):
        for refused in mapped(_write, _tasks(images, missing, out)):
            if refused is not None:
                rejects.append(refused)
            bar.advance()
    refused_images = {one.image for one in rejects}
    written = [image for image in range(len(images)) if image not in refused_images]
    counts = dict(sorted(Counter(one.reason for one in rejects).items()))
    rows = [{"index": one.image, "file": images.files[one.image], "reason": one.reason} for one in rejects]
    documents.write_lines(filesystem.join(out, REJECTS_NAME), rows)
    if not written:
        hint = "ask for eye_side when sampling: the standard has no value for an eye of unknown side"
        raise DataError(
            f"none of {len(images)} images can be written: {json.dumps(counts)}",
            where=filesystem.join(out, REJECTS_NAME),
            hint=hint if NO_SIDE in counts else "",
        )
    names = images.schema.names
    table = [{REQUESTED + name: images.rows[image].get(name) for name in names} for image in written]
    columns = [REQUESTED + name for name in names]
    data = label_table(table, columns, file_name=[file_name(image) for image in written])
    filesystem.write_bytes(filesystem.join(out, TABLE_NAME), data)
    num_written = len(written) - len(kept)
    console.message(f"{len(images):,} images = {len(written):,} DICOM files in {out} + {len(rejects):,} rejects")
    if counts:
        console.warning(f"rejects: {', '.join(f'{n:,} {reason}' for reason, n in counts.items())}; see {REJECTS_NAME}")
    return {
        "out": out,
        "num_images": len(images),
        "num_written": num_written,
        "num_kept": len(kept),
        "rejects": counts,
    }


def _tasks(images: SampleImages, missing: list[int], out: str) -> Iterator[_Task | _Rejected]:
    """Yield the images to write, in order; one that cannot be read as what it is instead."""
    said = images.provenance
    date = str(said.get("generated", {}).get("date", "")).replace("-", "")
    version = str(said.get("versions", {}).get("synfundus", ""))
    for image in missing:
        if _side(images.rows[image]) is None:
            yield _Rejected(image, NO_SIDE)
            continue
        try:
            data = images.read(image)
        except CorruptShard:
            yield _Rejected(image, DAMAGED)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            yield _Rejected(image, MISSING)
        else:
            url = filesystem.join(out, file_name(image))
            yield _Task(url, data, images.rows[image], image, images.model, int(said["seed"]), version, date)


def _write(task: _Task | _Rejected) -> _Rejected | None:
    """Write one image; for a process pool. Returns why it was not written."""
    if isinstance(task, _Rejected):
        return task
    if not is_marked_synthetic(task.data):
        return _Rejected(task.image, UNMARKED)
    if not checksums_hold(task.data):
        return _Rejected(task.image, DAMAGED)
    try:
        pixels = decode_image(task.data, where=task.url, extension="png")
    except CorruptShard:
        return _Rejected(task.image, DAMAGED)
    generated = GeneratedImage(
        pixels=pixels,
        labels=task.labels,
        side=str(_side(task.labels)),
        image=task.image,
        model=task.model,
        seed=task.seed,
        version=task.version,
        date=task.date,
    )
    filesystem.write_bytes(task.url, dicom_file(generated))
    return None
