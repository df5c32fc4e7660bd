"""`progress`: one eye, labels on the way from one value to another; the whole values are `sample`'s own images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import SCHEMA, write_tiny_pipeline

from synfundus.artifacts.progression import UNITS, Course, packed_states
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError
from synfundus.models.conditioner import LabelConditioner
from synfundus.stages.frames import difference_map
from synfundus.stages.progress import job as progress
from synfundus.stages.progress.verb import VERB
from synfundus.stages.sample import job as sample
from synfundus.telemetry.console import SilentConsole

SAMPLER = {"num_steps": 3, "sampler": "ddim", "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


def config_of(model: Path, out: Path, **section: Any) -> RunConfig:
    given = {"model": str(model), "out": str(out), "label": {"dr_grade": "0..4"}} | section
    return RunConfig.model_validate({"progress": given, "sample": SAMPLER, "launch": {"device": "cpu"}})


def drawn(model: Path, out: Path, **section: Any) -> dict[str, Any]:
    return progress.run(config_of(model, out, **section), LocalWorld(), SilentConsole())


def pixels_of(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_frames_of_whole_values_are_the_images_of_sample(model: Path, tmp_path: Path) -> None:
    drawn(model, tmp_path / "eye", frames=5, index=3, label={"dr_grade": "0..4", "eye_side": 1})
    for grade in (0, 2, 4):
        given = {"model": str(model), "out": str(tmp_path / str(grade)), "num_images": 4, **SAMPLER}
        labels = {"label": {"dr_grade": grade, "eye_side": 1}}
        config = RunConfig.model_validate({"sample": given | labels, "launch": {"device": "cpu"}})
        sample.run(config, LocalWorld(), SilentConsole())
        own = pixels_of(tmp_path / str(grade) / "images" / "00000003.png")
        assert np.array_equal(own, pixels_of(tmp_path / "eye" / "frames" / f"00000003-{grade:02d}.png"))


def test_a_folder_has_a_strip_animations_frames_with_marks_and_figures(model: Path, tmp_path: Path) -> None:
    label = {"dr_grade": "0..4", "is_gc": "0..1"}
    summary = drawn(model, tmp_path, frames=3, num_eyes=2, index=5, label=label, gif=True)
    assert (summary["num_eyes"], summary["num_frames"]) == (2, 3)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    frames = {f"frames/0000000{eye}-0{frame}.png" for eye in (5, 6) for frame in range(3)}
    animations = {f"eye-0000000{eye}.{kind}" for eye in (5, 6) for kind in ("webp", "gif")}
    others = {"request.json", "strip.png", "difference.png", "frames.csv", "README.md"}
    assert {name for name in names if not name.startswith(".")} == frames | animations | others
    for name in [*frames, "strip.png", "difference.png"]:
        with Image.open(tmp_path / name) as picture:
            assert picture.info["synthetic"] == "yes"
    with Image.open(tmp_path / "frames" / "00000005-01.png") as picture:
        assert json.loads(picture.info["labels"]) == {"dr_grade": 2.0, "is_gc": 0.5}
    for name in animations:
        with Image.open(tmp_path / name) as animation:
            assert animation.n_frames == 4, "there and back"  # type: ignore[attr-defined]
    assert b"trainedAlgorithmicMedia" in (tmp_path / "eye-00000005.webp").read_bytes()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frames.csv").read_text())))
    assert [(row["eye"], row["frame"], row["dr_grade"], row["is_gc"]) for row in rows[:4]] == [
        ("5", "0", "0", "0"),
        ("5", "1", "2", "0.5"),
        ("5", "2", "4", "1"),
        ("6", "0", "0", "0"),
    ]
    assert "No forecast" in (tmp_path / "README.md").read_text()


def test_the_same_request_draws_the_same_and_another_one_is_refused(model: Path, tmp_path: Path) -> None:
    drawn(model, tmp_path, frames=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    drawn(model, tmp_path, frames=2)
    assert {path: path.read_bytes() for path in before} == before
    for change in ({"frames": 3}, {"label": {"dr_grade": "0..3"}}):
        with pytest.raises(ConfigError, match="holds another progression"):
            drawn(model, tmp_path, **{"frames": 2, **change})
        with pytest.raises(ConfigError, match="holds another progression"):
            VERB.compare(config_of(model, tmp_path, **{"frames": 2, **change}).progress, 0)  # type: ignore[misc]
    VERB.compare(config_of(model, tmp_path, frames=2).progress, 0)  # type: ignore[misc]
    other = config_of(model, tmp_path, frames=2)
    other = other.model_copy(update={"sample": other.sample.model_copy(update={"guidance_scale": 5.0})})
    with pytest.raises(ConfigError, match=r"guidance_scale is 2.0 there, 5.0 here"):
        progress.run(other, LocalWorld(), SilentConsole())


@pytest.mark.parametrize(
    ("label", "said", "hint"),
    [
        ({"dr_grade": "0..7"}, "dr_grade = '7' is not one of", "write --label dr_grade=FIRST..LAST, or one value"),
        ({"dr_grade": 2}, "no label changes", "give --label NAME=FIRST..LAST with two values"),
        ({"is_pm": "0..1"}, "unknown label 'is_pm'", ""),
    ],
)
def test_what_the_model_cannot_be_asked_for_is_refused(
    model: Path, tmp_path: Path, label: dict[str, Any], said: str, hint: str
) -> None:
    section = config_of(model, tmp_path / "out", label=label)
    for refuse in (
        lambda: progress.rehearse(section.progress),
        lambda: progress.run(section, LocalWorld(), SilentConsole()),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            refuse()
        assert hint in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_weights_of_single_labels_are_refused(model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path, frames=2)
    weighted = config.sample.model_copy(update={"guidance_weight": {"is_gc": 3.0}})
    with pytest.raises(ConfigError, match="no meaning between two values") as refused:
        progress.run(config.model_copy(update={"sample": weighted}), LocalWorld(), SilentConsole())
    assert refused.value.hint == "leave guidance_weight out"
    assert not list(tmp_path.iterdir()), "the folder is not claimed"


def test_a_dry_run_says_what_would_be_drawn(model: Path, tmp_path: Path) -> None:
    said = progress.rehearse(config_of(model, tmp_path, num_eyes=2).progress)
    assert "2 eyes, 9 frames each: dr_grade 0 to 4" in said


def test_states_on_the_way_are_packed_with_their_share() -> None:
    names = SCHEMA.names
    course = Course(dict.fromkeys(names) | {"dr_grade": 0}, dict.fromkeys(names) | {"dr_grade": 4})
    at = names.index("dr_grade")
    for frame, (low, high, share) in enumerate([(1, 1, 0), (2, 3, UNITS // 2), (4, 4, 0)][:1]):
        packed = packed_states(course.values(frame, 9), SCHEMA)
        assert (packed[at], packed[len(names) + at], packed[2 * len(names) + at]) == (low, high, share)
    half = packed_states({"dr_grade": 1.5}, SCHEMA)
    assert (half[at], half[len(names) + at], half[2 * len(names) + at]) == (2, 3, UNITS // 2)
    assert not any(packed_states({}, SCHEMA))


def test_between_two_states_lies_a_share_of_the_step() -> None:
    conditioner = LabelConditioner(num_values=[5, 2], ordinal=[True, False], token_dim=8, pooled_dim=4)
    low, high = torch.tensor([[2, 1]]), torch.tensor([[3, 1]])
    first, _ = conditioner(low)
    second, _ = conditioner(high)
    for share in (0.0, 0.25, 1.0):
        tokens, pooled = conditioner.between(low, high, torch.full((1, 2), share))
        torch.testing.assert_close(tokens, first + share * (second - first))
        assert pooled.shape == (1, 4)
    tokens, pooled = conditioner.between(low, high, torch.zeros(1, 2))
    assert torch.equal(tokens, first)
    assert torch.equal(pooled, conditioner(low)[1])


def test_a_difference_is_orange_where_it_is_brighter_and_blue_where_it_is_darker() -> None:
    first = np.full((2, 3, 3), 100, dtype=np.uint8)
    frame = first.copy()
    frame[0, 0], frame[1, 2] = 250, 0
    shown = difference_map(frame, first)
    assert np.array_equal(shown[0, 1], shown[1, 1])
    assert shown[0, 0, 0] > shown[0, 0, 2], "orange"
    assert shown[1, 2, 2] > shown[1, 2, 0], "blue"
