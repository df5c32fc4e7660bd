"""Connections to a store and processes: nothing of a connection crosses a fork; settings reach children."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.connection import Connection

import pytest
from rank_processes import clean_environment, run_processes

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.s3 import store_connection

# Python 3.12 warns about forks beside threads: that such forks are safe here is what is tested
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

DATA = bytes(range(256)) * 64


def read_and_send(url: str, sender: Connection) -> None:
    """What a child does: read, say what settings it has."""
    data = filesystem.read_bytes(url)
    sender.send((data == DATA, filesystem.read_range(url, 10, 5), store_connection.current_settings().deadline_s))
    sender.close()


def start_children(url: str, method: str, num_starts: int, *, timeout_s: float) -> int:
    """Start children one after the other; returns how many read what they should, and did not hang."""
    context = multiprocessing.get_context(method)
    sound = 0
    for _ in range(num_starts):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=read_and_send, args=(url, sender))  # type: ignore[attr-defined]  # typeshed
        child.start()
        sender.close()
        with contextlib.suppress(EOFError):
            sound += receiver.poll(timeout_s) and receiver.recv() == (True, DATA[10:15], 77.0)
        child.join(timeout_s)
        if child.is_alive():
            child.kill()
            child.join()
        receiver.close()
    return sound


@pytest.mark.parametrize(("method", "num_starts"), [("fork", 6), ("spawn", 1), ("forkserver", 2)])
def test_children_read_while_the_parent_reads(s3_bucket: str, method: str, num_starts: int) -> None:
    assert campaign(s3_bucket, method, num_starts) == (num_starts, 0)


def campaign(prefix: str, method: str, num_starts: int) -> tuple[int, int]:
    """Start children while two threads of the parent read; returns (sound children, reads of the parent gone wrong)."""
    url = f"{prefix}/x"
    filesystem.configure(StoreSettings(77, 5, 20, None, 1))
    filesystem.write_bytes(url, DATA)
    stopping = threading.Event()
    wrong: list[float] = []

    def read_on() -> None:
        while not stopping.is_set():
            began = time.monotonic()
            sound = filesystem.read_bytes(url) == DATA
            took_s = time.monotonic() - began
            if not sound or took_s > 15:
                wrong.append(took_s)

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        return start_children(url, method, num_starts, timeout_s=60), len(wrong)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


ENDING_CHILD = """
import gc, os, sys, time
from synfundus.storage import filesystem
url, together = sys.argv[1], int(sys.argv[2])
filesystem.configure(filesystem.StoreSettings(60, 5, 8, None, 1))
from concurrent.futures import ThreadPoolExecutor
data = filesystem.read_bytes(url)
slowest = 0.0
for _ in range(3):
    with ThreadPoolExecutor(together) as pool:  # several connections lie idle when the child starts
        assert all(pool.map(lambda _: filesystem.read_bytes(url) == data, range(4 * together)))
    child = os.fork()
    if child == 0:
        assert filesystem.read_bytes(url) == data
        gc.collect()
        sys.exit(0)  # an ordinary end: finalizers, exit functions, modules torn down
    assert os.waitpid(child, 0)[1] == 0
    began = time.monotonic()
    with ThreadPoolExecutor(together) as pool:
        assert all(pool.map(lambda _: filesystem.read_bytes(url) == data, range(4 * together)))
    slowest = max(slowest, time.monotonic() - began)
print("slowest", slowest)
assert slowest < 6, "a child took the parent's sockets off its event loop"
"""


def test_a_child_that_ends_leaves_the_parents_connections_alone(s3_bucket: str) -> None:
    filesystem.write_bytes(f"{s3_bucket}/x", DATA)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ENDING_CHILD, f"{s3_bucket}/x", "4"]
    run_processes([command], [clean_environment()], timeout_s=90)[0].check()


def test_a_process_ends_without_complaints_about_open_connections(s3_bucket: str) -> None:
    filesystem.write_bytes(f"{s3_bucket}/x", DATA)
    code = "import sys; from synfundus.storage import filesystem; print(len(filesystem.read_bytes(sys.argv[1])))"
    command = [sys.executable, "-W", "error", "-c", code, f"{s3_bucket}/x"]
    ended = run_processes([command], [clean_environment()], timeout_s=60)[0].check()
    assert ended.output.strip() == str(len(DATA))


def test_the_facade_does_not_load_the_stores_libraries() -> None:
    code = (
        "import sys\n"
        "from synfundus.storage import filesystem\n"
        "assert filesystem.read_bytes('/dev/null') == b''\n"
        "print([name for name in ('s3fs', 'botocore', 'aiobotocore', 'aiohttp', 'webdataset') if name in sys.modules])"
    )
    ended = run_processes([[sys.executable, "-c", code]], [clean_environment()], timeout_s=60)[0].check()
    assert ended.output.strip() == "[]"


def test_settings_of_a_parent_that_are_none_stop_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    store_connection.configure(None)
    monkeypatch.setenv(store_connection.SETTINGS_VARIABLE, '{"deadline_s": "long"}')
    with pytest.raises(StorageError, match="not the settings") as caught:
        store_connection.current_settings()
    assert caught.value.where == store_connection.SETTINGS_VARIABLE


def test_settings_hold_no_credentials(s3_bucket: str) -> None:
    filesystem.configure(StoreSettings(77, 5, 20, "/cache", 1))
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in os.environ[store_connection.SETTINGS_VARIABLE]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("method", "num_starts"), [("fork", 200), ("spawn", 20), ("forkserver", 200)])
def test_campaign_of_process_starts(s3_bucket: str, method: str, num_starts: int) -> None:
    sound, wrong = campaign(s3_bucket, method, num_starts)
    print(f'{{"name": "{method} starts beside reading threads", "passed": {sound - wrong}, "of": {num_starts}}}')
    assert (sound, wrong) == (num_starts, 0)
