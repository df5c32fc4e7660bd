"""Files that grow, on a disk and where nothing can grow."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from synfundus.artifacts import run_spool
from synfundus.artifacts.run_spool import RunSpool, SpooledSinks
from synfundus.errors import StorageError
from synfundus.storage import documents, filesystem
from synfundus.telemetry.sinks import METRICS_NAME, JsonlSink


@pytest.fixture
def store(memory_store: None) -> Iterator[str]:
    url = f"memory://run-{secrets.token_hex(4)}"
    yield url
    filesystem.remove(url, recursive=True)


def positions(url: str) -> list[int]:
    return [row["images_seen"] for row in documents.read_lines(filesystem.join(url, METRICS_NAME))]


def opened(url: str, *, resume_images: int = 0) -> tuple[RunSpool, SpooledSinks]:
    spool = RunSpool(url)
    return spool, SpooledSinks([JsonlSink(spool.folder / METRICS_NAME, resume_images=resume_images)], spool)


def test_on_a_disk_rows_grow_in_the_run_itself(tmp_path: Path) -> None:
    spool, sinks = opened(str(tmp_path))
    assert spool.folder == tmp_path
    sinks.write({"images_seen": 8})
    assert positions(str(tmp_path)) == [8]
    sinks.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_a_killed_run_goes_on_with_the_rows_up_to_its_checkpoint(store: str) -> None:
    spool, sinks = opened(store)
    for images in (8, 16, 24):
        sinks.write({"images_seen": images})
    spool.upload()  # as before a checkpoint
    sinks.write({"images_seen": 32})
    assert positions(store) == [8, 16, 24], "the last row is lost with the process"
    sinks.sinks[0].close()

    again, sinks = opened(store, resume_images=16)
    sinks.write({"images_seen": 24, "again": 1})
    sinks.close()
    assert positions(store) == [8, 16, 24]
    assert documents.read_lines(f"{store}/{METRICS_NAME}")[-1]["again"] == 1
    assert again.closed
    assert not again.folder.exists()
    spool.close()


def test_what_has_not_changed_is_not_uploaded_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = RunSpool(store)
    (spool.folder / "tensorboard").mkdir()
    (spool.folder / "tensorboard" / "events").write_bytes(b"1")
    (spool.folder / METRICS_NAME).write_bytes(b"{}\n")
    written: list[str] = []
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        written.append(url.removeprefix(f"{store}/"))
        original(url, data)

    monkeypatch.setattr(filesystem, "write_bytes", write)
    spool.upload()
    assert sorted(written) == [METRICS_NAME, "tensorboard/events"]
    spool.upload()
    assert len(written) == 2
    with (spool.folder / METRICS_NAME).open("ab") as stream:
        stream.write(b"{}\n")
    spool.close()
    assert written[2:] == [METRICS_NAME]


def test_a_store_that_refuses_between_checkpoints_stops_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_spool, "UPLOAD_INTERVAL_S", 0.0)
    spool, sinks = opened(store)
    with monkeypatch.context() as patch:

        def refuse(url: str, data: bytes) -> None:
            raise StorageError("slow down", where=url)

        patch.setattr(filesystem, "write_bytes", refuse)
        sinks.write({"images_seen": 8})
        with pytest.raises(StorageError):
            spool.upload()
    sinks.write({"images_seen": 16})
    assert positions(store) == [8, 16]
    sinks.close()
