"""`synfundus judge`: label control of a model, and of a folder of samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from photographs import retina
from PIL import Image
from tiny_pipeline import write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import encode_png, phantom_samples, tiny_config, write_set

from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.stages import Summary
from synfundus.stages.export import job as export
from synfundus.stages.judge import job as judge
from synfundus.stages.judge.samples import read_samples
from synfundus.stages.judge.verb import VERB
from synfundus.stages.judging import NOBODY_HELD_OUT
from synfundus.stages.sample import job as sample
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


def _retina(number: int) -> NDArray[np.uint8]:
    """Return a photograph turned by so many quarters."""
    return np.array(Image.fromarray(np.rot90(retina(), number)).resize((SIZE, SIZE)))


def _static(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)


def _write_samples(
    folder: Path, rows: list[Mapping[str, object]], draw: Callable[[int], NDArray[np.uint8]] = _retina
) -> Path:
    """Write images, and what they were asked for."""
    (folder / "images").mkdir(parents=True)
    lines = [",".join(["file", *rows[0]])]
    for number, row in enumerate(rows):
        Image.fromarray(draw(number)).save(folder / "images" / f"{number}.png")
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
    assert any("no better than a guess" in text for text in found["label_control_warnings"]), "all look alike"
    written = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert written["label_control"] == json.loads(json.dumps(found["label_control"]))
    again = _judge(data, tmp_path / "out", samples=str(samples))
    assert again["label_control"] == found["label_control"]
    assert {path: path.read_bytes() for path in samples.rglob("*") if path.is_file()} == before


def test_figures_of_static_are_withheld(data: Path, tmp_path: Path) -> None:
    samples = _write_samples(tmp_path / "samples", [{"dr_grade": n % 5} for n in range(9)], draw=_static)
    settings = {"judge": {"data": str(data), "out": str(tmp_path / "out"), "samples": str(samples)}}
    found = judge.run(tiny_config(settings), LocalWorld(), talk := Talk())
    assert found["label_control"]["generated"] is found["camera_alone"]["generated"] is None
    assert found["label_control"]["real"]["labels"]["dr_grade"]["num_known"] > 0
    assert f"warning: {found['label_control_withheld']}" in talk.lines
    assert not any("label control on generated images" in line for line in talk.lines)


ROWS: list[dict[str, int | None]] = [
    {"eye_side": 1, "is_gc": 0, "dr_grade": 4},
    {"eye_side": 0, "is_gc": None, "dr_grade": 2},
]
OTHER_ORDER = [DEFAULT_LABEL_SCHEMA[name] for name in ("eye_side", "is_gc", "dr_grade")]
MIRRORED = LabelSpec("eye_side", 2, meaning="side", values=("left", "right"))


def _write_sample_set(folder: Path, specs: Sequence[LabelSpec], rows: Sequence[Mapping[str, int | None]]) -> Path:
    """Write one image several times as a sample set of a model with these labels."""
    picture = encode_png(_retina(0))
    samples = [
        (f"{number:08d}", {"json": json.dumps({"labels": row}).encode(), "png": picture})
        for number, row in enumerate(rows)
    ]
    write_set(folder, samples, shards={"train": (len(rows),)}, kind="samples", schema=LabelSchema(tuple(specs)))
    return folder


def test_samples_of_a_model_with_labels_in_another_order_are_read_by_name(data: Path, tmp_path: Path) -> None:
    asked = [DEFAULT_LABEL_SCHEMA.encode(row) for row in ROWS]
    shards = _write_sample_set(tmp_path / "shards", OTHER_ORDER, ROWS)
    assert read_samples(str(shards), DEFAULT_LABEL_SCHEMA).states.tolist() == asked
    pictures = _write_samples(tmp_path / "pictures", [dict(row) for row in ROWS])
    assert read_samples(str(pictures), DEFAULT_LABEL_SCHEMA).states.tolist() == asked
    in_order = _write_sample_set(tmp_path / "in_order", DEFAULT_LABEL_SCHEMA.labels, ROWS * 4)
    turned = _write_sample_set(tmp_path / "turned", OTHER_ORDER, ROWS * 4)
    found = [_judge(data, tmp_path / f"out-{at.name}", samples=str(at)) for at in (in_order, turned)]
    assert found[0]["label_control"] == found[1]["label_control"]
    assert found[0]["label_control"]["generated"]["labels"]["dr_grade"]["num_known"] == 8


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([MIRRORED], "eye_side = 0 is left in the first, right in the second"),
        ([LabelSpec("dr_grade", 3, ordinal=True)], "dr_grade has 3 values in the first, 5 in the second"),
        ([LabelSpec("dr_grade", 5)], "dr_grade is nominal in the first, ordinal in the second"),
        ([LabelSpec("is_cat", 2)], "asked for is_cat; the labels of --data are dr_grade, "),
    ],
)
def test_samples_that_were_asked_for_other_labels_are_refused_by_name(
    specs: list[LabelSpec], words: str, data: Path, tmp_path: Path
) -> None:
    asked = _write_sample_set(tmp_path / "samples", specs, [{specs[0].name: 1}])
    with pytest.raises(ConfigError, match=words):
        _judge(data, tmp_path / "out", samples=str(asked))
    assert not (tmp_path / "out").exists()


def test_a_label_only_the_model_has_may_be_left_open(tmp_path: Path) -> None:
    specs = [LabelSpec("is_cat", 2), DEFAULT_LABEL_SCHEMA["is_gc"]]
    rows = [{"is_cat": None, "is_gc": 1}]
    asked = [DEFAULT_LABEL_SCHEMA.encode({"is_gc": 1})]
    shards = _write_sample_set(tmp_path / "shards", specs, rows)
    pictures = _write_samples(tmp_path / "pictures", [dict(row) for row in rows])
    for folder in (shards, pictures):
        assert read_samples(str(folder), DEFAULT_LABEL_SCHEMA).states.tolist() == asked


def test_pictures_of_a_model_that_means_something_else_are_refused(data: Path, tmp_path: Path) -> None:
    mirrored = write_tiny_pipeline(tmp_path / "model", schema=LabelSchema((MIRRORED,)))
    wanted = {"model": str(mirrored), "out": str(tmp_path / "samples"), "num_images": 1, "label": {"eye_side": "left"}}
    sample.run(tiny_config({"sample": wanted}), LocalWorld(), SilentConsole())
    for section in ({"samples": wanted["out"]}, {"model": str(mirrored)}):
        with pytest.raises(ConfigError, match="eye_side = 0 is left in the first, right in the second"):
            _judge(data, tmp_path / "out", **section)
    assert not (tmp_path / "out").exists()


def test_a_model_with_a_label_the_set_lacks_is_judged_on_the_others(data: Path, tmp_path: Path) -> None:
    specs = (LabelSpec("is_cat", 2), DEFAULT_LABEL_SCHEMA["eye_side"])
    write_tiny_pipeline(tmp_path / "model", schema=LabelSchema(specs))
    found = _judge(data, tmp_path / "out", model=str(tmp_path / "model"), num_images=2)
    assert found["label_control"]["generated"]["labels"]["eye_side"]["num_known"] > 0


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
        assert f"`{label}` {one['measure']} {one['generated']:.2f}" in (tmp_path / "model" / "README.md").read_text()


def _write_lit_set(folder: Path, *, shards: Mapping[str, Sequence[int]]) -> Path:
    """Write 32 pictures of nothing, of which those with glaucoma are the brighter ones."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(32):
        grey = rng.integers(150, 180) if number % 2 else rng.integers(60, 90)
        picture = encode_png(np.full((SIZE, SIZE, 3), grey, dtype=np.uint8))
        row = json.dumps({"labels": {"is_gc": number % 2}}).encode()
        samples.append((f"{number:08d}", {"json": row, "png": picture}))
    write_set(folder, samples, shards=shards)
    return folder


def test_a_label_that_can_be_read_off_the_camera_and_photographs_learned_from_are_warned_of(tmp_path: Path) -> None:
    samples = _write_samples(tmp_path / "samples", [{"is_gc": n % 2} for n in range(4)])
    camera = "the field of view and the mean colour alone tell is_gc"
    for shards, expected in (({"train": (16,), "val": (16,)}, []), ({"train": (32,)}, [NOBODY_HELD_OUT])):
        data = _write_lit_set(tmp_path / f"data-{len(shards)}", shards=shards)
        talk, out = Talk(), str(tmp_path / f"out-{len(shards)}")
        settings = {"judge": {"data": str(data), "out": out, "samples": str(samples)}}
        found = judge.run(tiny_config(settings), LocalWorld(), talk)
        *before, last = found["label_control_warnings"]
        assert before == expected
        assert last.startswith(f"label control on real images: {camera}")
        assert {f"warning: {text}" for text in (*before, last)} <= {*talk.lines}


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
