"""Python processes that start in milliseconds: forked from one that has torch, DeepSpeed and synfundus loaded.

Most of what a small run of the command line costs is the import of torch and DeepSpeed, 3 to 4 seconds of a core for
each rank. `Popen` and `run` are `subprocess`'s, except that ``python -m synfundus ...`` and ``python script.py ...``
are forked by a server that has the modules loaded; everything else is started as ever. What is forked is a process of
its own, with its own group, environment, working folder and streams; it can be stopped, killed and waited for. If it is
the launcher of several ranks, these are forked too, and die with it as real ones do.

Tests of what a real start does (its imports, the flags of the interpreter, the memory) use `subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
_MODULES = (
    "torch",
    "deepspeed",
    "synfundus.models.diffusers_classes",
    "synfundus.cli.app",
    "synfundus.telemetry.sinks",
    *(f"synfundus.stages.{name}.job" for name in ("prepare", "train_vae", "encode_latents", "train", "sample", "demo")),
)
_LAUNCHER = "SYNFUNDUS_LAUNCHER_PID"  # a forked rank is not the launcher's child: `_die_with` ends it
_FLAGS = ("-P", "-u", "-B")
_KNOWN = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS")
_LENGTH = struct.Struct("<q")
_address = ""
"""Of the server, once there is one; what it forks inherits it."""


@dataclass(frozen=True)
class _Request:
    """What a process is started with."""

    module: str
    script: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    umask: int
    new_session: bool
    safe_path: bool
    unbuffered: bool
    dies_with_client: bool


def _request(
    words: Sequence[str], environment: Mapping[str, str], *, folder: str, new_session: bool, nested: bool
) -> _Request | None:
    """Return how a command line is forked; None for one that is not."""
    if not words or words[0] != sys.executable:
        return None
    rest = list(words[1:])
    flags = []
    while rest and rest[0] in _FLAGS:
        flags.append(rest.pop(0))
    module, script = "", ""
    if rest[:2] == ["-m", "synfundus"]:
        module, rest = rest[1], rest[2:]
    elif rest and rest[0].endswith(".py") and Path(rest[0]).is_relative_to(REPOSITORY / "tests"):
        script = rest.pop(0)
    else:
        return None
    if any(
        name.startswith(("PYTHON", "LC_", "LANG")) and name not in _KNOWN and environment[name] != os.environ.get(name)
        for name in environment
    ):
        return None  # the interpreter reads it at its start
    umask = os.umask(0o022)
    os.umask(umask)
    safe = "-P" in flags or bool(environment.get("PYTHONSAFEPATH"))
    unbuffered = "-u" in flags or bool(environment.get("PYTHONUNBUFFERED"))
    given = {name: value for name, value in environment.items() if not (nested and name == _LAUNCHER)}
    return _Request(module, script, tuple(rest), given, folder, umask, new_session, safe, unbuffered, nested)


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, forked where that is possible."""

    nested = False
    """Whether the process ends when the one that started it does."""

    _server: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        names = (
            *("close_fds", "pass_fds", "cwd", "env", "startupinfo", "creationflags", "shell"),
            *("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"),
            *("restore_signals", "gid", "gids", "uid", "umask", "start_new_session", "process_group"),
        )
        given = dict(zip(names, rest, strict=True))
        words = [os.fspath(word) for word in args] if not isinstance(args, (str, bytes, os.PathLike)) else []
        environment = dict(os.environ if given["env"] is None else given["env"])
        request = None
        plain = (executable, preexec_fn, given["gid"], given["uid"]) == (None,) * 4
        if plain and not given["shell"] and not given["pass_fds"] and given["umask"] < 0:
            folder = str(Path(given["cwd"] or ".").absolute())
            session = bool(given["start_new_session"])
            request = _request(words, environment, folder=folder, new_session=session, nested=self.nested)
        if request is None:
            super()._execute_child(args, executable, preexec_fn, *rest)  # type: ignore[misc]
            return
        ends = [(given["p2cread"], 0), (given["c2pwrite"], 1), (given["errwrite"], 2)]
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_server_address())
        data = pickle.dumps(request)
        socket.send_fds(self._server, [_LENGTH.pack(len(data))], [end if end != -1 else own for end, own in ends])
        self._server.sendall(data)
        self.pid = _LENGTH.unpack(_exactly(self._server, _LENGTH.size))[0]
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in names[7:13]))  # type: ignore[attr-defined]

    def _internal_poll(self, *given: Any, **named: Any) -> int | None:
        if self._server is None:
            return super()._internal_poll(*given, **named)  # type: ignore[misc, no-any-return]
        return self._ended(0.0)

    def _wait(self, timeout: float | None) -> int:
        if self._server is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        """Return the exit code, waiting for it so many seconds."""
        if self.returncode is None and self._server is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._server, selectors.EVENT_READ)
                if selector.select(timeout):
                    status = _LENGTH.unpack(_exactly(self._server, _LENGTH.size))[0]
                    self.returncode = os.waitstatus_to_exitcode(status)
                    self._server.close()
        return self.returncode

    def __del__(self, *given: Any, **named: Any) -> None:
        if getattr(self, "_server", None) is None:
            super().__del__(*given, **named)


