"""One connection to the object store per process, and requests that are repeated until a deadline.

The deadline counts what is spent in vain: failed tries and the pauses between them. A large object over a slow
line is not trouble; one that keeps failing is given up after the deadline however many requests it takes.

s3fs holds the connection; its client is used directly, because only there an answer's length, range, entity tag and
error code can be seen. A connection belongs to the process that built it: after a fork the child builds its own.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import logging
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from synfundus.errors import StorageError
from synfundus.storage.s3 import store_faults, store_settings
from synfundus.storage.s3.store_faults import BeyondEnd, Fault, ObjectChanged, Verdict

T = TypeVar("T")
Client = Any
"""The S3 client of aiobotocore, which is untyped."""

_LOG = logging.getLogger("synfundus.storage")
_FIRST_PAUSE_S = 0.02
_FIRST_PAUSE_OVERLOADED_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TELL_AFTER_S = 10.0
_MOST_CONNECTIONS = 32
_jitter = random.SystemRandom()  # pauses need no seed: they change no result


@lru_cache(maxsize=1)
def service_descriptions() -> Any:  # noqa: ANN401 - botocore is untyped
    """Return what reads botocore's descriptions of S3: megabytes of JSON, parsed once a process for all clients."""
    from botocore.loaders import create_loader

    return create_loader()


class _Connection:
    """What a process keeps of the store: the s3fs object and the settings it was built with."""

    def __init__(self, settings: store_settings.StoreSettings) -> None:
        import s3fs
        from aiobotocore.session import AioSession

        silence_loggers()
        self.settings = settings
        session = AioSession()
        session.register_component("data_loader", service_descriptions())
        self._filesystem = s3fs.S3FileSystem(
            session=session,
            asynchronous=True,  # nobody but close() ends it, no finalizer of a forked child either
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": settings.connect_timeout_s,
                "read_timeout": settings.read_timeout_s,
                # repeated here and nowhere else: one loop knows the deadline, and what of an answer is wrong
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "max_pool_connections": _MOST_CONNECTIONS,
                "tcp_keepalive": True,
                # not every store knows the newer checksums; content is proved by MD5 and sha256 instead
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )

    def run(self, operation: Callable[[Client], Awaitable[T]], timeout_s: float) -> T:
        """Run an operation on the event loop of fsspec and wait for it."""
        from fsspec.asyn import get_loop, sync

        async def whole() -> T:
            return await operation(await self._client())

        result: T = sync(get_loop(), whole, timeout=timeout_s)
        return result

    async def _client(self) -> Client:
        try:
            return await self._filesystem.set_session()
        except ValueError as error:
            raise _InvalidEndpoint from error

    def close(self) -> None:
        """Close the sockets."""
        from fsspec.asyn import get_loop, sync

        client = self._filesystem._s3  # s3fs has no public way to ask whether there is one
        if client is not None:
            try:
                sync(get_loop(), client.close, timeout=2)
            except (OSError, RuntimeError, TimeoutError):
                _LOG.debug("a connection could not be closed")


class _InvalidEndpoint(Exception):
    """The address in the environment is not one."""


