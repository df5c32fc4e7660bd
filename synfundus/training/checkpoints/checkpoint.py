"""Checkpoints: safetensors partitions, a two-phase commit, resume on any number of ranks.

All ranks write into a temporary folder and fsync; an all-reduced flag says whether every rank could; rank 0 then
writes ``MANIFEST.json`` with the hash of each file and renames the folder, which is the commit. An object store has no
rename: there all ranks write under the final name, and the manifest, written last, is the commit; a folder without one
was left by a kill. A reader takes the newest folder whose manifest verifies. No pickle anywhere (ADR-0008).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synfundus.distributed.agreement import together
from synfundus.distributed.engine import MOMENT_NAMES, ZeroEngine
from synfundus.distributed.flat_layout import FlatGroup, FlatLayout, gather_named
from synfundus.distributed.world import World
from synfundus.errors import StorageError
from synfundus.storage import documents, filesystem
from synfundus.training.checkpoints.search import (
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    STATE_NAME,
    checkpoint_name,
    compare,
    list_checkpoints,
    sha256_of,
)
from synfundus.training.checkpoints.stored_weights import ModelPart, PartitionSource, model_files, partition_name
from synfundus.training.ema import ShardedEma

T = TypeVar("T")


@dataclass(frozen=True)
class StateCopy:
    """A copy of a run's state in host memory; later steps do not change it.

    Attributes:
        images_seen: Images trained on.
        layout: The place of each parameter in the flat vectors.
        partitions: This rank's slices, fp32, by their name in the file.
        document: Content of state.json.
    """

    images_seen: int
    layout: FlatLayout
    partitions: Mapping[str, Tensor]
    document: Mapping[str, Any]


def copy_state(
    *, engine: ZeroEngine, ema: ShardedEma, images_seen: int, state: Mapping[str, Any], world: World
) -> StateCopy:
    """Copy the state of a run. Not collective.

    Args:
        engine: Weights and moments.
        ema: Averaged weights.
        images_seen: Images trained on.
        state: What else a resume needs; plain values.
        world: The job.
    """
    partitions: dict[str, Tensor] = {}
    averages = ema.vectors()
    for number, (master, moments) in enumerate(zip(engine.masters(), engine.moments(), strict=True)):
        vectors = {"master": master, **moments, **{name: slices[number] for name, slices in averages.items()}}
        partitions |= {f"group{number}.{name}": host_copy(vector) for name, vector in vectors.items()}
    document = {
        "format": FORMAT_NAME,
        "schema_version": FORMAT_VERSION,
        "images_seen": images_seen,
        "world_size": world.size,
        "optimizer_steps": engine.optimizer_steps(),
        "layout": engine.layout.to_document(),
        "state": dict(state),
    }
    return StateCopy(images_seen, engine.layout, partitions, document)


def _write_all(folder: str, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Write files into a folder; returns their sizes and hashes."""
    entries = {}
    for name, data in files.items():
        try:
            filesystem.write_bytes(filesystem.join(folder, name), data)
        except StorageError as error:
            raise StorageError(f"{error.message}, of {len(data):,} to be written", where=error.where) from error
        entries[name] = {"bytes": len(data), "sha256": sha256_of(data)}
    return entries


