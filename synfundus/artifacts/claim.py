"""Claims: a folder's purpose is written into it before anything else; a folder with another purpose is refused.

Only one process at a time may call these; among ranks that is rank 0 (`on_rank_0`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.errors import ConfigError, DataError
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.writer_lock import live_writer, write_alone

_MOST_SHOWN = 4
_ENVELOPE = ("format", "schema_version")
_HASH = re.compile(r"[0-9a-f]{64}")
_CONTAINER = re.compile(r"^(identity|settings)\.")
"""What is left out of a name: below it are the names of the configuration."""


@dataclass(frozen=True)
class Claim:
    """The claim of one kind of folder.

    Attributes:
        name: The document in the folder.
        format_name: Its format.
        version: Its version.
        others: What a folder with another purpose holds, for messages, e.g. "latents of something else".
        flag: The option that names the folder.
        beside: Pattern of files that a folder may hold before it is claimed.
        free: Pattern of the keys, dotted, that are not compared.
    """

    name: str
    format_name: str
    version: int
    others: str
    flag: str = "--out"
    beside: str = ""
    free: str = ""

    def read(self, folder: str) -> documents.Document | None:
        """Return the claim of a folder; None where it is empty or does not exist.

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
        """Claim a folder, or compare with its claim; returns whether it was unclaimed.

        Raises:
            ConfigError: It has another purpose, or holds something else, and the message names both sides; or it has
                another writer.
        """
        self.compare(folder, wanted)
        write_alone(folder, flag=self.flag)
        if self.compare(folder, wanted):  # another writer may have claimed it meanwhile
            return False
        url = filesystem.join(folder, self.name)
        documents.write_document(url, wanted, format_name=self.format_name, version=self.version)
        return True

    def compare(self, folder: str, wanted: Mapping[str, Any]) -> bool:
        """Whether a folder has this claim; writes nothing.

        Raises:
            ConfigError: It has another purpose, or holds something else.
        """
        found = self.read(folder)
        if found is not None:
            self.refuse_difference(folder, found, wanted)
        return found is not None

    def refuse_difference(self, folder: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse a folder with another claim.

        Raises:
            ConfigError: Names the differences.
        """
        if changed := difference(found, wanted, free=self.free):
            hint = f"give another {self.flag}, or the settings and inputs it was begun with"
            writer = live_writer(folder)
            busy = f" ({writer.describe()} writes to it)" if writer and writer.pid != os.getpid() else ""
            raise ConfigError(f"this folder holds {self.others}{busy}: {changed}", where=folder, hint=hint)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], *, free: str = "") -> str:
    """Describe in one line how two documents differ, what stands at the top first, hashes last; empty if they don't.

    Keys that match ``free`` are left out.
    """
    there, here = documents.flatten(found), documents.flatten(documents.as_json(wanted))
    keys = {key for key in (set(there) | set(here)).difference(_ENVELOPE) if not re.fullmatch(free, key)}
    changed = [
        f"{_CONTAINER.sub('', key)} is {_shown(there.get(key, 'absent'))} there, {_shown(here.get(key, 'absent'))} here"
        for key in sorted(keys, key=lambda key: (key.endswith("_sha256"), "." in key, key))
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    more = f" and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    return "; ".join(changed[:_MOST_SHOWN]) + more


def _shown(value: object) -> str:
    """Return a value for a message; of a hash as much as the other messages show."""
    return repr(value[:12] if isinstance(value, str) and _HASH.fullmatch(value) else value)