class _Held:
    """The connections of this process: the one in use, and renewed ones that other threads may still use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connections: list[_Connection] = []


_held = _Held()


def _leave_parents_connections() -> None:
    """Start without connections in a forked child, and never destroy the inherited ones.

    Parent and child share the event loop's epoll object: closing an inherited socket here would take the parent's
    socket off the parent's loop, and its next request would wait for bytes that are never reported.
    """
    global _held
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_held))
    _held = _Held()


os.register_at_fork(after_in_child=_leave_parents_connections)


@atexit.register
def forget() -> None:
    """Close the connections of this process; the next request reads the environment again."""
    with _held.lock:
        connections = list(_held.connections)
        _held.connections.clear()
    for connection in connections:
        connection.close()


def _connect(settings: store_settings.StoreSettings) -> _Connection:
    with _held.lock:
        if not _held.connections or _held.connections[-1].settings != settings:
            refuse_credentials_in_endpoint()
            _held.connections.append(_Connection(settings))
        return _held.connections[-1]


def _renew(used: _Connection) -> None:
    """Build a new session, which reads credentials again (a profile's file may have been rewritten)."""
    with _held.lock:
        if _held.connections and _held.connections[-1] is used:
            _held.connections.append(_Connection(used.settings))


def refuse_credentials_in_endpoint() -> None:
    """Stop where the address of the store holds a user name or a password.

    Raises:
        StorageError: It does; the address is not repeated.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if "@" in urlsplit(os.environ.get(name, "")).netloc:
            raise StorageError(
                "the address of the store must not hold a user name or a password",
                where=name,
                hint="give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
            )


def silence_loggers() -> None:
    """Keep signed requests and names of files, which these libraries write at DEBUG, out of every log."""
    for name in ("botocore", "aiobotocore", "s3fs", "fsspec", "aiohttp"):
        logger = logging.getLogger(name)
        if logger.level < logging.WARNING:  # its own: the root's may be lowered later
            logger.setLevel(logging.WARNING)


@lru_cache(maxsize=1)
def _request_errors() -> tuple[type[Exception], ...]:
    """Return what the stack below raises when a request fails."""
    from aiohttp import ClientError as HttpError
    from aiohttp.http_exceptions import HttpProcessingError
    from botocore.exceptions import BotoCoreError, ClientError

    # aiobotocore follows a redirection to another region without end when the store never says which
    lost = (RecursionError, _InvalidEndpoint)
    return (BotoCoreError, ClientError, HttpError, HttpProcessingError, OSError, TimeoutError, *lost)


class _Patience:
    """What has been spent in vain on one thing, of what may be.

    Args:
        deadline_s: How much may be spent.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self.spent_s = 0.0

    @property
    def left_s(self) -> float:
        """What may still be spent; not positive when that is nothing."""
        return self._deadline_s - self.spent_s

    def spend(self, seconds: float) -> None:
        """Count a failure."""
        self.spent_s += seconds


_patience: ContextVar[_Patience | None] = ContextVar("patience", default=None)


@contextmanager
def one_deadline() -> Iterator[_Patience]:
    """Have all requests of the block, which are about one object, share one deadline; an outer block counts."""
    outer = _patience.get()
    patience = outer or _Patience(store_settings.current().deadline_s)
    token = _patience.set(patience)
    try:
        yield patience
    finally:
        _patience.reset(token)


def request(action: str, url: str, operation: Callable[[Client], Awaitable[T]]) -> T:
    """Run one operation on the store's client; repeat it on faults that pass, with growing pauses, until the deadline.

    Args:
        action: A verb for the message, e.g. ``read``.
        url: What it is done to, for the message.
        operation: Gets the client; must be repeatable.

    Raises:
        StorageError: ``deadline_s`` were spent without a good answer, in this request or, inside `one_deadline`, in
            all of them; at once where repeating cannot help: credentials, rights,
            a missing bucket.
        FileNotFoundError: The object is not there.
        BeyondEnd: The range starts after the end of the object.
        ObjectChanged: The object is not the one that the request named by its entity tag.
    """
    settings = store_settings.current()
    patience = _patience.get() or _Patience(settings.deadline_s)
    tries, renewed, told = 0, False, False
    while True:
        tries += 1
        connection = _connect(settings)
        began = time.monotonic()
        try:
            return connection.run(operation, max(patience.left_s, 0.1))
        except _request_errors() as error:
            fault = store_faults.judge(error)
        # raised out here, so that no exception that quotes a request hangs on to ours
        patience.spend(time.monotonic() - began)
        if fault.verdict is Verdict.RENEW and not renewed:
            renewed = True
            _renew(connection)
            continue
        _raise_if_final(action, url, fault)
        pause_s = _pause_s(tries, fault)
        if pause_s >= patience.left_s:
            raise _too_long(action, url, fault, tries, settings.deadline_s)
        if patience.spent_s > _TELL_AFTER_S and not told:
            told = True
            _LOG.warning("no good answer from %s for %.0f s (%s); trying on", _endpoint(), patience.spent_s, fault.text)
        time.sleep(pause_s)
        patience.spend(pause_s)


def _endpoint() -> str:
    return store_faults.endpoint_name()


def _raise_if_final(action: str, url: str, fault: Fault) -> None:
    if fault.verdict is Verdict.NOT_FOUND:
        raise FileNotFoundError(errno.ENOENT, "not found", url)
    if fault.verdict is Verdict.BEYOND_END:
        raise BeyondEnd(url)
    if fault.verdict is Verdict.CHANGED:
        raise ObjectChanged(url)
    if fault.verdict in {Verdict.STOP, Verdict.RENEW}:
        raise store_faults.stop(action, url, fault)


def _pause_s(tries: int, fault: Fault) -> float:
    """Return a pause that doubles with each try, drawn from its upper half so that ranks do not ask in step."""
    first = _FIRST_PAUSE_OVERLOADED_S if fault.overloaded else _FIRST_PAUSE_S
    return min(first * 2.0 ** min(tries - 1, 16), _LONGEST_PAUSE_S) * _jitter.uniform(0.5, 1.0)


def _too_long(action: str, url: str, fault: Fault, tries: int, deadline_s: float) -> StorageError:
    return StorageError(
        f"cannot {action}: no good answer within {deadline_s:g} s, {tries} tries; the last one: {fault.text}",
        where=url,
        hint=f"check the network and the store at {_endpoint()}; storage.deadline_s says how long to try",
    )
