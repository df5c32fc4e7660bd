"""A proxy before an S3 server that spoils answers on purpose: for tests of what a reader survives.

It understands HTTP: a request is forwarded as it came, `Host` header included, so that signatures stay valid, and the
whole answer is held before anything is spoiled.
"""

from __future__ import annotations

import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

KINDS = ("500", "503", "reset", "cut", "stall", "short", "flip")
"""Internal error; SlowDown; reset before the answer; connection cut in mid-body; silence in mid-body; a body that is
shorter than asked for with headers that agree with it; one flipped bit."""
_HEAD_END = b"\r\n\r\n"
_MOST_HEAD_BYTES = 1 << 20


@dataclass
class Message:
    """A request or an answer, its bytes unchanged.

    Attributes:
        head: First line and header fields with the empty line.
        body: Body without transfer coding.
    """

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        """Return the method of a request."""
        return self.head.split(b" ", 1)[0].decode("ascii")

    @property
    def target(self) -> str:
        """Return the path and query of a request."""
        return self.head.split(b" ", 2)[1].decode("ascii")

    @property
    def status(self) -> int:
        """Return the status of an answer."""
        return int(self.head.split(b" ", 2)[1])

    def field(self, name: str) -> str | None:
        """Return a header field."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode("ascii").lower():
                return value.strip().decode("latin-1")
        return None

    def is_object_get(self) -> bool:
        """Whether it asks for an object's content, not for a listing."""
        path, _, query = self.target.partition("?")
        return self.method == "GET" and path.count("/") >= 2 and not path.endswith("/") and "list-type" not in query


