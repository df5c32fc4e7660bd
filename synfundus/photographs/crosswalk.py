"""The crosswalk: the only place that maps keys to photographs.

A folder outside the set that only its owner can read: the set it belongs to (``owner.json``), the secret for the keys
(``secret.key``), the map (``crosswalk.csv``), rejects (``rejects.jsonl``), flags (``flags.jsonl``) and near-duplicates
(``look_alikes.jsonl``) by file name, perceptual hashes (``looks.npy``), and who was withdrawn (``withdrawn.jsonl``).
The crosswalk must not leave the hospital, not even with the set.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from synfundus.errors import DataError, StorageError
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import is_complete

SECRET_NAME = "secret.key"  # noqa: S105 - a file name
OWNER_NAME = "owner.json"
CROSSWALK_NAME = "crosswalk.csv"
REJECTS_NAME = "rejects.jsonl"
FLAGS_NAME = "flags.jsonl"
NEAR_DUPLICATES_NAME = "look_alikes.jsonl"
HASHES_NAME = "looks.npy"
WITHDRAWN_NAME = "withdrawn.jsonl"
COLUMNS = ("key", "source", "patient_id", "split", "reason")

FOLDER_NAME = "synfundus-crosswalks"
"""Folder of the crosswalks that were given no place of their own."""

_SECRET_BYTES = 32
_OWNER_FORMAT, _OWNER_VERSION = "synfundus-crosswalk", 1


def default_place(out: str) -> str:
    """Return where the crosswalk of a set is kept unless the user says where.

    A folder up from the one that holds the set, so that neither the set nor the folder of outputs around it carries
    the names along when it is copied or packed; in that folder itself only where nothing can be written above it, or
    where another disk begins: the crosswalk has to live as long as the set. One that is there already stays in use,
    also where an earlier version put it, beside the set.

    Args:
        out: Absolute location of the set.
    """
    parent, _, name = out.rpartition("/")
    above, _, within = parent.rpartition("/")
    apart = filesystem.join(above or "/", FOLDER_NAME, f"{within}.{name}")
    near = filesystem.join(parent or "/", FOLDER_NAME, name)
    if not within or above.endswith(("/", ":")):
        apart = near  # at the root of a disk or a bucket
    found = next((place for place in (f"{out}.crosswalk", near) if filesystem.is_dir(place)), None)
    if found is not None:
        return found
    try:
        there = filesystem.is_dir(apart)
    except StorageError:  # a policy that lets this user see the outputs alone
        return near
    return apart if there or (apart != near and _can_hold(above or "/", beside=parent)) else near


def _can_hold(folder: str, *, beside: str) -> bool:
    """Whether a folder can be written to and is on the same disk; of an object store only a try could tell."""
    if not filesystem.is_local(folder):
        return True
    place, other = (
        next(one for one in (path, *path.parents) if one.exists())
        for path in map(filesystem.local_path, (folder, beside))
    )
    return os.access(place, os.W_OK | os.X_OK) and place.stat().st_dev == other.stat().st_dev


def lies_with(crosswalk: str, out: str) -> bool:
    """Whether a crosswalk lies in the folder that also holds its set."""
    return f"{resolved(crosswalk)}/".startswith(f"{resolved(out).rpartition('/')[0]}/")


def open_crosswalk(url: str, *, out: str) -> bytes:
    """Create the folder and the secret, or read the existing secret; return the secret.

    A crosswalk belongs to one set: otherwise two photographs with the same name would get the same key, and the map of
    the first set would be overwritten.

    Args:
        url: The folder; an existing one keeps its permissions.
        out: Absolute location of the set.

    Raises:
        ConfigError: It holds something that is no crosswalk.
        DataError: It belongs to another set, or has a secret file of another length.
    """
    check_crosswalk(url, out=out)
    if not filesystem.is_dir(url):
        filesystem.make_dir(url)
        if filesystem.is_local(url):
            filesystem.local_path(url).chmod(0o700)
    if owner_of(url) != out:
        hand_over(url, out)
    secret_url = filesystem.join(url, SECRET_NAME)
    if filesystem.exists(secret_url):
        return read_secret(url)
    # The only draw that must not be reproducible: repeating it would undo the de-identification.
    secret = secrets.token_bytes(_SECRET_BYTES)
    write_private(secret_url, secret.hex().encode() + b"\n")
    return secret


def read_secret(url: str) -> bytes:
    """Read the secret of a crosswalk.

    Raises:
        DataError: It is not hexadecimal, or of another length.
        StorageError: There is none.
    """
    secret_url = filesystem.join(url, SECRET_NAME)
    text = filesystem.read_bytes(secret_url).strip()
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError as error:
        raise DataError("the secret is not hexadecimal", where=secret_url) from error
    if len(secret) != _SECRET_BYTES:
        raise DataError(f"the secret has {len(secret)} bytes, not {_SECRET_BYTES}", where=secret_url)
    return secret


def withdrawal_token(secret: bytes, patient_group: str) -> str:
    """Return what stands for a patient who has withdrawn: recognised in a table, but not to be read back."""
    return hmac.new(secret, f"withdrawn {patient_group}".encode(), hashlib.sha256).hexdigest()


def read_withdrawn(url: str) -> dict[str, list[str]]:
    """Return the tokens of the patients who have withdrawn, with the keys of their photographs."""
    rows_url = filesystem.join(url, WITHDRAWN_NAME)
    rows = documents.read_lines(rows_url) if filesystem.exists(rows_url) else []
    return {str(row["patient"]): list(row["keys"]) for row in rows}


def write_withdrawn(url: str, token: str, keys: Collection[str]) -> None:
    """Add a patient who has withdrawn."""
    known = read_withdrawn(url)
    known[token] = sorted({*known.get(token, ()), *keys})
    rows: list[dict[str, object]] = [{"patient": one, "keys": theirs} for one, theirs in known.items()]
    write_private_lines(filesystem.join(url, WITHDRAWN_NAME), rows)


def owner_of(url: str) -> str:
    """Return the location of the set of a crosswalk; empty if there is no crosswalk yet."""
    owner_url = filesystem.join(url, OWNER_NAME)
    if not filesystem.exists(owner_url):
        return ""
    return str(documents.read_document(owner_url, format_name=_OWNER_FORMAT, version=_OWNER_VERSION).get("out"))


def check_crosswalk(url: str, *, out: str) -> None:
    """Refuse what `open_crosswalk` refuses, but write nothing; a set that was moved keeps its own.

    Raises:
        ConfigError: The folder holds something that is no crosswalk.
        DataError: It belongs to another set.
    """
    beside = "|".join(map(re.escape, (SECRET_NAME, WITHDRAWN_NAME)))
    holds_ours(url, proof=[OWNER_NAME], beside=beside, flag="--crosswalk")
    owner = owner_of(url)
    if owner == out:
        return
    if owner and (is_complete(owner) or not is_complete(out)):
        raise DataError(
            f"this crosswalk belongs to the set {owner}, not to {out}",
            where=url,
            hint="give each set its own --crosswalk: the map of this one would be overwritten",
        )


def hand_over(url: str, out: str) -> None:
    """Write down the set a crosswalk belongs to."""
    owner_url = filesystem.join(url, OWNER_NAME)
    documents.write_document(owner_url, {"out": out}, format_name=_OWNER_FORMAT, version=_OWNER_VERSION)
    close_to_others(owner_url)


def write_private(url: str, data: bytes) -> None:
    """Write a file atomically, readable only by its owner."""
    filesystem.write_bytes(url, data)
    close_to_others(url)


@contextmanager
def private_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for atomic writing, readable only by its owner."""
    with filesystem.atomic_write(url) as stream:
        yield stream
    close_to_others(url)


def close_to_others(url: str) -> None:
    """Restrict a file to its owner."""
    if filesystem.is_local(url):
        filesystem.local_path(url).chmod(0o600)


def write_private_lines(url: str, rows: Iterable[dict[str, object]]) -> None:
    """Write JSON lines, readable only by their owner."""
    write_private(url, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def crosswalk_table(rows: Iterable[tuple[str, str, str, str, str]]) -> bytes:
    """Return the map as CSV with `COLUMNS`; ``reason`` is empty for samples of the set."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    # File names that are not valid text are escaped.
    return stream.getvalue().encode("utf-8", "backslashreplace")
