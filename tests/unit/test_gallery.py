"""A gallery holds every image of a set or names it as a reject; its data are the labels of the set."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gallery_folders import disc, label_rows, write_png_samples, write_shard_samples
from PIL import Image
from told import Shell, refusal

from synfundus.config.sample_sets import GalleryConfig
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.pictures.sheets import PATIENTS_NOTE
from synfundus.stages.gallery import job
from synfundus.stages.gallery.embedding import LARGEST, principal_plane
from synfundus.stages.gallery.page import ASSETS, PAGE_NAME, label_title, shown_labels, value_names
from synfundus.stages.gallery.sheets import large_tile_px, make_sheets
from synfundus.telemetry.console import SilentConsole, WarningsConsole

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web" / "gallery"
BUILT = ROOT / "synfundus" / "stages" / "gallery" / "assets"


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def make(out: Path, samples: Path, real: Path | None = None, **settings: Any) -> dict[str, Any]:
    section = GalleryConfig(
        samples=str(samples), real=None if real is None else str(real), out=str(out), **{"workers": 0, **settings}
    )
    return job.make_gallery(section, SilentConsole())


def data(out: Path) -> dict[str, Any]:
    text = (out / "data" / "gallery.js").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text.partition(" = ")[2].rstrip(";\n"))
    return found


def column(text: str, kind: type[np.unsignedinteger[Any]] = np.uint8) -> list[int]:
    return [int(value) for value in np.frombuffer(base64.b64decode(text), kind)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tile(path: Path, number: int, *, edge: int = 128, side: int = 8) -> np.ndarray[Any, Any]:
    with Image.open(path) as sheet:
        assert sheet.size == (edge * side, edge * side)
        row, at = divmod(number, side)
        return np.asarray(sheet)[row * edge : (row + 1) * edge, at * edge : (at + 1) * edge]


@pytest.mark.parametrize("layout", ["png", "shards"])
def test_every_image_has_its_labels_and_its_tile(layout: str, tmp_path: Path) -> None:
    rows = label_rows(70)
    write = write_png_samples if layout == "png" else write_shard_samples
    summary = make(tmp_path / "gallery", write(tmp_path / "samples", rows))
    assert summary["shown"] == {"synthetic": 70}
    assert summary["rejected"] == 0
    found = data(tmp_path / "gallery")
    (group,) = found["groups"]
    assert group["count"] == len(group["names"].split("\n")) == 70
    assert column(group["positions"], np.uint32) == list(range(70))
    for label, states in zip(found["labels"], group["states"], strict=True):
        wanted = [row.get(label["name"]) for row in rows]
        assert column(states) == [0 if value is None else value + 1 for value in wanted]
    for number in (0, 63, 69):
        shown = tile(tmp_path / "gallery" / "tiles" / f"synthetic-{number // 64:06d}.jpg", number % 64)
        assert np.abs(shown[64, 64].astype(int) - disc(number)[32, 32]).max() < 6
    assert group["large"] is None
    assert not (tmp_path / "gallery" / "large").exists()


def test_sheets_say_that_they_are_synthetic(tmp_path: Path) -> None:
    rows = label_rows(3)
    real = write_shard_samples(tmp_path / "real", rows, kind="images")
    make(tmp_path / "gallery", write_png_samples(tmp_path / "samples", rows), real)
    with Image.open(tmp_path / "gallery" / "tiles" / "synthetic-000000.jpg") as sheet:
        assert b"trainedAlgorithmicMedia" in sheet.info["xmp"]
        assert sheet.info["comment"] == b"synthetic: yes"
    with Image.open(tmp_path / "gallery" / "tiles" / "real-000000.jpg") as sheet:
        assert not {"xmp", "comment"} & sheet.info.keys()


def test_larger_images_get_larger_tiles_or_are_copied(tmp_path: Path) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(20), size_px=200)
    make(tmp_path / "gallery", samples)
    large = data(tmp_path / "gallery")["groups"][0]["large"]
    assert large == {"px": 192, "side": 4}
    shown = tile(tmp_path / "gallery" / "large" / "synthetic-000001.jpg", 3, edge=192, side=4)
    assert np.abs(shown[96, 96].astype(int) - disc(19)[32, 32]).max() < 4
    make(tmp_path / "full", samples, full_images=True)
    group = data(tmp_path / "full")["groups"][0]
    assert (group["large"], group["full"]) == (None, "png")
    copied = tmp_path / "full" / "images" / "synthetic-00000019.png"
    assert copied.read_bytes() == (samples / "images" / "00000019.png").read_bytes()


def test_large_tiles_are_blocks_of_jpeg_and_never_enlarged() -> None:
    assert large_tile_px(256, 512, full=False) == 256
    assert large_tile_px(300, 512, full=False) == 288
    assert large_tile_px(512, 200, full=False) == 192
    assert large_tile_px(256, 128, full=False) == large_tile_px(512, 512, full=True) == 0
    assert large_tile_px(256, 0, full=False) == 256


def test_images_that_cannot_be_read_are_named_and_the_others_keep_their_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(5))
    (samples / "images" / "00000001.png").unlink()
    (samples / "images" / "00000003.png").write_bytes(b"no image")
    job.make_gallery(GalleryConfig(samples=str(samples), out=str(tmp_path / "out"), workers=0), WarningsConsole())
    assert "warning: not shown: images/00000001.png: cannot read: not found" in capsys.readouterr().err
    (group,) = data(tmp_path / "out")["groups"]
    assert column(group["positions"], np.uint32) == [0, 2, 4]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [one["name"] for one in rejects] == ["images/00000001.png", "images/00000003.png"]
    assert group["count"] + len(rejects) == 5
    assert data(tmp_path / "out")["rejected"] == 2


def test_a_set_of_which_nothing_can_be_shown_is_refused(tmp_path: Path) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(1))
    (samples / "images" / "00000000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 1 images can be shown"):
        make(tmp_path / "out", samples)
    assert not (tmp_path / "out" / PAGE_NAME).exists()


def test_a_stopped_run_keeps_its_parts_and_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(140))
    make(tmp_path / "whole", samples)
    made: list[int] = []

    def stopping(task: Any) -> Any:
        made.append(task.number)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make_sheets(task)

    monkeypatch.setattr(job, "make_sheets", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", samples)
    make(tmp_path / "out", samples)
    assert made == [0, 1, 1, 2]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    made.clear()
    assert make(tmp_path / "out", samples)["shown"] == {"synthetic": 140}
    assert made == []


def test_worker_processes_make_the_same_files(tmp_path: Path) -> None:
    samples = write_shard_samples(tmp_path / "samples", label_rows(70))
    make(tmp_path / "one", samples)
    make(tmp_path / "two", samples, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_set_is_refused_in_a_begun_folder(tmp_path: Path) -> None:
    make(tmp_path / "out", write_png_samples(tmp_path / "a", label_rows(2)))
    other = write_png_samples(tmp_path / "b", label_rows(3))
    with pytest.raises(ConfigError, match="a gallery of other images"):
        make(tmp_path / "out", other)
    make(tmp_path / "elsewhere", other)


def test_photographs_of_patients_are_told_of(tmp_path: Path) -> None:
    samples, rows = write_png_samples(tmp_path / "samples", label_rows(2)), label_rows(3)
    patients = write_shard_samples(tmp_path / "patients", rows, kind="images")
    drawn = write_shard_samples(tmp_path / "drawn", rows, kind="images", drawn=True)
    assert make(tmp_path / "a", samples, patients)["note"] == PATIENTS_NOTE
    assert data(tmp_path / "a")["patients"] == PATIENTS_NOTE
    assert make(tmp_path / "b", samples, drawn)["note"] == ""
    assert [group["mark"] for group in data(tmp_path / "b")["groups"]] == ["yes", "drawn"]


def test_hints_of_sets_that_are_none_or_mean_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refusal("give a complete folder written by `sample`"):
        make(tmp_path / "out", tmp_path / "empty")
    schema = LabelSchema((LabelSpec("dr_grade", 3, ordinal=True),))
    samples = write_png_samples(tmp_path / "samples", [{"dr_grade": 1}], schema=schema)
    real = write_shard_samples(tmp_path / "real", label_rows(4), kind="images")
    with refusal("give the image set the model was trained with, or leave --real out"):
        make(tmp_path / "out", samples, real)
    make(tmp_path / "out", samples)


def test_a_table_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(1))
    (tmp_path / "secret.png").write_bytes((samples / "images" / "00000000.png").read_bytes())
    table = samples / "metadata.csv"
    table.write_text(table.read_text().replace("images/00000000.png", "../secret.png"))
    with pytest.raises(ConfigError, match="names no file of its folder"):
        make(tmp_path / "out", samples)


def test_the_command_takes_set_and_rehearses(shell: Shell, tmp_path: Path) -> None:
    samples = write_png_samples(tmp_path / "samples", label_rows(2))
    words = ("gallery", "--set", samples, "--out", tmp_path / "out", "--set", "gallery.workers=0")
    said = shell.done(*words, "--dry-run")
    assert "synthetic: 2 images" in said
    assert not (tmp_path / "out").exists()
    assert "open it in a browser" in shell.done(*words)
    assert (tmp_path / "out" / PAGE_NAME).stat().st_mode & 0o077 == 0
    assert "a gallery of other images" in shell(*words, "--full-images", "--dry-run").said
    assert "KEY=VALUE" in shell("inspect", "--data", samples, "--set", samples).said


def test_labels_are_told_in_words() -> None:
    title = {spec.name: label_title(spec) for spec in DEFAULT_LABEL_SCHEMA.labels}
    assert title["dr_grade"] == "diabetic retinopathy"
    assert title["is_gc"] == "glaucoma"
    assert title["eye_side"] == "eye side"
    assert value_names(DEFAULT_LABEL_SCHEMA["dr_grade"])[4] == "4 proliferative"
    assert value_names(LabelSpec("own", 3)) == ["0", "1", "2"]
    first, second = (
        LabelSchema((LabelSpec("a", 2), LabelSpec("b", 2))),
        LabelSchema((LabelSpec("c", 2), LabelSpec("a", 2))),
    )
    assert [spec.name for spec in shown_labels([first, second])] == ["a", "b", "c"]


def test_the_map_shows_the_plane_of_largest_variance() -> None:
    rng = np.random.default_rng(3)
    far = rng.integers(0, 2, (500, 1)) * 90
    features = np.full((500, 12), 100) + far * (np.arange(12) < 9) + rng.integers(0, 9, (500, 12))
    places, (first, second) = principal_plane(features.astype(np.uint8))
    assert first > 0.95
    assert first + second <= 1
    assert places.min() == 0
    assert places.max() == LARGEST
    assert (places[far[:, 0] > 0, 0].min() > places[far[:, 0] == 0, 0].max()).all()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_map_of_few_or_equal_images_is_a_map(count: int) -> None:
    places, variance = principal_plane(np.full((count, 6), 7, np.uint8))
    assert places.shape == (count, 2)
    assert np.isfinite(variance).all()


def test_the_built_page_is_that_of_the_sources() -> None:
    digest = hashlib.sha256()
    for path in sorted((WEB / "src").iterdir()):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    script = (BUILT / "page.js").read_text(encoding="utf-8")
    assert digest.hexdigest() in script.partition("\n")[0], "run npm run build in web/gallery"
    for name in ("page.css", PAGE_NAME):
        assert (BUILT / name).read_bytes() == (WEB / "src" / name).read_bytes()


def test_esbuild_makes_the_built_script_of_the_sources() -> None:
    if not shutil.which("node") or not (WEB / "node_modules" / "esbuild").is_dir():
        pytest.skip("needs node, and `npm ci` in web/gallery")
    done = subprocess.run(["node", "build.js", "--check"], cwd=WEB, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_page_asks_for_nothing_but_its_folder() -> None:
    page = (BUILT / PAGE_NAME).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert not re.search(r"\son\w+=|style=|<script>", page), "inline scripts and styles are refused"
    for name in (*ASSETS, PAGE_NAME):
        assert not re.search(r"https?:|//cdn|@import", (BUILT / name).read_text(encoding="utf-8"))
    assert io.StringIO(page).read().count("<script") == 2
