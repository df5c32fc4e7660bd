"""One connection to the object store per process, and requests that are retried until a deadline.

The deadline counts the time of failed attempts and the pauses between them. A large object on a slow network is not a
fault; one that keeps failing is given up after the deadline, over all its requests.

s3fs holds the connection; its client is used directly, because only it gives the length, range, entity tag and error
code of an answer. A connection belongs to the process that built it: after a fork the child builds its own.
The settings are set once by the job and inherited by child processes.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import json
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from synfundus.errors import StorageError
from synfundus.storage.s3 import store_faults
from synfundus.storage.s3.store_faults import BeyondEnd, Fault, ObjectChanged, Verdict

T = TypeVar("T")
Client = Any
"""The S3 client of aiobotocore, which is untyped."""

_LOG = logging.getLogger("synfundus.storage")
_FIRST_PAUSE_S = 0.02
_FIRST_PAUSE_OVERLOADED_S = 0.2
_MAX_PAUSE_S = 5.0
_WARN_AFTER_S = 10.0
_MAX_CONNECTIONS = 32
_jitter = random.SystemRandom()  # not seeded: pauses do not change results


@lru_cache(maxsize=1)
def service_descriptions() -> Any:  # noqa: ANN401 - botocore is untyped
    """Return the loader of botocore's S3 descriptions: megabytes of JSON, parsed once per process for all clients."""
    from botocore.loaders import create_loader

    return create_loader()


class _Connection:
    """A connection of this process: the s3fs object and the settings it was built with."""

    def __init__(self, settings: StoreSettings) -> None:
        import s3fs
        from aiobotocore.session import AioSession

        silence_loggers()
        self.settings = settings
        session = AioSession()
        session.register_component("data_loader", service_descriptions())
        self._filesystem = s3fs.S3FileSystem(
            session=session,
            asynchronous=True,  # only close() ends it, not the finalizer in a forked child
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": settings.connect_timeout_s,
                "read_timeout": settings.read_timeout_s,
                # only `request` retries: it knows the deadline and what is wrong with an answer
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "max_pool_connections": _MAX_CONNECTIONS,
                "tcp_keepalive": True,
                # not every store supports the newer checksums; MD5 and sha256 are used instead
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )

    def run(self, operation: Callable[[Client], Awaitable[T]], timeout_s: float) -> T:
        """Run an operation on the event loop of fsspec and wait for it."""
        from fsspec.asyn import get_loop, sync

        async def run_on_client() -> T:
            return await operation(await self._client())

        result: T = sync(get_loop(), run_on_client, timeout=timeout_s)
        return result

    async def _client(self) -> Client:
        try:
            return await self._filesystem.set_session()
        except ValueError as error:
            raise _InvalidEndpoint from error

    def close(self) -> None:
        """Close the sockets."""
        from fsspec.asyn import get_loop, sync

        client = self._filesystem._s3  # s3fs has no public attribute for it
        if client is not None:
            try:
                sync(get_loop(), client.close, timeout=2)
            except (OSError, RuntimeError, TimeoutError):
                _LOG.debug("a connection could not be closed")


class _InvalidEndpoint(Exception):
    """The endpoint in the environment is not a valid URL."""


class _Connections:
    """The connections of this process: the one in use, and renewed ones that other threads may still use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.all: list[_Connection] = []


_connections = _Connections()


def _forget_parent_connections() -> None:
    """Start without connections in a forked child, and never destroy the inherited ones.

    Parent and child share the epoll object of the event loop: closing an inherited socket here would remove it from
    the parent's loop, whose next request would then wait forever.
    """
    global _connections
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_connections))
    _connections = _Connections()


os.register_at_fork(after_in_child=_forget_parent_connections)


@atexit.register
def forget() -> None:
    """Close the connections of this process; the next request reads the environment again."""
    with _connections.lock:
        connections = list(_connections.all)
        _connections.all.clear()
    for connection in connections:
        connection.close()


def _connect(settings: StoreSettings) -> _Connection:
    with _connections.lock:
        if not _connections.all or _connections.all[-1].settings != settings:
            refuse_credentials_in_endpoint()
            _connections.all.append(_Connection(settings))
        return _connections.all[-1]


def _renew(used: _Connection) -> None:
    """Build a new connection, which reads the credentials again (the profile may have been renewed)."""
    with _connections.lock:
        if _connections.all and _connections.all[-1] is used:
            _connections.all.append(_Connection(used.settings))


def refuse_credentials_in_endpoint() -> None:
    """Refuse an endpoint with a user name or password.

    Raises:
        StorageError: The endpoint contains one; it is not printed.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "@" in urlsplit(os.environ.get(name, "")).netloc:
            raise StorageError(
                "the address of the store must not contain a user name or a password",
                where=name,
                hint="give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
            )


