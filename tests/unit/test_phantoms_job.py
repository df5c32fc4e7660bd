from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synfundus.config.photographs import PhantomsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError
from synfundus.phantoms.draw import LABEL_NAMES, draw_phantom
from synfundus.stages.phantoms import job as phantoms
from synfundus.telemetry.console import SilentConsole

SIZE_PX = 64


def _draw(out: Path, num_images: int, *, seed: int = 0, workers: int = 0, size_px: int = SIZE_PX) -> dict[str, Any]:
    config = RunConfig(
        seed=seed,
        phantoms=PhantomsConfig(out=str(out), num_images=num_images, image_size_px=size_px, workers=workers),
    )
    return phantoms.run(config, LocalWorld(), SilentConsole())


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_table_and_pictures_are_those_of_the_clinic(tmp_path: Path) -> None:
    summary = _draw(tmp_path, 7)
    rows = _rows(tmp_path)
    assert summary["num_images"] == len(rows) == 7
    for index, row in enumerate(rows):
        phantom = draw_phantom(seed=0, index=index, image_size_px=SIZE_PX)
        with Image.open(tmp_path / row["file"]) as image:
            assert np.array_equal(np.asarray(image), phantom.pixels)
            assert image.info["synthetic"] == "drawn"
            assert "digitalsourcetype/algorithmicMedia" in image.info["XML:com.adobe.xmp"]
        assert row["patient_id"] == phantom.patient_id
        assert row["visit"] == str(phantom.visit)
        known = {name: "" if value is None else str(value) for name, value in phantom.labels.items()}
        assert {name: row[name] for name in LABEL_NAMES} == known


def test_truth_holds_every_label_and_the_geometry(tmp_path: Path) -> None:
    _draw(tmp_path, 3)
    truth = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    assert [row["index"] for row in truth] == [0, 1, 2]
    assert all(value is not None for row in truth for value in row["true_labels"].values())
    assert all(0 < row["truth"]["radius_px"] < SIZE_PX for row in truth)


def test_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    _draw(tmp_path / "one", 70)
    _draw(tmp_path / "two", 70, workers=2)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    _draw(tmp_path / "whole", 40)
    _draw(tmp_path / "cut", 33)
    damaged = tmp_path / "cut" / phantoms.file_name(2)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    summary = _draw(tmp_path / "cut", 40)
    assert summary["num_kept"] == 32
    assert _contents(tmp_path / "cut") == _contents(tmp_path / "whole")


def test_rows_of_chunks_finished_before_a_kill_are_kept(tmp_path: Path) -> None:
    _draw(tmp_path / "whole", 8)
    _draw(tmp_path / "killed", 8)
    rows = (tmp_path / "killed" / "truth.jsonl").read_text().splitlines()[:5]
    (tmp_path / "killed" / "truth.jsonl").unlink()
    (tmp_path / "killed" / "labels.csv").unlink()
    (tmp_path / "killed" / ".parts").mkdir()
    (tmp_path / "killed" / ".parts" / "000000.jsonl").write_text("\n".join(rows) + "\n")
    assert _draw(tmp_path / "killed", 8)["num_kept"] == 5
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "whole")


def test_the_same_command_again_draws_nothing(tmp_path: Path) -> None:
    _draw(tmp_path, 5)
    before = _contents(tmp_path)
    assert _draw(tmp_path, 5)["num_kept"] == 5
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    ("seed", "size_px", "said"),
    [(1, SIZE_PX, "seed is 0 there, 1 here"), (0, 80, "image_size_px is 64 there, 80 here")],
)
def test_a_folder_of_other_phantoms_is_refused_naming_both(tmp_path: Path, seed: int, size_px: int, said: str) -> None:
    _draw(tmp_path, 2)
    with pytest.raises(ConfigError, match=said):
        _draw(tmp_path, 2, seed=seed, size_px=size_px)


def test_the_variety_is_drawn_and_recorded_and_folders_from_before_are_the_demos(tmp_path: Path) -> None:
    config = RunConfig(
        phantoms=PhantomsConfig(out=str(tmp_path / "wide"), num_images=2, image_size_px=SIZE_PX, variety="wide")
    )
    phantoms.run(config, LocalWorld(), SilentConsole())
    with Image.open(tmp_path / "wide" / phantoms.file_name(1)) as image:
        wide = draw_phantom(seed=0, index=1, image_size_px=SIZE_PX, variety="wide").pixels
        assert np.array_equal(np.asarray(image), wide)
    with pytest.raises(ConfigError, match="variety is 'wide' there, 'absent' here"):
        _draw(tmp_path / "wide", 2)
    _draw(tmp_path / "demo", 2)
    assert "variety" not in json.loads((tmp_path / "demo" / "phantoms.json").read_text())


def test_without_a_folder_the_option_is_named() -> None:
    with pytest.raises(ConfigError, match="--out"):
        phantoms.run(RunConfig(), LocalWorld(), SilentConsole())
