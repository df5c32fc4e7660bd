"""`edit`: a photograph under other labels; nothing that is written names its file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import retina
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_pipeline import IMAGE_SIZE_PX, SCHEMA, write_tiny_pipeline

from synfundus.artifacts.model import decode_images
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError, SynfundusError
from synfundus.evaluation.judge import build_judge
from synfundus.evaluation.judge_file import JUDGE_NAME, pack_judge
from synfundus.photographs.field_of_view import FieldOfViewError
from synfundus.photographs.preparation import prepare_pixels
from synfundus.photographs.undecodable import UndecodableImage
from synfundus.stages import Summary
from synfundus.stages.edit import job as edit
from synfundus.stages.edit.verb import VERB
from synfundus.stages.sample import checking
from synfundus.stages.sample import job as sample
from synfundus.telemetry.console import SilentConsole

NAME = "MUELLER_HANS_19510203"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clinic") / f"{NAME}.jpg"
    picture = Image.fromarray(np.asarray(retina())).resize((256, 256))
    exif = picture.getexif()
    exif[0x010E] = NAME
    picture.save(path, quality=95, exif=exif, comment=NAME)
    return path


def config_of(model: Path, photograph: Path, out: Path, **section: Any) -> RunConfig:
    given = {"model": str(model), "image": str(photograph), "out": str(out), "num_steps": 4, "label": {"dr_grade": 3}}
    sampler = {"sampler": "ddim", "guidance_scale": 2.0, "num_steps": 4}
    return RunConfig.model_validate({"edit": given | section, "sample": sampler, "launch": {"device": "cpu"}})


def drawn(model: Path, photograph: Path, out: Path, **section: Any) -> Summary:
    return edit.run(config_of(model, photograph, out, **section), LocalWorld(), SilentConsole())


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def pixels_of(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("method", ["sdedit", "inversion"])
def test_what_is_written_is_marked_and_names_no_file(
    model: Path, photograph: Path, tmp_path: Path, method: str
) -> None:
    label = {"dr_grade": "0..4", "is_gc": 1}
    summary = drawn(model, photograph, tmp_path, label=label, frames=3, method=method, gif=True, known={"eye_side": 0})
    assert summary["num_frames"] == 3
    files = contents(tmp_path)
    frames = {f"frames/{frame:02d}.png" for frame in range(3)}
    others = {"strip.png", "difference.png", "frames.webp", "frames.gif", "frames.csv", "README.md", "request.json"}
    assert {*files} == frames | others
    for name, data in files.items():
        assert NAME.encode() not in data, name
        assert str(photograph.parent).encode() not in data, name
    for name in [*frames, "strip.png", "difference.png"]:
        with Image.open(tmp_path / name) as picture:
            assert picture.info["synthetic"] == "yes"
            assert picture.info["drawn_from"] == "a photograph of a person: not anonymous"
    digest = hashlib.sha256(photograph.read_bytes()).hexdigest()
    for name in frames:
        with Image.open(tmp_path / name) as picture:
            assert picture.info["derived_from"] == digest
    with Image.open(tmp_path / "frames" / "01.png") as picture:
        assert json.loads(picture.info["labels"]) == {"dr_grade": 2.0, "is_gc": 1, "eye_side": 0}
    rows = list(csv.DictReader(io.StringIO(files["frames.csv"].decode())))
    assert [(row["frame"], row["dr_grade"], row["is_gc"], row["eye_side"]) for row in rows] == [
        ("0", "0", "1", "0"),
        ("1", "2", "1", "0"),
        ("2", "4", "1", "0"),
    ]
    assert b"Not anonymous" in files["README.md"]


def test_one_value_is_one_picture_and_the_same_command_gives_the_same_bytes(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    assert drawn(model, photograph, tmp_path / "one")["num_frames"] == 1
    drawn(model, photograph, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "frames.webp" not in contents(tmp_path / "one")
    drawn(model, photograph, tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"label.dr_grade is 3 there, 4 here"):
        drawn(model, photograph, tmp_path / "one", label={"dr_grade": 4})


@pytest.mark.parametrize("changed", [{"guidance_scale": 3.0}, {"guidance_rescale": 0.5}])
def test_a_folder_drawn_with_other_guidance_is_not_overwritten(
    model: Path, photograph: Path, tmp_path: Path, changed: dict[str, float]
) -> None:
    drawn(model, photograph, tmp_path)
    before = contents(tmp_path)
    config = config_of(model, photograph, tmp_path)
    assert VERB.compare is not None
    VERB.compare(config.edit, 0)  # a dry run knows its section alone
    other = config.model_copy(update={"sample": config.sample.model_copy(update=changed)})
    with pytest.raises(ConfigError, match=f"sampling.{next(iter(changed))} is"):
        edit.run(other, LocalWorld(), SilentConsole())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("strength", [0, 0.0, "0"])
def test_no_strength_is_refused_with_the_reason(
    model: Path, photograph: Path, tmp_path: Path, strength: float | str
) -> None:
    with pytest.raises(ValueError, match="must be above 0: without noise nothing can change"):
        config_of(model, photograph, tmp_path, strength=strength)


def test_back_and_forth_under_the_same_labels_and_without_guidance_is_the_reconstruction(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    """Within 2 of 255 values a pixel: of the steps backwards and of rounding."""
    config = config_of(model, photograph, tmp_path, label={"dr_grade": 3}, known={"dr_grade": 3}, strength=0.5)
    plain = config.model_copy(update={"sample": config.sample.model_copy(update={"guidance_scale": 1.0})})
    edit.run(plain, LocalWorld(), SilentConsole())
    own = pixels_of(tmp_path / "frames" / "00.png").astype(int)
    loaded = load_pipeline(str(model / "export"), device=torch.device("cpu"))
    data = photograph.read_bytes()
    seen = prepare_pixels(data, image_size_px=IMAGE_SIZE_PX, max_pixels=10**6, burned_text="off").pixels
    restored = decode_images(loaded, edit.encoded(loaded, seen, device=torch.device("cpu")))[0]
    assert np.abs(own - restored).max() <= 2


def test_nothing_of_the_photograph_is_left_at_full_strength_of_sdedit(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    drawn(model, photograph, tmp_path / "edited", method="sdedit", strength=1.0)
    given = {"model": str(model), "out": str(tmp_path / "samples"), "num_images": 1, "label": {"dr_grade": 3}}
    settings = {"sample": {**given, "sampler": "ddim", "guidance_scale": 2.0, "num_steps": 4}}
    sample.run(RunConfig.model_validate({**settings, "launch": {"device": "cpu"}}), LocalWorld(), SilentConsole())
    own = pixels_of(tmp_path / "samples" / "images" / "00000000.png").astype(int)
    assert np.abs(own - pixels_of(tmp_path / "edited" / "frames" / "00.png")).max() <= 1


def test_sdedit_takes_the_sampler_of_the_model_and_inversion_its_own(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    found: dict[str, list[bytes]] = {"sdedit": [], "inversion": []}
    for method, frames in found.items():
        for sampler in ("ddim", "unipc"):
            config = config_of(model, photograph, tmp_path / method / sampler, method=method)
            other = config.model_copy(update={"sample": config.sample.model_copy(update={"sampler": sampler})})
            edit.run(other, LocalWorld(), SilentConsole())
            frames.append(contents(tmp_path / method / sampler)["frames/00.png"])
    assert found["sdedit"][0] != found["sdedit"][1]
    assert found["inversion"][0] == found["inversion"][1]


def test_a_judge_reads_each_frame_and_a_missing_one_is_refused_before_the_folder_is_claimed(
    model: Path, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "SMALLEST_SIZE_PX", IMAGE_SIZE_PX)
    with pytest.raises(DataError, match="there is no label-judge"):
        drawn(model, photograph, tmp_path / "out", judge=str(tmp_path))
    assert not (tmp_path / "out").exists()
    judge = build_judge(schema=SCHEMA, image_size_px=16, seed=0)
    (tmp_path / JUDGE_NAME).write_bytes(pack_judge(judge, dict.fromkeys(SCHEMA.names, 1.0)))
    drawn(model, photograph, tmp_path / "out", label={"dr_grade": "0..4"}, frames=3, judge=str(tmp_path))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "frames.csv").read_text())))
    assert len(rows) == 3
    assert all(0 <= float(row["judged_dr_grade"]) <= 4 for row in rows)


def test_a_generated_image_is_not_called_a_person(model: Path, tmp_path: Path, photograph: Path) -> None:
    drawn(model, photograph, tmp_path / "first")
    picture = Image.open(photograph).convert("RGB")
    with Image.open(tmp_path / "first" / "frames" / "00.png") as marked:
        text = PngInfo()
        text.add_text("synthetic", str(marked.info["synthetic"]))
    picture.save(tmp_path / "generated.png", pnginfo=text)
    drawn(model, tmp_path / "generated.png", tmp_path / "again")
    with Image.open(tmp_path / "again" / "frames" / "00.png") as frame:
        assert frame.info["drawn_from"] == "a generated image"


def test_what_cannot_be_is_refused_before_a_folder_is_claimed(model: Path, photograph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(picture: Path = photograph, **section: Any) -> SynfundusError:
        with pytest.raises(SynfundusError) as caught:
            drawn(model, picture, out, **section)
        assert not out.exists()
        return caught.value

    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / "grey.png")
    for name, kind in (("text.png", UndecodableImage), ("grey.png", FieldOfViewError)):
        error = refused(tmp_path / name)
        assert isinstance(error, kind)
        assert (error.where, error.hint) == ("edit.image", "give a photograph of a fundus, as `prepare` takes it")
    assert refused(label={"dr_grade": 9}).hint == "write --label dr_grade=VALUE, or dr_grade=FIRST..LAST"
    assert refused(known={"dr_grade": 9}).hint == "write --known dr_grade=VALUE"
    assert drawn(model, photograph, out, label={"dr_grade": "1..2"}, known={"is_gc": 0}, frames=2)["num_frames"] == 2


def test_the_dry_run_reads_the_picture_and_writes_nothing(model: Path, photograph: Path, tmp_path: Path) -> None:
    assert VERB.dry_run is not None
    assert VERB.problems is not None
    section = config_of(model, photograph, tmp_path / "out", label={"dr_grade": "0..4"}).edit
    assert VERB.dry_run(section, 0) == "# picture\n9 frames: dr_grade 0 to 4\n\n"
    assert not (tmp_path / "out").exists()
    assert VERB.problems(config_of(model, photograph, tmp_path, label={}).edit, False)
