"""`verify`: images drawn again are the same, and one changed pixel, file or model is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import write_tiny_pipeline
from tiny_samples import draw_samples, tiny_model

from synfundus.artifacts.samples.layouts import open_sample_images
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import DataError, ManifestMismatch
from synfundus.pictures.sheets import XMP_KEYWORD, encode_png
from synfundus.stages import Summary
from synfundus.stages.verify import job as verify
from synfundus.telemetry.console import SilentConsole

NUMBER = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def samples(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_samples(model, tmp_path_factory.mktemp("samples") / "png", NUMBER)


def settings(samples: Path, model: Path, **options: Any) -> RunConfig:
    section = {"samples": str(samples), "model": str(model), **options}
    return RunConfig.model_validate({"verify": section, "launch": {"device": "cpu"}})


def check(samples: Path, model: Path, **options: Any) -> Summary:
    return verify.run(settings(samples, model, **options), LocalWorld(), SilentConsole())


def change(path: Path, by: int) -> None:
    """Change one value of one pixel, and keep the marks."""
    with Image.open(path) as image:
        pixels, text = np.array(image.convert("RGB")), dict(image.info)
    pixels[3, 4, 1] = int(pixels[3, 4, 1]) + (by if pixels[3, 4, 1] < 128 else -by)
    marks = {str(name): value for name, value in text.items() if isinstance(value, str) and name != XMP_KEYWORD}
    path.write_bytes(encode_png(pixels, text=marks, compress_level=6))


@pytest.mark.parametrize("kind", ["png", "shards"])
def test_images_drawn_again_are_equal(model: Path, samples: Path, tmp_path: Path, kind: str) -> None:
    out = samples if kind == "png" else draw_samples(model, tmp_path / "shards", NUMBER, format=kind)
    found = check(out, model, num_images=NUMBER)
    assert (found["ok"], found["exit_code"]) == (True, 0)
    assert (found["num_compared"], found["num_equal"], found["largest_difference"]) == (NUMBER, NUMBER, 0)


def test_one_changed_pixel_is_found_and_rounding_is_forgiven(model: Path, samples: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(samples, tmp_path / "copy")
    change(copy / "images" / "00000013.png", 1)
    found = check(copy, model, num_images=NUMBER)
    assert (found["ok"], found["num_equal"], found["largest_difference"]) == (True, NUMBER - 1, 1)
    change(copy / "images" / "00000007.png", 2)
    found = check(copy, model, num_images=NUMBER)
    assert (found["ok"], found["exit_code"]) == (False, 3)
    assert found["differing"] == {"images/00000007.png": 2}
    assert found["num_equal"] == NUMBER - 2


def test_files_that_are_missing_or_cut_are_found_whichever_images_are_chosen(
    model: Path, samples: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(samples, tmp_path / "copy")
    (copy / "images" / "00000002.png").unlink()
    cut = copy / "images" / "00000019.png"
    cut.write_bytes(cut.read_bytes()[:-1])
    found = check(copy, model, num_images=1)
    assert found["exit_code"] == 3
    named = {problem.split(":")[0] for problem in found["problems"]}
    assert {"images/00000002.png", "images/00000019.png"} <= named


def test_a_changed_byte_of_a_shard_is_found(model: Path, tmp_path: Path) -> None:
    out = draw_samples(model, tmp_path / "shards", NUMBER, format="shards")
    (tar,) = out.glob("train/*.tar")
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    tar.write_bytes(bytes(data))
    found = check(out, model, num_images=1)
    assert found["exit_code"] == 3
    assert any(problem == f"train/{tar.name}: its bytes do not match the manifest" for problem in found["problems"])


def test_another_model_is_refused_also_by_a_dry_run_and_the_right_one_is_taken(
    model: Path, samples: Path, tmp_path: Path
) -> None:
    other = write_tiny_pipeline(tmp_path / "run" / "export", seed=1).parent
    for refuse in (check, lambda *given: verify.rehearse(settings(*given).verify, 0)):
        with pytest.raises(ManifestMismatch, match="the images were drawn with model") as refused:
            refuse(samples, other)
        assert refused.value.hint == "give the --model that drew them"
    assert "40 of 40 images to draw again, in 3 batches" in verify.rehearse(settings(samples, model).verify, 0)


def test_the_choice_is_random_and_the_same_for_a_seed(samples: Path) -> None:
    images = open_sample_images(str(samples))
    chosen = [tuple(verify.chosen_batches(images, count=1, seed=seed)) for seed in range(30)]
    assert chosen == [tuple(verify.chosen_batches(images, count=1, seed=seed)) for seed in range(30)]
    assert set(chosen) == {(0,), (1,), (2,)}


def test_a_set_that_does_not_say_how_it_was_drawn_is_refused(model: Path, samples: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(samples, tmp_path / "copy")
    said = json.loads((copy / "PROVENANCE.json").read_text())
    del said["num_steps"]
    (copy / "PROVENANCE.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="does not say how it was drawn: KeyError, 'num_steps'"):
        check(copy, model)
