"""Timeouts and cache of object stores: set once by the job, inherited by child processes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields

from synfundus.errors import StorageError

SETTINGS_VARIABLE = "SYNFUNDUS_STORAGE"
"""Environment variable that passes the settings to child processes. It contains no secrets."""


@dataclass(frozen=True)
class StoreSettings:
    """The ``storage`` section of the config, as plain values.

    Attributes:
        deadline_s: Maximum time of failed attempts per object.
        connect_timeout_s: Maximum wait for a connection.
        read_timeout_s: Maximum wait for the next bytes of an answer.
        cache_dir: Local folder for copies of remote shards; None disables the cache.
        cache_max_bytes: Maximum size of that folder.
    """

    deadline_s: float
    connect_timeout_s: float
    read_timeout_s: float
    cache_dir: str | None
    cache_max_bytes: int

    def __post_init__(self) -> None:
        if min(self.deadline_s, self.connect_timeout_s, self.read_timeout_s, self.cache_max_bytes) <= 0:
            raise StorageError("storage settings must be positive", where="storage")


UNCONFIGURED = StoreSettings(300.0, 10.0, 30.0, None, 200 * 2**30)
"""Used until `configure` is called; a test checks that it equals the defaults of the schema."""

_configured: StoreSettings | None = None


def configure(settings: StoreSettings | None) -> None:
    """Set the settings of this process and its children; None resets them."""
    global _configured
    _configured = settings
    if settings is None:
        os.environ.pop(SETTINGS_VARIABLE, None)
    else:
        os.environ[SETTINGS_VARIABLE] = json.dumps(asdict(settings), sort_keys=True)


def current() -> StoreSettings:
    """Return the settings in force: configured here, or inherited through the environment.

    Raises:
        StorageError: The environment variable does not contain settings.
    """
    global _configured
    if _configured is None and SETTINGS_VARIABLE in os.environ:
        _configured = _parse(os.environ[SETTINGS_VARIABLE])
    return _configured or UNCONFIGURED


def _parse(text: str) -> StoreSettings:
    try:
        document = json.loads(text)
        return StoreSettings(**{field.name: document[field.name] for field in fields(StoreSettings)})
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            "not the settings that a parent process passes",
            where=SETTINGS_VARIABLE,
            hint="unset this variable; settings come from the section `storage` of the config",
        ) from error