def write_checkpoint(
    root: str,
    copy: StateCopy,
    *,
    keep: int,
    world: World,
    damaged: Collection[str] = frozenset(),
    parts: Sequence[ModelPart] = (),
) -> str:
    """Write a checkpoint and return its folder. Collective.

    Args:
        root: Folder of the checkpoints.
        copy: This rank's part of the state.
        keep: Checkpoints to keep, at least 2.
        world: The job. A background thread needs its own process group: its collectives must not mix with the steps'.
        damaged: Names of folders that do not count as kept, because they do not verify.
        parts: Parts of the network that get a folder diffusers can open.

    Raises:
        StorageError: A rank could not write; nothing was committed and the previous checkpoint is untouched.
    """
    final = filesystem.join(root, checkpoint_name(copy.images_seen))
    folder = f"{final}.tmp" if filesystem.is_local(root) else final
    files = {partition_name(world.rank, world.size): safetensors.torch.save(dict(copy.partitions))}
    masters = [copy.partitions[f"group{number}.master"] for number in range(len(copy.layout.groups))]
    weights = gather_named(copy.layout, masters, world)
    if weights is not None:
        files |= model_files(weights, parts)
        files[STATE_NAME] = documents.dump_json(copy.document)

    def write() -> dict[str, dict[str, Any]]:
        try:
            if world.rank == 0:
                _drop(folder)  # the remains of a killed save
        finally:
            world.barrier()
        return _write_all(folder, files)

    def read_back() -> None:
        problem = compare(final, {name: listing[name] for name in files})
        if problem:
            raise StorageError(f"the files differ from what was written: {problem}", where=final)

    listing = {name: entry for own in _all_or_raise(write, folder, world, clear=True) for name, entry in own.items()}
    # under its final name it may already be committed: then it stays
    _all_or_raise(lambda: _commit(root, folder, final, listing), folder, world, only_rank_0=True, clear=folder != final)
    # older checkpoints are removed only once the new one is known to be intact
    advice = "check the disk; earlier checkpoints are untouched and a damaged one is skipped:"
    _all_or_raise(read_back, final, world, clear=False, advice=advice)
    uncounted = set(damaged) - {checkpoint_name(copy.images_seen)}
    _all_or_raise(lambda: _retain(root, keep, uncounted), final, world, only_rank_0=True, clear=False)
    return final


def _drop(folder: str) -> None:
    """Remove a folder, its manifest first, so that half a folder is never taken for a checkpoint."""
    filesystem.remove(filesystem.join(folder, MANIFEST_NAME))
    filesystem.remove(folder, recursive=True)


def _all_or_raise(
    work: Callable[[], T], folder: str, world: World, *, clear: bool, only_rank_0: bool = False, advice: str = ""
) -> list[T]:
    """Do a part of a save, return every rank's result; raise on all if one failed, so that none waits. Collective."""
    result: T | None = None
    failure: StorageError | None = None
    if world.rank == 0 or not only_rank_0:
        try:
            result = work()
        except StorageError as error:
            failure = error
    reports = world.all_gather((result, None if failure is None else str(failure)))
    failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(reports) if text is not None]
    if not failures:
        return [cast("T", result) for result, _ in reports]
    advice = advice or f"{filesystem.space_advice('; '.join(failures))}; the previous checkpoint is untouched"
    if world.rank == 0 and clear:
        with contextlib.suppress(StorageError):  # readers ignore a folder without a manifest
            _drop(folder)
    raise StorageError(
        f"a checkpoint could not be written ({'; '.join(failures)})",
        where=folder,
        hint=f"{advice}, then run the same command again to resume",
    ) from failure


def _commit(root: str, folder: str, final: str, listing: Mapping[str, Any]) -> None:
    """Write the manifest and publish the folder."""
    if folder == final:
        _check_sizes(folder, listing)
    manifest = {"format": FORMAT_NAME, "schema_version": FORMAT_VERSION, "files": dict(sorted(listing.items()))}
    filesystem.write_bytes(filesystem.join(folder, MANIFEST_NAME), documents.dump_json(manifest))
    if folder != final:
        _publish_local(folder, final, listing)
    filesystem.write_bytes(filesystem.join(root, "latest"), (final.rsplit("/", 1)[-1] + "\n").encode())


def _check_sizes(folder: str, listing: Mapping[str, Any]) -> None:
    """Compare the sizes in the store with what was written.

    Raises:
        StorageError: An object is missing or has a different size.
    """
    found = filesystem.list_files(folder)
    for name, entry in listing.items():
        if found.get(name) != entry["bytes"]:
            raise StorageError(
                f"the store holds {found.get(name, 'none')} of {entry['bytes']} bytes",
                where=filesystem.join(folder, name),
            )