class _Rank(Popen):
    nested = True


def run(
    args: Sequence[str],
    *,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **given: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, forked where that is possible."""
    if capture_output:
        given |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(args, **given) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
    done = subprocess.CompletedProcess(args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


_lock = threading.Lock()


def _server_address() -> str:
    """Return the server's address; it is started for the first process, and ends with this one."""
    global _address
    with _lock:
        if not _address:
            folder = tempfile.mkdtemp(prefix="forked-python-")
            address = f"{folder}/socket"
            code = f"import sys\nsys.path.remove('')\nimport forked_python\nforked_python.serve({address!r})"
            paths = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests")))
            server = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
                stdin=subprocess.PIPE,  # it ends when this process does, and the server with it
                stdout=subprocess.PIPE,  # text streams that were opened on a file want to seek
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            said: list[bytes] = []
            threading.Thread(target=lambda: said.extend(server.stdout or ()), daemon=True).start()
            deadline = time.monotonic() + 120
            while not Path(address).exists():
                assert server.poll() is None, b"".join(said).decode()
                assert time.monotonic() < deadline, "the server of forked processes does not answer"
                time.sleep(0.02)
            _address = address
            atexit.register(_stop_server, server, folder)
        return _address


def _stop_server(server: subprocess.Popen[bytes], folder: str) -> None:
    if server.stdin is not None:
        server.stdin.close()
    server.wait(timeout=20)
    shutil.rmtree(folder, ignore_errors=True)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise EOFError("the server of forked processes has ended")
        parts += part
    return parts


def serve(address: str) -> None:
    """Fork processes until the standard input ends."""
    global _address
    _address = address
    for name in _MODULES:
        importlib.import_module(name)
    importlib.import_module("gc").freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.part")
    listener.listen(64)
    Path(f"{address}.part").rename(address)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    waiting: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for each in (listener.fileno(), woken, 0):
        selector.register(each, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                return
            if key.fd == woken:
                os.read(woken, 4096)
                _reap(waiting)
            else:
                connection = listener.accept()[0]
                head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
                request = pickle.loads(_exactly(connection, _LENGTH.unpack(head)[0]))  # our own tests send it
                pid = os.fork()
                if pid == 0:
                    for other in (listener, *waiting.values()):
                        other.close()
                    selector.close()
                    os.close(woken)
                    _become(request, streams, connection, wake)
                for stream in streams:
                    os.close(stream)
                waiting[pid] = connection


def _reap(waiting: dict[int, socket.socket]) -> None:
    """Tell those who wait of the processes that have ended."""
    for pid in list(waiting):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            connection = waiting.pop(pid)
            with contextlib.suppress(OSError):
                connection.sendall(_LENGTH.pack(status))
            connection.close()


def _become(request: _Request, streams: Sequence[int], connection: socket.socket, wake: int) -> NoReturn:
    """Be the process that was asked for, in a fork of the server."""
    try:
        signal.set_wakeup_fd(-1)
        os.close(wake)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        if request.new_session:
            os.setsid()
        connection.sendall(_LENGTH.pack(os.getpid()))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for stream in streams:
            os.close(stream)
        if request.dies_with_client:
            threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
        else:
            connection.close()
        os.umask(request.umask)
        os.environ.clear()
        os.environ.update(request.environment)
        os.chdir(request.folder)
        _run(request)
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        _leave(code or 0)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _run(request: _Request) -> None:
    import random

    import numpy as np

    random.seed()
    np.random.seed()
    processes = importlib.import_module("synfundus.launch.processes")
    processes.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        Popen=_Rank, run=subprocess.run, TimeoutExpired=subprocess.TimeoutExpired
    )
    sys.stdout.reconfigure(write_through=request.unbuffered)  # type: ignore[union-attr]
    if request.module:
        sys.argv = [request.module, *request.arguments]
        if not request.safe_path:
            sys.path.insert(0, "")
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [request.script, *request.arguments]
        sys.path.insert(0, str(Path(request.script).parent))
        runpy.run_path(request.script, run_name="__main__")


def _die_with(connection: socket.socket) -> None:
    """End as soon as the process that started this one does."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(code: int) -> NoReturn:
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
