"""What Weights & Biases is told, and what happens when it does not answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from synfundus.artifacts.run_folder import RunFolder
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.telemetry.console import SilentConsole
from synfundus.telemetry.wandb_sink import WandbSink


class Service:
    """Stands where the module `wandb` would; fails the first time when told to."""

    class errors:
        CommError = type("CommError", (Exception,), {})
        UsageError = type("UsageError", (Exception,), {})

    Settings = SimpleNamespace

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.failed = False
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = 0

    def init(self, **given: object) -> Service:
        if self.failed:
            pytest.fail("the run is in use until the service is torn down")
        self.begun.append(given)
        if self.fault is not None:
            fault, self.fault, self.failed = self.fault, None, True
            raise fault
        return self

    def log(self, row: dict[str, Any], step: int) -> None:
        self.logged.append((row, step))

    def teardown(self) -> None:
        self.failed = False

    def finish(self) -> None:
        self.finished += 1


def open_sink(folder: Path, warnings: list[str]) -> WandbSink:
    return WandbSink("eyes", name="run", run_id="abc", folder=folder, config={"seed": 1}, warn=warnings.append)


def test_rows_are_sent_at_their_position(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    warnings: list[str] = []
    sink = open_sink(tmp_path, warnings)
    sink.write({"images_seen": 8, "loss": 1.0})
    sink.close()
    assert service.logged == [({"images_seen": 8, "loss": 1.0}, 8)]
    assert service.finished == 1
    assert warnings == []
    (begun,) = service.begun
    assert begun["project"] == "eyes"
    assert begun["id"] == "abc"
    assert begun["resume"] == "allow"
    assert begun["dir"] == str(tmp_path)


def test_neither_the_console_nor_code_nor_git_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    open_sink(tmp_path, [])
    settings = service.begun[0]["settings"]
    assert (settings.console, settings.disable_git, settings.disable_code) == ("off", True, True)


def test_a_missing_wandb_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        open_sink(tmp_path, [])
    assert "synfundus[wandb]" in caught.value.hint


def test_a_service_that_does_not_answer_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = Service(Service.errors.CommError("no such host"))
    monkeypatch.setitem(sys.modules, "wandb", service)
    warnings: list[str] = []
    sink = open_sink(tmp_path, warnings)
    sink.write({"images_seen": 8})
    assert [begun.get("mode") for begun in service.begun] == [None, "offline"]
    assert service.logged == [({"images_seen": 8}, 8)]
    (warning,) = warnings
    assert "no such host" in warning
    assert f"in {tmp_path / 'wandb'}" in warning


def test_a_missing_key_is_a_fault_of_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Service(Service.errors.UsageError("No API key configured")))
    with pytest.raises(ConfigError, match="No API key configured") as caught:
        open_sink(tmp_path, [])
    assert caught.value.where == "telemetry.wandb_project"
    assert "WANDB_MODE=offline" in caught.value.hint


def test_a_run_that_goes_on_is_the_same_run_there(
    monkeypatch: pytest.MonkeyPatch, world: World, tmp_path: Path
) -> None:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    for folder in ("a", "a", "b"):
        directory = RunFolder(str(tmp_path / folder), kind="vae", identity={}, config={}, world=world)
        directory.sinks(resume_images=0, tensorboard=False, wandb_project="eyes", console=SilentConsole()).close()
    first, again, other = [begun["id"] for begun in service.begun]
    assert first == again
    assert first != other
    assert [begun["name"] for begun in service.begun] == ["a", "a", "b"]


def test_the_real_one_keeps_rows_in_the_folder_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = open_sink(tmp_path, [])
    sink.write({"images_seen": 8, "loss": 0.25})
    sink.write({"images_seen": 4, "loss": 0.5})
    sink.close()
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-abc.wandb")
    assert b"loss" in kept.read_bytes()
    sent = b"".join(path.read_bytes() for path in kept.parent.rglob("*") if path.is_file())
    assert str(Path(__file__).parent).encode() not in sent, "no code, and no place of it"
    assert json.dumps("git").encode() not in sent