def _publish_local(folder: str, final: str, names: Iterable[str]) -> None:
    """Rename the finished folder into place and make the rename durable."""
    source, target = filesystem.local_path(folder), filesystem.local_path(final)
    try:
        if target.exists():
            filesystem.remove(final, recursive=True)
        for below in {source, *((source / name).parent for name in names)}:
            filesystem.fsync_dir(below)
        source.rename(target)
        filesystem.fsync_dir(target.parent)
    except OSError as error:
        raise StorageError(f"cannot publish: {error.strerror}", where=final) from error


def _retain(root: str, keep: int, damaged: Collection[str]) -> None:
    """Remove checkpoints older than the newest ``keep`` intact ones, and the remains of killed saves."""
    complete, left = list_checkpoints(root)
    sound = [name for name in complete if name not in damaged]
    oldest = sound[-max(2, keep) :][0]
    for name in [name for name in complete if name < oldest] + left:
        _drop(filesystem.join(root, name))


def load_checkpoint(url: str, *, engine: ZeroEngine, ema: ShardedEma, world: World) -> dict[str, Any]:
    """Load a verified checkpoint and return its state. Collective.

    It may have been saved on any number of ranks; each rank reads only the files its slices overlap.

    Raises:
        CheckpointError: It is of another network.
        StorageError: On every rank if one cannot read its part.
    """
    averages = ema.vectors()
    with together(world):
        document = documents.read_document(
            filesystem.join(url, STATE_NAME), format_name=FORMAT_NAME, version=FORMAT_VERSION
        )
        saved = FlatLayout.from_document(document["layout"])
        regroups = engine.layout.regroups(saved)
        if not regroups:
            engine.layout.require_same(saved, where=url)
        source = PartitionSource(url, saved_world_size=int(document["world_size"]))

        def own(number: int, group: FlatGroup, name: str) -> Tensor:
            if regroups:
                return source.regrouped(saved, group, name, rank=world.rank, world_size=world.size)
            return source.slice(number, group, name, rank=world.rank, world_size=world.size, saved=saved.groups[number])

        groups = [
            {name: own(number, group, name) for name in ("master", *MOMENT_NAMES, *averages)}
            for number, group in enumerate(engine.layout.groups)
        ]
        optimizer_steps = int(document["optimizer_steps"])
        state: dict[str, Any] = document["state"]
    for name, slices in averages.items():
        for mine, vectors in zip(slices, groups, strict=True):
            mine.copy_(vectors[name])
    masters = [vectors["master"] for vectors in groups]
    moments = [{name: vectors[name] for name in MOMENT_NAMES} for vectors in groups]
    engine.load_partitions(masters, moments, optimizer_steps=optimizer_steps)
    return state


_STAGE_ELEMENTS = 2**26
"""256 MiB of fp32."""


def host_copy(vector: Tensor) -> Tensor:
    """Return a copy ``[n]`` in host memory, fp32."""
    copy = torch.empty(vector.shape, dtype=torch.float32)
    if vector.device.type == "cuda":
        copy_by_pieces(vector.detach(), copy, _stage(), wait=torch.cuda.current_stream().synchronize)
        return copy
    return copy.copy_(vector.detach())


@functools.cache
def _stage() -> Tensor:
    """Return the pinned buffer a GPU copies into.

    Pinned vectors would do too, but torch rounds each up to a power of two and never frees it.
    """
    return torch.empty(_STAGE_ELEMENTS, dtype=torch.float32, pin_memory=True)


def copy_by_pieces(source: Tensor, target: Tensor, stage: Tensor, *, wait: Callable[[], None]) -> None:
    """Copy a vector through a buffer.

    Args:
        source: ``[n]``.
        target: ``[n]``.
        stage: The buffer ``[k]``: ``k`` elements are copied at a time.
        wait: Returns once the copy into the buffer is complete.
    """
    for there, here in zip(torch.split(source, len(stage)), torch.split(target, len(stage)), strict=True):
        piece = stage[: len(there)]
        piece.copy_(there, non_blocking=True)
        wait()
        here.copy_(piece)
