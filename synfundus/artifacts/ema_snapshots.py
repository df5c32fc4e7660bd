"""Snapshots of a run's power-function averages, from which `synfundus ema` builds averages of other lengths.

::

    RUN/ema/sigma-rel-0.0500-images-000000001200.safetensors   all weights by name, fp32
    RUN/ema/sigma-rel-0.0500-images-000000001200.json          width, images, size, sha256; written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import safetensors
import safetensors.torch
from torch import Tensor

from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World
from synfundus.errors import CheckpointError, DataError, StorageError
from synfundus.storage import documents, filesystem
from synfundus.training.ema import Profile

FOLDER_NAME = "ema"
FORMAT_NAME = "synfundus-ema-snapshot"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk.

    Attributes:
        url: File of the weights.
        profile: Width and time of the average.
        num_bytes: Size of the file.
        sha256: Hash of the file.
    """

    url: str
    profile: Profile
    num_bytes: int
    sha256: str


def write_snapshot(run_url: str, weights: Mapping[str, Tensor] | None, profile: Profile, world: World) -> None:
    """Write a snapshot; one of the same width and time is replaced. Collective: rank 0 has the weights, and writes.

    Raises:
        StorageError: On every rank when rank 0 failed.
    """

    def write() -> None:
        if weights is None:
            return
        url = _weights_url(run_url, profile)
        data = safetensors.torch.save({key: tensor.contiguous() for key, tensor in weights.items()})
        document = {
            "sigma_rel": profile.sigma_rel,
            "images_seen": profile.images_seen,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            filesystem.write_bytes(url, data)
            documents.write_document(_document_url(url), document, format_name=FORMAT_NAME, version=FORMAT_VERSION)
        except StorageError as error:
            raise StorageError(
                f"a snapshot of the averages could not be written: {error.message}",
                where=filesystem.join(run_url, FOLDER_NAME),
                hint=f"{filesystem.space_advice(error.message)}, or keep fewer: raise train.ema.snapshot_every_images",
            ) from error

    on_rank_0(write, world)


def _weights_url(run_url: str, profile: Profile) -> str:
    name = f"sigma-rel-{profile.sigma_rel:.4f}-images-{profile.images_seen:012d}.safetensors"
    return filesystem.join(run_url, FOLDER_NAME, name)


def _document_url(url: str) -> str:
    return url.removesuffix(".safetensors") + ".json"


def has_snapshots(run_url: str, profiles: Iterable[Profile]) -> bool:
    """Whether these snapshots exist."""
    return all(filesystem.exists(_document_url(_weights_url(run_url, profile))) for profile in profiles)


def find_snapshots(run_url: str) -> list[Snapshot]:
    """Return the snapshots of a run, oldest first, narrow before wide.

    Raises:
        CheckpointError: There is none, or a document is malformed.
    """
    folder = filesystem.join(run_url, FOLDER_NAME)
    found = []
    for name in filesystem.list_names(folder) if filesystem.is_dir(folder) else []:
        if not name.endswith(".json"):
            continue
        url = filesystem.join(folder, name)
        try:
            document = documents.read_document(url, format_name=FORMAT_NAME, version=FORMAT_VERSION)
            profile = Profile(int(document["images_seen"]), float(document["sigma_rel"]))
            weights = url.removesuffix(".json") + ".safetensors"
            found.append(Snapshot(weights, profile, int(document["bytes"]), str(document["sha256"])))
        except (DataError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the document of a snapshot is malformed: {error}", where=url) from error
    if not found:
        raise CheckpointError(
            "this run has no snapshots of power-function averages",
            where=folder,
            hint="set train.ema.sigma_rel=[0.05,0.1] and train.ema.snapshot_every_images for the next run",
        )
    return sorted(found, key=lambda snapshot: (snapshot.profile.images_seen, snapshot.profile.sigma_rel))


def read_snapshot(snapshot: Snapshot) -> dict[str, Tensor]:
    """Read the weights of a snapshot, fp32 by name.

    Raises:
        CheckpointError: The file has changed since it was written.
    """
    name = snapshot.url.rpartition("/")[2]
    hint = f"move {name} and {name.removesuffix('.safetensors')}.json away; the others are enough"
    data = filesystem.read_bytes(snapshot.url)
    if len(data) != snapshot.num_bytes:
        raise CheckpointError(f"{len(data):,} bytes instead of {snapshot.num_bytes:,}", where=snapshot.url, hint=hint)
    if hashlib.sha256(data).hexdigest() != snapshot.sha256:
        raise CheckpointError("the weights do not match their hash", where=snapshot.url, hint=hint)
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}", where=snapshot.url, hint=hint) from error
    return weights
