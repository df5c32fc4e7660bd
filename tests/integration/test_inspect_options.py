"""Everything that `inspect` opens, with every option: an option does what it says, or is refused."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_pipeline import IMAGE_SIZE_PX, SCHEMA, write_tiny_pipeline
from tiny_sets import flip_byte, phantom_samples, tiny_config, write_numbered_set, write_set

from synfundus.cli.app import run_command
from synfundus.distributed.world import LocalWorld
from synfundus.errors import DataError
from synfundus.stages.inspect import job as inspect
from synfundus.stages.sample import job as sample
from synfundus.telemetry.console import SilentConsole

NUM_IMAGES = 4
KINDS = ("images", "latents", "shards of samples", "PNG files")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("written")
    model = write_tiny_pipeline(root / "model" / "export").parent
    section = {"model": str(model), "num_images": NUM_IMAGES, "num_steps": 2, "label": {"dr_grade": "3"}}
    section |= {"batch_size": NUM_IMAGES, "sampler": "ddim"}
    for kind, form in (("PNG files", "png"), ("shards of samples", "shards")):
        given = {"sample": {**section, "format": form, "out": str(root / kind)}, "launch": {"device": "cpu"}}
        sample.run(tiny_config(given), LocalWorld(), SilentConsole())
    write_set(root / "images", phantom_samples(NUM_IMAGES), shards={"train": (NUM_IMAGES,)})
    write_numbered_set(root / "latents", (NUM_IMAGES,))
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def samples(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["PNG files"], tmp_path / "samples"))


def look(folder: Path, **section: Any) -> dict[str, Any]:
    return inspect.run(tiny_config({"inspect": {"data": str(folder), **section}}), LocalWorld(), SilentConsole())


def problems(folder: Path, *, verify: bool = True) -> dict[str, str]:
    report = look(folder, verify=verify)
    assert report["ok"] is not bool(report["problems"])
    assert report["exit_code"] == (3 if report["problems"] else 0)
    assert report["good"] + report["damaged"] + len(report.get("missing", [])) == report["num_samples"]
    return {problem["place"]: problem["reason"] for problem in report["problems"]}


@pytest.mark.parametrize("kind", KINDS)
def test_out_holds_the_report_and_a_sheet_of_so_many_images(
    kind: str, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heights = {}
    for images in (0, 1, NUM_IMAGES):
        out = tmp_path / str(images)
        arguments = ["inspect", "--data", str(written[kind]), "--out", str(out), "--images", str(images)]
        assert run_command([*arguments, "--dry-run"]) == 0
        assert not out.exists()
        capsys.readouterr()
        assert run_command([*arguments, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        saved = json.loads((out / "inspect.json").read_text())
        assert {**saved, **report} == saved
        assert saved["num_samples"] == NUM_IMAGES
        if images:
            with Image.open(out / "contact_sheet.png") as sheet:
                heights[images] = sheet.size
                assert sheet.info.get("synthetic") == (None if kind in ("images", "latents") else "yes")
    assert not (tmp_path / "0" / "contact_sheet.png").exists()
    assert heights[1] != heights[NUM_IMAGES], "more tiles take more place"


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_something_else_is_refused(kind: str, written: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "contact_sheet.png").write_bytes(b"mine")
    arguments = ["inspect", "--data", str(written[kind]), "--out", str(tmp_path)]
    assert run_command(arguments) == 2
    assert run_command([*arguments, "--dry-run"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["contact_sheet.png"]


def place_of_values(path: Path) -> int:
    """Return where in a file a byte of an image or of moments is, which only --verify reads."""
    if path.suffix == ".png":
        return path.stat().st_size // 2
    with tarfile.open(path) as archive:
        member = next(member for member in archive if not member.name.endswith(".json"))
        return member.offset_data + member.size // 2


@pytest.mark.parametrize("kind", KINDS)
def test_verify_reads_every_byte(
    kind: str, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(written[kind], tmp_path / "copy"))
    assert run_command(["inspect", "--data", str(copy), "--verify"]) == 0
    assert f"verified: {NUM_IMAGES} samples" in capsys.readouterr().out
    victim = copy / "images" / "00000002.png" if kind == "PNG files" else next(copy.rglob("*.tar"))
    flip_byte(victim, place_of_values(victim))
    assert run_command(["inspect", "--data", str(copy)]) == 0
    assert "--verify reads every byte" in capsys.readouterr().out
    assert run_command(["inspect", "--data", str(copy), "--verify"]) == 3
    said = capsys.readouterr().out
    assert f"damaged: {NUM_IMAGES - 1} of {NUM_IMAGES} samples are valid" in said
    assert victim.name in said


def test_no_byte_of_a_png_file_may_change(samples: Path) -> None:
    victim = samples / "images" / "00000001.png"
    sound = victim.read_bytes()
    for position in range(0, len(sound), max(1, len(sound) // 60)):
        flip_byte(victim, position)
        assert list(problems(samples)) == ["images/00000001.png"], position
        victim.write_bytes(sound)
    victim.write_bytes(sound[:-4])
    assert list(problems(samples)) == ["images/00000001.png"]


def swap(samples: Path) -> None:
    (samples / "images" / "00000000.png").write_bytes((samples / "images" / "00000003.png").read_bytes())


def save_again(samples: Path, size_px: int = IMAGE_SIZE_PX, **changes: str) -> None:
    path = samples / "images" / "00000000.png"
    with Image.open(path) as image:
        text: dict[str, str] = {**{str(key): str(value) for key, value in image.info.items()}, **changes}
        info = PngInfo()
        for key, value in text.items():
            info.add_text(key, value)
        image.resize((size_px, size_px)).save(path, pnginfo=info)


def edit_table(samples: Path, old: str, new: str) -> None:
    table = samples / "metadata.csv"
    table.write_text(table.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (swap, "images/00000000.png", "its text 'index' is '3', expected '0'"),
        (lambda samples: save_again(samples, 16), "images/00000000.png", "image of (16, 16, 3), expected 32 px"),
        (lambda samples: save_again(samples, synthetic="no"), "images/00000000.png", "its text 'synthetic' is 'no'"),
        (lambda samples: save_again(samples, model="f" * 64), "images/00000000.png", "its text 'model' is"),
        (lambda samples: save_again(samples, labels="[1]"), "images/00000000.png", "not a list of labels"),
        (lambda samples: edit_table(samples, "0.png,3", "0.png,2"), "images/00000000.png", "in the file: dr_grade"),
        (lambda samples: edit_table(samples, "1.png", "0.png"), "images/00000000.png", "named in 2 rows of the table"),
        (lambda samples: edit_table(samples, "images/00000001.png,3,,\n", ""), "PROVENANCE.json", "it says 4 images"),
        (lambda samples: shutil.copy(samples / "images" / "00000000.png", samples / "images" / "new.png"),
         "images/new.png", "no row of the table names it"),
        (lambda samples: (samples / "images" / "00000000.png").unlink(), "images/00000000.png", "missing"),
        (lambda samples: edit_table(samples, "images/0", "../samples/images/0"), "../samples/images/00000000.png",
         "missing"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_written_is_named(
    change: Callable[[Path], Any], place: str, words: str, samples: Path
) -> None:
    assert problems(samples) == {}
    change(samples)
    found = problems(samples)
    assert words in found[place]
    assert (place in problems(samples, verify=False)) is (words == "missing")


def test_a_table_that_cannot_be_read_is_refused(samples: Path) -> None:
    edit_table(samples, "0.png,3", "0.png,3,1,1,1,1")
    with pytest.raises(DataError, match=re.escape("line 2: 8 cells under 4 columns")):
        look(samples)
    (samples / "metadata.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="table of samples"):
        look(samples)


def test_the_labels_asked_for_are_counted(samples: Path) -> None:
    edit_table(samples, "0.png,3", "0.png,1")
    report = look(samples)
    assert report["labels"] == {SCHEMA.names[0]: {"1": 1, "3": NUM_IMAGES - 1}}
    assert report["kind"] == "samples"
