"""First stage of `synfundus prepare`: all ranks read every photograph once, chunk by chunk.

A chunk is consecutive rows of the table. Its encoded images are stored in a tar of the work folder under their final
keys; a record beside it, written last, has their offsets, perceptual hashes, and the unusable photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.config.photographs import PrepareConfig
from synfundus.distributed.world import World, of_rank
from synfundus.errors import DataError
from synfundus.photographs.crosswalk import write_private
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.near_duplicates import THUMBNAIL_PX
from synfundus.photographs.photograph_task import PhotographTask, PreparedPhotograph, prepare_photograph, reject_of_lost
from synfundus.photographs.preparation import Unusable
from synfundus.photographs.transforms import EYE_SIDE
from synfundus.processes.pool import ProcessMap, process_map
from synfundus.stages.prepare.places import RECORD_FORMAT, RECORD_VERSION, PreparePaths
from synfundus.stages.prepare.plan import InputPlan
from synfundus.storage import documents, filesystem
from synfundus.storage.tarshard import TarShardWriter
from synfundus.telemetry.console import Console, Progress

Span = tuple[int, int, int]
"""Offset, bytes and crc32 of a member in a tar."""

_THUMBNAIL_BYTES = THUMBNAIL_PX**2


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in the work folder.

    Attributes:
        sample: The photograph, with its final labels.
        chunk: Number of its chunk.
        spans: Spans of its members in the tar of the chunk, json first.
        file_sha256: Hash of the file.
        image_sha256: Hash of the encoded image.
        perceptual_hash: Perceptual hash.
        diameter_px: Diameter of the field of view in the photograph.
        flags: Reasons for a person to check it.
    """

    sample: PlannedSample
    chunk: int
    spans: tuple[Span, Span]
    file_sha256: str
    image_sha256: str
    perceptual_hash: bytes
    diameter_px: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class ChunkResults:
    """The results of the first stage, in table order.

    Attributes:
        images: Images of the usable photographs.
        thumbnails: Their thumbnails, uint8 ``[n, 32, 32]``.
        unusable: The other photographs.
    """

    images: list[StoredImage]
    thumbnails: NDArray[np.uint8]
    unusable: list[Unusable]


def pending_chunks(paths: PreparePaths, num_chunks: int) -> list[int]:
    """Return the chunks without a record."""
    found = filesystem.list_files(paths.chunks)
    return [
        number for number in range(num_chunks) if not {f"{number:06d}.done.json", f"{number:06d}.tar"} <= set(found)
    ]


def prepare_chunks(
    section: PrepareConfig,
    paths: PreparePaths,
    collection: str,
    chunks: Sequence[tuple[int, int]],
    world: World,
    console: Console,
) -> None:
    """Prepare chunks with a pool of processes.

    Args:
        section: Options of `prepare`.
        paths: Locations.
        collection: Name of the collection.
        chunks: (number, number of photographs) of each chunk of this rank.
        world: The ranks.
        console: Shows progress.

    Raises:
        LaunchError: Processes cannot be started.
        StorageError: The disk or the store failed.
    """
    total = sum(number for _, number in chunks)

    def tasks() -> Iterator[PhotographTask]:
        for chunk, _ in chunks:
            for row in documents.read_lines(paths.chunk_url(chunk, "plan.jsonl")):
                yield PhotographTask(
                    sample=PlannedSample(**row),
                    source=paths.source,
                    image_size_px=section.image_size_px,
                    image_format=section.image_format,
                    max_pixels=section.max_pixels,
                    collection=collection,
                    burned_text=section.burned_text,
                    allow_synthetic=section.allow_synthetic,
                )

    with (
        process_map(min(section.workers, total), limit_s=section.photograph_limit_s) as mapped,
        console.progress(of_rank("preparing photographs", world), total=total, unit="images") as progress,
    ):
        # one stream of tasks over all chunks: no process waits for the end of a chunk
        results = _results(mapped, tasks(), console)
        for chunk, num_samples in chunks:
            _write_chunk(section, paths, chunk, num_samples, results, progress)


def _results(
    mapped: ProcessMap, tasks: Iterator[PhotographTask], console: Console
) -> Iterator[PreparedPhotograph | Unusable]:
    for result in mapped(prepare_photograph, tasks, lost=reject_of_lost):
        if isinstance(result, Unusable) and result.stage == "work":
            # by its key: file names may contain patient names, and logs are widely read
            console.warning(f"photograph {result.sample.key} is rejected, {result.reason}: {result.detail}")
        yield result


