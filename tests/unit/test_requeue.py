"""The file that asks a batch script to requeue the job."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from synfundus.cli import app
from synfundus.distributed.requeue import VARIABLE, request_requeue
from synfundus.errors import DataError, Stalled


def test_the_file_is_left_where_the_script_looks_and_only_for_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ".stalled-7-0"
    monkeypatch.setenv(VARIABLE, str(place))
    request_requeue()
    request_requeue()
    assert place.exists()
    assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("place", ["", "/proc/no/such/folder"])
def test_without_a_place_to_leave_it_nothing_happens(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, place)
    request_requeue()


@pytest.mark.parametrize(("error", "left"), [(Stalled("nothing moved"), True), (DataError("no such set"), False)])
def test_a_standstill_that_an_error_tells_of_leaves_it_too(
    error: Exception, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: object) -> None:
        raise error

    monkeypatch.setattr(app, "build_app", build)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mark"))
    assert app.run_command(["doctor"]) == getattr(error, "exit_code", None)
    assert (tmp_path / "mark").exists() is left
