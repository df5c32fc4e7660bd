"""Hugging Face's own reader opens a folder of samples, with labels and without the other files in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_samples import draw_samples, tiny_model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves a table open
def test_load_dataset_opens_a_folder_of_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="it is not among the project's dependencies")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    out = draw_samples(tiny_model(tmp_path), tmp_path / "samples", 20)
    found = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.num_rows == 20
    assert set(found.column_names) == {"image", "requested_dr_grade", "requested_is_gc", "requested_eye_side"}
    assert found[15]["requested_eye_side"] is None
    assert [found[image]["requested_dr_grade"] for image in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert found[0]["image"].size == (32, 32)
