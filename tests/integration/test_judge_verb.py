"""`synfundus judge`: label control of a model, and of a folder of samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import phantom_samples, tiny_config, write_set

from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.stages import Summary
from synfundus.stages.export import job as export
from synfundus.stages.judge import job as judge
from synfundus.stages.judge.verb import VERB
from synfundus.telemetry.console import SilentConsole

SIZE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "images"
    write_set(
        folder,
        phantom_samples(40, image_size_px=SIZE),
        shards={"train": (28,), "val": (12,)},
        properties={"image_size_px": SIZE, "crop": "none"},
    )
    return folder


def _judge(data: Path, out: Path, **section: Any) -> Summary:
    settings = {"judge": {"data": str(data), "out": str(out), **section}, "sample": {"num_steps": 2}}
    return judge.run(tiny_config(settings), LocalWorld(), SilentConsole())


def _write_samples(folder: Path, rows: list[Mapping[str, object]]) -> Path:
    """Write images whose brightness is nothing but noise, and what they were asked for."""
    (folder / "images").mkdir(parents=True)
    lines = [",".join(["file", *rows[0]])]
    for number, row in enumerate(rows):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines.append(
            ",".join([f"images/{number}.png", *("" if value is None else str(value) for value in row.values())])
        )
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_folder_of_samples_is_judged_as_it_stands(data: Path, tmp_path: Path) -> None:
    samples = _write_samples(
        tmp_path / "samples", [{"dr_grade": n % 5, "is_gc": None if n % 3 else 1} for n in range(9)]
    )
    before = {path: path.read_bytes() for path in samples.rglob("*") if path.is_file()}
    found = _judge(data, tmp_path / "out", samples=str(samples))
    labels = found["label_control"]["generated"]["labels"]
    assert (labels["dr_grade"]["num_known"], labels["is_gc"]["num_known"], labels["is_amd"]["num_known"]) == (9, 3, 0)
    assert labels["is_gc"]["auc"] is None, "one value only"
    assert set(found["label_control"]) == {"real", "generated"}
    written = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert written["label_control"] == json.loads(json.dumps(found["label_control"]))
    again = _judge(data, tmp_path / "out", samples=str(samples))
    assert again["label_control"] == found["label_control"]
    assert {path: path.read_bytes() for path in samples.rglob("*") if path.is_file()} == before


def test_a_model_is_asked_for_label_rows_of_held_out_photographs_and_resumes(data: Path, tmp_path: Path) -> None:
    write_tiny_pipeline(tmp_path / "run" / "export")
    out = tmp_path / "run" / "judged"  # where the model card says
    found = _judge(data, out, model=str(tmp_path / "run"), num_images=6)
    assert set(found["label_control"]) == {"real", "reconstructed", "generated"}
    assert found["num_generated"] == 6
    images = sorted((out / "samples" / "images").iterdir())
    written = [path.stat().st_mtime_ns for path in images]
    assert len(images) == 6
    assert _judge(data, out, model=str(tmp_path / "run"), num_images=6)["camera_alone"] == found["camera_alone"]
    assert [path.stat().st_mtime_ns for path in images] == written
    with pytest.raises(ConfigError, match="num_images is 6 there, 7 here"):
        _judge(data, out, model=str(tmp_path / "run"), num_images=7)
    made = {"run_dir": str(tmp_path / "run"), "out": str(tmp_path / "model")}
    export.run(tiny_config({"export": made}), LocalWorld(), SilentConsole())
    told = json.loads((tmp_path / "model" / "synfundus.json").read_text())["training"]["label_control"]
    assert told
    for label, one in told.items():
        measure = one["measure"].lower()
        assert one["generated"] == found["label_control"]["generated"]["labels"][label][measure]
        assert one["photographs"] == found["label_control"]["real"]["labels"][label][measure]
        assert (
            f"`{label}` {one['measure']} {one['generated']:.2f}" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
        )


def test_what_cannot_be_judged_is_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --model or --samples"):
        _judge(data, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no samples"):
        _judge(data, tmp_path / "out", samples=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="is_gc = 'perhaps'"):
        _judge(data, tmp_path / "out", samples=str(_write_samples(tmp_path / "odd", [{"is_gc": "perhaps"}])))
    assert not (tmp_path / "out").exists()


def test_the_command_line_wants_one_of_the_two() -> None:
    assert VERB.problems is not None
    section = tiny_config({"judge": {"data": "d", "out": "o"}}).judge
    assert VERB.problems(section, False)
    assert VERB.problems(section.model_copy(update={"model": "m", "samples": "s"}), False)
    assert not VERB.problems(section.model_copy(update={"model": "m"}), False)
