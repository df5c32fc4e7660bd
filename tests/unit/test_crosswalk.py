from __future__ import annotations

from pathlib import Path

import pytest

from synfundus.config.photographs import PrepareConfig
from synfundus.photographs import crosswalk
from synfundus.photographs.crosswalk import FOLDER_NAME, default_place, lies_with
from synfundus.stages.prepare.places import PreparePaths, announce_crosswalk, find_paths
from synfundus.telemetry.console import SilentConsole


class Said(SilentConsole):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_by_default_no_folder_that_holds_outputs_holds_the_crosswalk(tmp_path: Path) -> None:
    out = tmp_path / "try-out" / "images"
    place = Path(default_place(str(out)))
    assert place == tmp_path / FOLDER_NAME / "try-out.images"
    assert not lies_with(str(place), str(out))
    assert out.parent not in place.parents


def test_sets_of_one_name_in_two_folders_have_two_crosswalks(tmp_path: Path) -> None:
    places = {default_place(str(tmp_path / name / "images")) for name in ("a", "b", "b/c")}
    assert len(places) == 3


@pytest.mark.parametrize("left", [".crosswalk"])
def test_a_crosswalk_of_an_earlier_version_stays_in_use(tmp_path: Path, left: str) -> None:
    out = tmp_path / "data" / "images"
    Path(f"{out}{left}").mkdir(parents=True)
    assert default_place(str(out)) == f"{out}{left}"
    assert lies_with(default_place(str(out)), str(out))


def test_where_nothing_can_be_written_above_it_lies_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crosswalk.os, "access", lambda *_: False)  # type: ignore[attr-defined]
    out = tmp_path / "images"
    assert default_place(str(out)) == str(tmp_path / FOLDER_NAME / "images")
    (tmp_path / FOLDER_NAME / "images").mkdir(parents=True)
    monkeypatch.undo()
    assert default_place(str(out)) == str(tmp_path / FOLDER_NAME / "images"), "what is there is found again"


@pytest.mark.usefixtures("memory_store")
def test_a_crosswalk_of_a_set_in_a_bucket_stays_in_the_bucket() -> None:
    assert default_place("memory://bucket/data/images") == f"memory://bucket/{FOLDER_NAME}/data.images"
    assert default_place("memory://bucket/images") == f"memory://bucket/{FOLDER_NAME}/images"


@pytest.mark.parametrize(
    ("place", "warned"), [("data/names", True), ("data/deep/names", True), ("names", False), ("secure/names", False)]
)
def test_the_place_is_said_and_a_place_with_the_set_is_warned_of(tmp_path: Path, place: str, warned: bool) -> None:
    said = Said()
    paths = PreparePaths("in", None, str(tmp_path / "data" / "set"), str(tmp_path / place))
    announce_crosswalk(paths, said)
    assert [paths.crosswalk in text for text in said.messages] == [True]
    assert bool(said.warnings) == warned
    assert all("--crosswalk" in text for text in said.warnings)


def test_a_place_that_is_given_is_taken_as_it_is(tmp_path: Path) -> None:
    section = PrepareConfig(source="in", labels="table.csv", out=str(tmp_path / "set"), crosswalk=str(tmp_path / "x"))
    assert find_paths(section).crosswalk == str(tmp_path / "x")
