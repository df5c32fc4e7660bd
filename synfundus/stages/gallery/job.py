"""`synfundus gallery`: a static folder, opened from the file system, on which people look through a set.

The images go in parts of 64 to worker processes, which write sheets of thumbnails and of larger views and a record of
each part; a stopped run keeps the parts that have one. At the end the records become columns of the page's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synfundus.artifacts.claim import Claim
from synfundus.config.sample_sets import GalleryConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import DataError
from synfundus.processes.pool import process_map
from synfundus.stages import Summary
from synfundus.stages.gallery.embedding import principal_plane
from synfundus.stages.gallery.page import DATA_VERSION, Group, data_script, write_data, write_page
from synfundus.stages.gallery.sheets import (
    PART_IMAGES,
    RECORD_FORMAT,
    THUMBNAIL_PX,
    Record,
    SheetTask,
    large_tile_px,
    make_sheets,
    miniatures_of,
    record_name,
)
from synfundus.stages.gallery.sources import Collection, open_real, open_samples
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import REJECTS_NAME
from synfundus.telemetry.console import Console

REQUEST_NAME = "request.json"
RESULT_NAME = "gallery.json"
_FORMAT = "synfundus-gallery"
_VERSION = 1
_CLAIM = Claim(REQUEST_NAME, _FORMAT, _VERSION, others="a gallery of other images")
_MOST_NAMED = 5


@dataclass(frozen=True)
class _Planned:
    """The images of one kind and what is made of them."""

    key: str
    collection: Collection
    large_px: int

    def numbers(self) -> range:
        """Return the numbers of the parts."""
        return range(-(-len(self.collection) // PART_IMAGES))

    def task(self, number: int, out: str, *, full: bool) -> SheetTask:
        """Return the task of a part."""
        first = number * PART_IMAGES
        part = self.collection.part(range(first, min(first + PART_IMAGES, len(self.collection))))
        return SheetTask(part, number, out, self.key, self.collection.mark, self.large_px, full)


def _plan(section: GalleryConfig) -> list[_Planned]:
    """Open the sets.

    Raises:
        ConfigError: There are no samples, or their labels mean something else than those of the photographs.
        DataError: A set cannot be read.
    """
    found = {"synthetic": open_samples(require(section.samples, flag="--samples", key="gallery.samples"))}
    if section.real is not None:
        found["real"] = open_real(section.real, found["synthetic"])
    return [
        _Planned(key, one, large_tile_px(section.zoom_px, one.image_size_px, full=section.full_images))
        for key, one in found.items()
    ]


def _request(section: GalleryConfig, planned: Sequence[_Planned]) -> dict[str, Any]:
    sets = {one.key: {"identity": one.collection.identity, "num_images": len(one.collection)} for one in planned}
    tiles = {"tile_px": THUMBNAIL_PX, "zoom_px": section.zoom_px, "full_images": section.full_images}
    return {**sets, **tiles, "data_version": DATA_VERSION}


def compare_claim(section: GalleryConfig) -> None:
    """Refuse a folder of another gallery, as the run does."""
    _CLAIM.compare(str(section.out), _request(section, _plan(section)))


def rehearse(section: GalleryConfig) -> str:
    """Open the sets and say what would be made; writes nothing."""
    planned = _plan(section)
    lines = [
        f"{one.key}: {len(one.collection):,} images of {one.collection.url}, {len(one.numbers()):,} sheets"
        for one in planned
    ]
    return "\n".join(["# gallery", *lines, "", ""])


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Make a gallery.

    Returns:
        Number of images shown and rejected, of each kind; ``note`` is what is to be said of patients.

    Raises:
        ConfigError: There are no samples, or the folder holds something else.
        DataError: No image can be shown.
        LaunchError: A process died twice over the same images.
    """
    del world
    return make_gallery(config.gallery, console)


