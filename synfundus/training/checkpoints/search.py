"""Finds the checkpoints of a run and verifies them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World
from synfundus.errors import CheckpointError, DataError, StorageError
from synfundus.storage import documents, filesystem
from synfundus.training.checkpoints.stored_weights import partition_name

FORMAT_NAME = "synfundus-checkpoint"
FORMAT_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"
STATE_NAME = "state.json"
_FOLDER = re.compile(r"^images-(\d{12})$")
_PARTIAL = re.compile(r"^images-(\d{12})\.tmp$")


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint whose manifest verified.

    Attributes:
        url: Its folder.
        images_seen: Images trained on.
        passed_over: One line for each newer folder that is damaged.
    """

    url: str
    images_seen: int
    passed_over: tuple[str, ...]

    @property
    def damaged(self) -> frozenset[str]:
        """Names of the newer folders that are damaged."""
        return frozenset(line.partition(":")[0] for line in self.passed_over)


def checkpoint_name(images_seen: int) -> str:
    """Return the folder name of a checkpoint."""
    return f"images-{images_seen:012d}"


def sha256_of(data: bytes) -> str:
    """Return the hash as stored in a manifest."""
    return hashlib.sha256(data).hexdigest()


def list_checkpoints(root: str) -> tuple[list[str], list[str]]:
    """Return the names of the published checkpoints, oldest first, and of the remains of killed saves."""
    names = filesystem.list_names(root)
    published = [name for name in names if _FOLDER.match(name)]
    left = [name for name in names if _PARTIAL.match(name)]
    if not filesystem.is_local(root):
        manifests = {name: filesystem.join(root, name, MANIFEST_NAME) for name in published}
        left += [name for name in published if not filesystem.exists(manifests[name])]
    return [name for name in published if name not in left], left


def verify(url: str) -> str:
    """Check every file of a checkpoint against its manifest; returns what is wrong, else an empty string.

    Raises:
        StorageError: The store does not answer: nothing is known of any checkpoint in it.
    """
    try:
        manifest = documents.read_document(
            filesystem.join(url, MANIFEST_NAME), format_name=FORMAT_NAME, version=FORMAT_VERSION
        )
        return compare(url, manifest["files"]) or _unlisted(url, manifest["files"])
    except (StorageError, DataError) as error:
        filesystem.exists(filesystem.join(url, MANIFEST_NAME))  # raises if it is the store that fails
        return error.message
    except (KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST_NAME} is malformed ({error})"


def compare(url: str, listing: Mapping[str, Any]) -> str:
    """Compare files with a listing; returns what is wrong with the first that differs, else an empty string.

    Raises:
        StorageError: A file cannot be read.
    """
    for name, entry in listing.items():
        data = filesystem.read_bytes(filesystem.join(url, name))
        if len(data) != entry["bytes"]:
            return f"{name} has {len(data)} bytes instead of {entry['bytes']}"
        if sha256_of(data) != entry["sha256"]:
            return f"{name} does not match its hash"
    return ""


def _unlisted(url: str, listing: Mapping[str, Any]) -> str:
    """Return what is wrong if the manifest does not list a file a resume needs, else an empty string."""
    needed = [STATE_NAME]
    if STATE_NAME in listing:
        state = documents.read_document(
            filesystem.join(url, STATE_NAME), format_name=FORMAT_NAME, version=FORMAT_VERSION
        )
        size = int(state["world_size"])
        needed += [partition_name(rank, size) for rank in range(size)]
    missing = [name for name in needed if name not in listing]
    return f"{MANIFEST_NAME} lists no {missing[0]}" if missing else ""


def find_checkpoint(root: str, *, world: World) -> FoundCheckpoint | None:
    """Return the newest checkpoint whose manifest verifies, None if there are no checkpoints. Collective.

    Raises:
        CheckpointError: There are checkpoints, but all are damaged.
    """
    found, damaged = on_rank_0(lambda: _newest_sound(root), world)
    if found is None and damaged:
        raise CheckpointError(
            f"all {len(damaged)} checkpoints are damaged: {'; '.join(damaged)}",
            where=root,
            hint="move the folder away to start from the beginning",
        )
    return found


def _newest_sound(root: str) -> tuple[FoundCheckpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, and a line for each newer one."""
    damaged: list[str] = []
    names, _ = list_checkpoints(root)
    for name in reversed(names):
        url = filesystem.join(root, name)
        problem = verify(url)
        if not problem:
            return FoundCheckpoint(url, int(name.removeprefix("images-")), tuple(damaged)), damaged
        damaged.append(f"{name}: {problem}")
    return None, damaged
