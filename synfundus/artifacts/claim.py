"""Making a folder ours: what it is for is written into it before anything else, and what is for something else refused.

One process at a time calls these; among ranks that is rank 0 (`on_rank_0`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.errors import ConfigError, DataError
from synfundus.storage import documents, filesystem
from synfundus.storage.permissions import holds_ours

_MOST_SHOWN = 4
_ENVELOPE = ("format", "schema_version")


@dataclass(frozen=True)
class Claim:
    """How one kind of folder says what it is for.

    Attributes:
        name: The document below the folder.
        format_name: Its format.
        version: Its version.
        others: What the folder holds when it is for something else, e.g. "latents of something else".
        flag: The option that names the folder.
        beside: Pattern of what may lie in a folder before it is ours.
    """

    name: str
    format_name: str
    version: int
    others: str
    flag: str = "--out"
    beside: str = ""

    def read(self, folder: str) -> documents.Document | None:
        """Return what a folder of ours is for; None where it is empty or not there.

        Raises:
            ConfigError: It holds something else.
        """
        if not holds_ours(folder, proof=[self.name], beside=self.beside, flag=self.flag):
            return None
        url = filesystem.join(folder, self.name)
        try:
            return documents.read_document(url, format_name=self.format_name, version=self.version)
        except DataError as error:
            message = f"the folder holds something else: {error.message}"
            raise ConfigError(message, where=url, hint=error.hint or f"give another {self.flag}") from error

    def make(self, folder: str, wanted: Mapping[str, Any]) -> bool:
        """Write down what a folder is for, or compare with what is written there; returns whether it was free.

        Raises:
            ConfigError: It is for something else, or holds something else; the message names both sides.
        """
        found = self.read(folder)
        if found is None:
            url = filesystem.join(folder, self.name)
            documents.write_document(url, wanted, format_name=self.format_name, version=self.version)
            return True
        self.refuse_difference(folder, found, wanted)
        return False

    def refuse_difference(self, folder: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse a folder that is for something else.

        Raises:
            ConfigError: Names what differs.
        """
        if changed := difference(found, wanted):
            hint = f"give another {self.flag}, or the settings and inputs it was begun with"
            raise ConfigError(f"this folder holds {self.others}: {changed}", where=folder, hint=hint)


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested document by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        leaves.update(flatten(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return leaves


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in one line how two documents differ, hashes last; empty if they do not."""
    there, here = flatten(found), flatten(documents.as_json(wanted))
    keys = sorted((set(there) | set(here)).difference(_ENVELOPE), key=lambda key: (key.endswith("_sha256"), key))
    changed = [
        f"{key} is {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in keys
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    more = f" and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    return "; ".join(changed[:_MOST_SHOWN]) + more
