"""One photograph in a worker: what is refused before it is read, and what a file may add to its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from synfundus.photographs import photograph_task
from synfundus.photographs.crosswalk import write_private, write_private_lines
from synfundus.photographs.ingest import PlannedSample
from synfundus.photographs.photograph_task import PhotographTask, prepare_photograph, with_eye_side
from synfundus.photographs.preparation import Unusable

MAX_PIXELS = 1_000_000
DICOM = b"\0" * 128 + b"DICM"


def sample_of(size: int, side: int | None = None) -> PlannedSample:
    return PlannedSample("k", "a.png", "p", {"eye_side": side}, size)


def test_a_file_larger_than_any_photograph_of_the_allowed_pixels_is_never_read(tmp_path: Path) -> None:
    limit = MAX_PIXELS * 8 + 64 * 2**20
    results = [
        prepare_photograph(
            PhotographTask(
                sample=sample_of(size),
                source=str(tmp_path),
                image_size_px=32,
                image_format="png",
                max_pixels=MAX_PIXELS,
                collection="c",
                burned_text="flag",
            )
        )
        for size in (limit, limit + 1)
    ]
    assert all(isinstance(result, Unusable) for result in results)
    # there is no file at all: only the second is refused without a look
    assert [result.reason for result in results if isinstance(result, Unusable)] == ["missing_file", "file_too_large"]


def test_a_file_of_another_size_than_when_the_run_began_is_refused_by_name(tmp_path: Path) -> None:
    """As a copy of other photographs has it on one of the hosts."""
    (tmp_path / "a.png").write_bytes(b"12345")
    found = {}
    for size in (4, 5, 6):
        result = prepare_photograph(
            PhotographTask(sample_of(size), str(tmp_path), 32, "png", MAX_PIXELS, collection="c", burned_text="flag")
        )
        assert isinstance(result, Unusable)
        found[size] = (result.reason, result.detail)
    assert found[4] == ("changed_file", "5 bytes, 4 when the run began")
    assert found[6] == ("changed_file", "5 bytes, 6 when the run began")
    assert found[5][0] == "not_an_image"


def test_the_side_of_a_dicom_file_fills_an_empty_cell_and_replaces_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photograph_task, "dicom_eye_side", lambda data: 1)
    assert with_eye_side(sample_of(1), DICOM).labels == {"eye_side": 1}
    assert with_eye_side(sample_of(1, side=0), DICOM).labels == {"eye_side": 0}
    assert with_eye_side(sample_of(1), b"\x89PNG").labels == {"eye_side": None}


def test_what_names_patients_is_closed_to_others(tmp_path: Path) -> None:
    write_private(str(tmp_path / "a"), b"1")
    write_private_lines(str(tmp_path / "b"), [{"patient": "P1"}])
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