@dataclass
class FaultProxy:
    """Listens on 127.0.0.1, forwards to a server, spoils answers by chance.

    Attributes:
        upstream: Port of the server on 127.0.0.1.
        seed: Of the draws. The order in which parallel requests draw is not fixed.
        probability: Part of the requests that are spoiled.
        kinds: How, drawn evenly.
        all_methods: Spoil every request, not only reads of objects.
        stall_s: Longest silence of a stall; it ends when the client hangs up.
        refusal: (status, code) to answer requests with, e.g. ``(403, "ExpiredToken")``; None forwards.
        refusals_left: How many requests are refused so.
        counts: Requests seen (``requests``), object reads (``reads``), and faults by kind.
    """

    upstream: int
    seed: int = 0
    probability: float = 0.0
    kinds: tuple[str, ...] = KINDS
    all_methods: bool = False
    stall_s: float = 60.0
    refusal: tuple[int, str] | None = None
    refusals_left: int = 1 << 30
    counts: Counter[str] = field(default_factory=Counter)
    port: int = 0

    def __post_init__(self) -> None:
        self._draws = random.Random(self.seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    @property
    def endpoint(self) -> str:
        """Return the address clients use."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._stopping = threading.Event()
        threading.Thread(target=self._accept, args=(listener, self._stopping), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and drop the open ones."""
        self._stopping.set()
        if self._listener is not None:
            # a close alone does not wake the thread that waits in accept
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        with self._lock:
            held = list(self._open)
        for connection in held:
            _reset(connection)

    def _accept(self, listener: socket.socket, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, stopping), daemon=True).start()

    def _serve(self, client: socket.socket, stopping: threading.Event) -> None:
        with self._lock:
            self._open.add(client)
        server = None
        try:
            client.settimeout(120)
            server = socket.create_connection(("127.0.0.1", self.upstream), timeout=120)
            while not stopping.is_set():
                request = _receive(client, answers="")
                if request is None or not self._exchange(client, server, request, stopping):
                    return
        except (OSError, ValueError):
            return
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
            if server is not None:
                server.close()

    def _exchange(
        self, client: socket.socket, server: socket.socket, request: Message, stopping: threading.Event
    ) -> bool:
        """Handle one request; returns whether the connection goes on."""
        fault = self._draw(request)
        if self.refusal is not None and self.refusals_left > 0:
            self.refusals_left -= 1
            client.sendall(_refusal(request, *self.refusal))
            return True
        if fault in {"500", "503"}:
            status, code = (500, "InternalError") if fault == "500" else (503, "SlowDown")
            client.sendall(_refusal(request, status, code))
            return True
        if fault == "reset":
            _reset(client)
            return False
        server.sendall(request.head + request.body)
        answer = _receive(server, answers=request.method)
        if answer is None:
            return False
        if fault in {"cut", "stall"}:
            client.sendall(answer.head + answer.body[: len(answer.body) // 2])
            if fault == "cut":
                _reset(client)
            else:
                _wait_for_end(client, self.stall_s, stopping)
            return False
        client.sendall(self._spoiled(answer, fault))
        return True

    def _draw(self, request: Message) -> str:
        with self._lock:
            self.counts["requests"] += 1
            self.counts["reads"] += request.is_object_get()
            wanted = self.all_methods or request.is_object_get()
            fault = self._draws.choice(self.kinds) if wanted and self._draws.random() < self.probability else ""
            if fault:
                self.counts[fault] += 1
            return fault

    def _spoiled(self, answer: Message, fault: str) -> bytes:
        if not fault or not answer.body or answer.status not in {200, 206}:
            return answer.head + answer.body
        with self._lock:
            place = self._draws.randrange(len(answer.body) * 8)
        if fault == "flip":
            body = bytearray(answer.body)
            body[place // 8] ^= 1 << place % 8
            return answer.head + bytes(body)
        body_bytes = answer.body[: place // 8]
        return _with_field(answer.head, "content-length", str(len(body_bytes))) + body_bytes


def _receive(connection: socket.socket, *, answers: str) -> Message | None:
    """Receive a whole request, or the whole answer to a method; None at the end of the connection."""
    data = b""
    while _HEAD_END not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
        if len(data) > _MOST_HEAD_BYTES:
            raise ValueError("header without an end")
    head, _, rest = data.partition(_HEAD_END)
    message = Message(head + _HEAD_END, b"")
    if message.head.startswith(b"HTTP/1.1 100"):
        return _receive(connection, answers=answers)
    if not answers and (message.field("Expect") or "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        message.head = _without_field(message.head, "Expect")
    if answers == "HEAD" or (answers and message.status in {204, 304}):
        return message
    if (message.field("Transfer-Encoding") or "").lower() == "chunked":
        message.body = _receive_chunks(connection, rest)
        message.head = _with_field(
            _without_field(message.head, "Transfer-Encoding"), "Content-Length", str(len(message.body))
        )
        return message
    body = bytearray(rest)
    length = int(message.field("Content-Length") or 0)
    while len(body) < length:
        more = connection.recv(1 << 20)
        if not more:
            return None
        body += more
    message.body = bytes(body)
    return message


def _receive_chunks(connection: socket.socket, data: bytes) -> bytes:
    body = b""
    while True:
        while b"\r\n" not in data:
            data += _some(connection)
        line, _, data = data.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        while len(data) < size + 2:
            data += _some(connection)
        body += data[:size]
        data = data[size + 2 :]
        if not size:
            return body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 20)
    if not data:
        raise ValueError("cut")
    return data


def _lines_without(head: bytes, name: str) -> Iterable[bytes]:
    wanted = name.lower().encode("ascii") + b":"
    return (line for line in head.removesuffix(_HEAD_END).split(b"\r\n") if not line.lower().startswith(wanted))


def _without_field(head: bytes, name: str) -> bytes:
    return b"\r\n".join(_lines_without(head, name)) + _HEAD_END


def _with_field(head: bytes, name: str, value: str) -> bytes:
    return b"\r\n".join([*_lines_without(head, name), f"{name}: {value}".encode("ascii")]) + _HEAD_END


def _refusal(request: Message, status: int, code: str) -> bytes:
    body = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>spoiled</Message></Error>".encode()
    )
    reason = {403: "Forbidden", 500: "Internal Server Error", 503: "Service Unavailable"}.get(status, "Refused")
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + (b"" if request.method == "HEAD" else body)


def _reset(connection: socket.socket) -> None:
    """Close with RST: whoever waits gets an error, not an end."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.shutdown(socket.SHUT_RD)  # wakes the thread that serves it
        connection.close()
    except OSError:
        return


def _wait_for_end(connection: socket.socket, longest_s: float, stopping: threading.Event) -> None:
    waited = 0.0
    while waited < longest_s and not stopping.is_set():
        readable, _, _ = select.select([connection], [], [], 0.05)
        if readable:
            return
        waited += 0.05