def silence_loggers() -> None:
    """Keep signed requests and file names, which these libraries log at DEBUG, out of all logs."""
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec", "aiohttp"):
        logger = logging.getLogger(name)
        if logger.level < logging.WARNING:  # the level of the root logger may be lowered later
            logger.setLevel(logging.WARNING)


@lru_cache(maxsize=1)
def _request_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failed request."""
    from aiohttp import ClientError as HttpError
    from aiohttp.http_exceptions import HttpProcessingError
    from botocore.exceptions import BotoCoreError, ClientError

    # aiobotocore follows redirects forever if the store never names the region
    other = (RecursionError, _InvalidEndpoint)
    return (BotoCoreError, ClientError, HttpError, HttpProcessingError, OSError, TimeoutError, *other)


@dataclass
class _RetryBudget:
    """The total time for failed attempts, and how much of it is spent."""

    deadline_s: float
    spent_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Time left; zero or negative when the deadline is reached."""
        return self.deadline_s - self.spent_s


_budget: ContextVar[_RetryBudget | None] = ContextVar("retry_budget", default=None)


@contextmanager
def shared_deadline() -> Iterator[_RetryBudget]:
    """Share one deadline between all requests of the block; an outer block takes precedence."""
    outer = _budget.get()
    budget = outer or _RetryBudget(current_settings().deadline_s)
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


def request(action: str, url: str, operation: Callable[[Client], Awaitable[T]]) -> T:
    """Run an operation on the store's client; retry transient faults, with growing pauses, until the deadline.

    Args:
        action: A verb for the message, e.g. ``read``.
        url: Location, for messages.
        operation: Called with the client; must be repeatable.

    Raises:
        StorageError: No valid answer within ``deadline_s``, over all requests inside `shared_deadline`; immediately if
            retries cannot help: credentials, permissions, a missing bucket.
        FileNotFoundError: The object does not exist.
        BeyondEnd: The range starts after the end of the object.
        ObjectChanged: The entity tag of the object is not the one in the request.
    """
    settings = current_settings()
    budget = _budget.get() or _RetryBudget(settings.deadline_s)
    attempts, renewed, warned = 0, False, False
    while True:
        attempts += 1
        connection = _connect(settings)
        began = time.monotonic()
        try:
            return connection.run(operation, max(budget.left_s, 0.1))
        except _request_errors() as error:
            fault = store_faults.classify(error)
        # raised outside the except block: chained exceptions quote requests
        budget.spent_s += time.monotonic() - began
        if fault.verdict is Verdict.RENEW and not renewed:
            renewed = True
            _renew(connection)
            continue
        _raise_if_final(action, url, fault)
        pause_s = _pause_s(attempts, fault)
        if pause_s >= budget.left_s:
            raise _deadline_error(action, url, fault, attempts, settings.deadline_s)
        if budget.spent_s > _WARN_AFTER_S and not warned:
            warned = True
            _LOG.warning(
                "no valid answer from %s for %.0f s (%s); retrying",
                store_faults.endpoint_name(),
                budget.spent_s,
                fault.text,
            )
        time.sleep(pause_s)
        budget.spent_s += pause_s


def _raise_if_final(action: str, url: str, fault: Fault) -> None:
    if fault.verdict is Verdict.NOT_FOUND:
        raise FileNotFoundError(errno.ENOENT, "not found", url)
    if fault.verdict is Verdict.BEYOND_END:
        raise BeyondEnd(url)
    if fault.verdict is Verdict.CHANGED:
        raise ObjectChanged(url)
    if fault.verdict in {Verdict.STOP, Verdict.RENEW}:
        raise store_faults.final_error(action, url, fault)


def _pause_s(attempts: int, fault: Fault) -> float:
    """Return a pause that doubles with each attempt, with jitter so that ranks do not retry at the same time."""
    first = _FIRST_PAUSE_OVERLOADED_S if fault.overloaded else _FIRST_PAUSE_S
    return min(first * 2.0 ** min(attempts - 1, 16), _MAX_PAUSE_S) * _jitter.uniform(0.5, 1.0)


def _deadline_error(action: str, url: str, fault: Fault, attempts: int, deadline_s: float) -> StorageError:
    endpoint = store_faults.endpoint_name()
    return StorageError(
        f"cannot {action}: no valid answer within {deadline_s:g} s, {attempts} attempts; the last fault: {fault.text}",
        where=url,
        hint=f"check the network and the store at {endpoint}; storage.deadline_s sets how long to retry",
    )


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


def current_settings() -> StoreSettings:
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