def _write_chunk(
    section: PrepareConfig,
    paths: PreparePaths,
    number: int,
    num_samples: int,
    results: Iterator[PreparedPhotograph | Unusable],
    progress: Progress,
) -> None:
    """Write the tar, the thumbnails and finally the record of a chunk from its results."""
    rows: list[dict[str, Any]] = []
    unusable: list[dict[str, Any]] = []
    thumbnails: list[bytes] = []
    with filesystem.atomic_write(paths.chunk_url(number, "tar")) as stream:
        writer = TarShardWriter(stream, extensions=("json", section.image_format))
        for _ in range(num_samples):
            result = next(results)
            if isinstance(result, Unusable):
                reject = {"stage": result.stage, "reason": result.reason, "detail": result.detail}
                unusable.append({"key": result.sample.key, **reject})
            else:
                writer.add(result.sample.key, result.members)
                thumbnails.append(result.thumbnail)
                rows.append(_row(result))
            progress.advance()
        index, _, _ = writer.finish()
    for row, spans in zip(rows, np.stack([index.offsets, index.sizes, index.crc32], axis=-1).tolist(), strict=True):
        row["spans"] = spans
    write_private(paths.chunk_url(number, "thumbnails"), b"".join(thumbnails))
    record = {"format": RECORD_FORMAT, "schema_version": RECORD_VERSION, "looked_at": rows, "unusable": unusable}
    write_private(paths.chunk_url(number, "done.json"), documents.dump_json(record))


def _row(result: PreparedPhotograph) -> dict[str, Any]:
    """Return the row of a photograph in the record."""
    return {
        "key": result.sample.key,
        "eye_side": result.sample.labels.get(EYE_SIDE),
        "file_sha256": result.file_sha256,
        "image_sha256": result.image_sha256,
        "look": result.perceptual_hash.hex(),
        "diameter_px": result.diameter_px,
        "flags": list(result.flags),
    }


def read_chunks(paths: PreparePaths, plan: InputPlan, thumbnails: NDArray[np.uint8]) -> ChunkResults:
    """Read the records of all chunks.

    Args:
        paths: Locations.
        plan: The inputs.
        thumbnails: uint8 ``[n, 32, 32]`` with a row for every input; filled from the start.

    Raises:
        DataError: A chunk is missing, or its record does not match the inputs.
    """
    images: list[StoredImage] = []
    unusable: list[Unusable] = []
    pending = pending_chunks(paths, plan.num_chunks)
    if pending:
        raise DataError(f"chunk {pending[0]} was not prepared", where=paths.chunks, hint="run the command again")
    for number in range(plan.num_chunks):
        samples = {sample.key: sample for sample in plan.chunk(number)}
        url = paths.chunk_url(number, "done.json")
        record = documents.read_document(url, format_name=RECORD_FORMAT, version=RECORD_VERSION)
        first = len(images)
        images += [_stored_image(samples.pop(row["key"]), number, row) for row in record["looked_at"]]
        unusable += [Unusable(samples.pop(row.pop("key")), **row) for row in record["unusable"]]
        data = filesystem.read_bytes(paths.chunk_url(number, "thumbnails"))
        if samples or len(data) != (len(images) - first) * _THUMBNAIL_BYTES:
            raise DataError("the record does not match its chunk", where=url, hint=f"remove {paths.work}")
        pixels = np.frombuffer(data, dtype=np.uint8)
        thumbnails[first : len(images)] = pixels.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    return ChunkResults(images, thumbnails[: len(images)], unusable)


def _stored_image(sample: PlannedSample, chunk: int, row: Mapping[str, Any]) -> StoredImage:
    if sample.labels.get(EYE_SIDE) != row["eye_side"]:
        sample = replace(sample, labels={**sample.labels, EYE_SIDE: row["eye_side"]})
    json_span, image_span = (tuple(span) for span in row["spans"])
    return StoredImage(
        sample=sample,
        chunk=chunk,
        spans=(json_span, image_span),
        file_sha256=row["file_sha256"],
        image_sha256=row["image_sha256"],
        perceptual_hash=bytes.fromhex(row["look"]),
        diameter_px=row["diameter_px"],
        flags=tuple(row["flags"]),
    )