def make_gallery(section: GalleryConfig, console: Console) -> Summary:
    """Make a gallery; see `run`."""
    out = require(section.out, flag="--out", key="gallery.out")
    planned = _plan(section)
    _CLAIM.make(out, _request(section, planned))
    place = filesystem.join(out, RESULT_NAME)
    if filesystem.exists(place):
        done = documents.read_document(place, format_name=_FORMAT, version=_VERSION)
        write_page(out)  # as this version makes it
        console.message(f"the gallery in {out} was there")
        return {"out": out, "shown": done["shown"], "rejected": done["rejected"], "note": done["note"]}
    records = _records(planned, out, section, console)
    groups, variance = _groups(planned, records, full=section.full_images)
    rejects = [
        {"set": key, "name": name, "reason": reason}
        for key, found in records.items()
        for record in found
        for _, name, reason in record["rejects"]
    ]
    shown = {group.key: len(group.names) for group in groups}
    if not shown["synthetic"]:
        raise DataError(
            f"none of {len(planned[0].collection):,} images can be shown: {rejects[0]['reason']}",
            where=planned[0].collection.url,
        )
    note = next((one.collection.note for one in planned if one.collection.note), "")
    write_data(out, data_script(groups, variance=variance, about={"rejected": len(rejects), "patients": note}))
    write_page(out)
    documents.write_lines(filesystem.join(out, REJECTS_NAME), rejects)
    result = {"shown": shown, "rejected": len(rejects), "note": note}
    documents.write_document(place, result, format_name=_FORMAT, version=_VERSION)
    filesystem.remove(filesystem.join(out, "parts"), recursive=True)
    _tell(shown, rejects, note, out, console)
    return {"out": out, **result}


def _records(
    planned: Sequence[_Planned], out: str, section: GalleryConfig, console: Console
) -> dict[str, list[Record]]:
    """Make the sheets that are missing; return the records of all parts, in order, by kind of images."""
    there = filesystem.list_files(filesystem.join(out, "parts"))
    total = sum(len(one.collection) for one in planned)
    found: dict[str, dict[int, Record]] = {one.key: {} for one in planned}
    tasks = []
    for one in planned:
        for number in one.numbers():
            name = record_name(one.key, number)
            if name.rpartition("/")[2] in there:
                place = filesystem.join(out, name)
                found[one.key][number] = documents.read_document(place, format_name=RECORD_FORMAT, version=1)
            else:
                tasks.append((one, number))
    kept = sum(len(record["names"]) for records in found.values() for record in records.values())
    with (
        process_map(min(section.workers, len(tasks)) if len(tasks) > 1 else 0) as mapped,
        console.progress("making thumbnails", total=total, unit="images", start=kept) as progress,
    ):
        made = mapped(make_sheets, (one.task(number, out, full=section.full_images) for one, number in tasks))
        for (one, number), record in zip(tasks, made, strict=True):
            found[one.key][number] = record
            progress.advance(len(record["names"]))
    return {one.key: [found[one.key][number] for number in one.numbers()] for one in planned}


def _groups(
    planned: Sequence[_Planned], records: dict[str, list[Record]], *, full: bool
) -> tuple[list[Group], tuple[float, float]]:
    """Return what the page shows of each kind of images, without rejects, and the variance along the map's axes."""
    everything = [record for one in planned for record in records[one.key]]
    good = np.concatenate([_good(record) for record in everything])
    places, variance = principal_plane(miniatures_of(everything)[good])
    groups = []
    first = 0
    for one in planned:
        mine = records[one.key]
        kept = np.flatnonzero(np.concatenate([_good(record) for record in mine]))
        names = [name for record in mine for name in record["names"]]
        unknown = [0] * len(one.collection.schema.labels)
        states = [row or unknown for record in mine for row in record["states"]]
        brightness = [value for record in mine for value in record["brightness"]]
        extension = next((record["extension"] for record in mine if record["extension"]), "")
        groups.append(
            Group(
                one.key,
                one.collection,
                [names[number] for number in kept],
                kept.astype(np.uint32),
                np.array(states, np.uint8)[kept],
                np.array(brightness, np.uint8)[kept],
                places[first : first + len(kept)],
                one.large_px,
                extension if full else "",
            )
        )
        first += len(kept)
    return groups, variance


def _good(record: Record) -> Any:  # noqa: ANN401 - an array of truth values
    """Return for each image of a part whether it can be shown."""
    good = np.ones(len(record["names"]), bool)
    good[[position for position, _, _ in record["rejects"]]] = False
    return good


def _tell(shown: dict[str, int], rejects: Sequence[dict[str, Any]], note: str, out: str, console: Console) -> None:
    for reject in rejects[:_MOST_NAMED]:
        console.warning(f"not shown: {reject['name']}: {reject['reason']}")
    if len(rejects) > _MOST_NAMED:
        console.warning(f"and {len(rejects) - _MOST_NAMED:,} more images are not shown: {REJECTS_NAME}")
    counts = ", ".join(f"{count:,} {key}" for key, count in shown.items())
    console.message(f"gallery of {counts} images in {out}")
    console.message(f"keep it as private as the set{f': it {note}' if note else ''}")
