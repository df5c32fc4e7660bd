"""The crosswalk: the only place that knows which key is which photograph.

A folder outside the set, readable by its owner alone: the set it belongs to (``owner.json``), the secret the keys are
made from (``secret.key``), the map itself (``crosswalk.csv``), the rejects (``rejects.jsonl``), flags
(``flags.jsonl``) and look-alikes (``look_alikes.jsonl``) by name, and how every image looks (``looks.npy``). The set
can leave the hospital; the crosswalk does not.
"""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from synfundus.errors import DataError
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import is_complete
from synfundus.storage.permissions import holds_ours

SECRET_NAME = "secret.key"  # noqa: S105 - a file name
OWNER_NAME = "owner.json"
CROSSWALK_NAME = "crosswalk.csv"
REJECTS_NAME = "rejects.jsonl"
FLAGS_NAME = "flags.jsonl"
LOOK_ALIKES_NAME = "look_alikes.jsonl"
COLUMNS = ("key", "source", "patient_id", "split", "reason")

_SECRET_BYTES = 32
_OWNER_FORMAT, _OWNER_VERSION = "synfundus-crosswalk", 1


def open_crosswalk(url: str, *, out: str) -> bytes:
    """Create the folder and the secret, or read the secret that is there; returns the secret.

    A crosswalk is of one set: with the secret of another set, two photographs of one name would get one key, and the
    map of the first set would be overwritten.

    Args:
        url: The folder; one that is there keeps its rights.
        out: Absolute location of the set.

    Raises:
        ConfigError: It holds something that is no crosswalk.
        DataError: It belongs to another set, or has a secret file of another length.
    """
    holds_ours(url, proof=[OWNER_NAME], beside=re.escape(SECRET_NAME), flag="--crosswalk")
    if not filesystem.is_dir(url):
        filesystem.make_dir(url)
        if filesystem.is_local(url):
            filesystem.local_path(url).chmod(0o700)
    _claim(url, out)
    secret_url = filesystem.join(url, SECRET_NAME)
    if filesystem.exists(secret_url):
        text = filesystem.read_bytes(secret_url).strip()
        try:
            secret = bytes.fromhex(text.decode("ascii"))
        except ValueError as error:
            raise DataError("the secret is not hexadecimal", where=secret_url) from error
        if len(secret) != _SECRET_BYTES:
            raise DataError(f"the secret has {len(secret)} bytes, not {_SECRET_BYTES}", where=secret_url)
        return secret
    # The one draw that must not be reproducible: whoever could repeat it could undo the de-identification.
    secret = secrets.token_bytes(_SECRET_BYTES)
    write_private(secret_url, secret.hex().encode() + b"\n")
    return secret


def owner_of(url: str) -> str:
    """Return the location of the set a crosswalk belongs to; empty where there is no crosswalk yet."""
    owner_url = filesystem.join(url, OWNER_NAME)
    if not filesystem.exists(owner_url):
        return ""
    return str(documents.read_document(owner_url, format_name=_OWNER_FORMAT, version=_OWNER_VERSION).get("out"))


def _claim(url: str, out: str) -> None:
    """Write down whose crosswalk this is, or refuse that of another set; a set that was moved keeps its own."""
    owner_url = filesystem.join(url, OWNER_NAME)
    owner = owner_of(url)
    if owner == out:
        return
    if owner and (is_complete(owner) or not is_complete(out)):
        raise DataError(
            f"this crosswalk belongs to the set {owner}, not to {out}",
            where=url,
            hint="give every set a --crosswalk of its own: this one's map would be overwritten",
        )
    documents.write_document(owner_url, {"out": out}, format_name=_OWNER_FORMAT, version=_OWNER_VERSION)
    close_to_others(owner_url)


def write_private(url: str, data: bytes) -> None:
    """Write a file atomically that only its owner can read."""
    filesystem.write_bytes(url, data)
    close_to_others(url)


@contextmanager
def private_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears complete or not at all, and that only its owner can read."""
    with filesystem.atomic_write(url) as stream:
        yield stream
    close_to_others(url)


def close_to_others(url: str) -> None:
    """Let only its owner read a file."""
    if filesystem.is_local(url):
        filesystem.local_path(url).chmod(0o600)


def write_private_lines(url: str, rows: Iterable[dict[str, object]]) -> None:
    """Write JSON lines that only their owner can read."""
    write_private(url, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode())


def crosswalk_table(rows: Iterable[tuple[str, str, str, str, str]]) -> bytes:
    """Return the map as CSV; columns are `COLUMNS`, ``reason`` is empty for what is in the set."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    # A file name need not be valid text; it is shown escaped then.
    return stream.getvalue().encode("utf-8", "backslashreplace")
