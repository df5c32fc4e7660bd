from __future__ import annotations

import base64
import csv
import errno
import io
import json
import platform
import re
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import webdataset
from PIL import Image
from tiny_pipeline import IMAGE_SIZE_PX, SCHEMA, write_tiny_pipeline

from synfundus.artifacts.model_folder import DOCUMENT_NAME
from synfundus.artifacts.samples.layouts import open_sample_images
from synfundus.artifacts.samples.stores import ShardStore
from synfundus.config.schema import RunConfig
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, ManifestMismatch, StorageError
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.stages.export import job as export
from synfundus.stages.inspect.png_folder import open_png_folder, survey_png_folder
from synfundus.stages.sample import factory
from synfundus.stages.sample import job as sample
from synfundus.storage import filesystem
from synfundus.storage.local_folder import UNFINISHED_NAME
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import PlainConsole, SilentConsole

BATCH = 4


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfundus.artifacts.model.CPU_BATCH_SIZE", BATCH)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


def _config(model: Path, out: Path | str, *, seed: int = 0, **options: Any) -> RunConfig:
    settings = {"batch_size": BATCH, "num_steps": 3, "sampler": "ddim", "num_images": 6, **options}
    return RunConfig.model_validate(
        {"seed": seed, "sample": {"model": str(model), "out": str(out), **settings}, "launch": {"device": "cpu"}}
    )


def _sample(model: Path, out: Path | str, **options: Any) -> dict[str, Any]:
    return sample.run(_config(model, out, **options), LocalWorld(), SilentConsole())


def _same(found: dict[str, bytes]) -> dict[str, bytes]:
    """Return files without what differs between two runs: date, command, model's name and operator, in two places."""
    kept = dict(found)
    if "PROVENANCE.json" in kept:
        provenance = json.loads(kept["PROVENANCE.json"])
        varying = provenance.pop("generated").keys()
        assert varying - {"job"} == {"date", "command", "model", "account", "host"}
        kept["PROVENANCE.json"] = json.dumps(provenance).encode()
        pattern = rf"\| ({'|'.join(varying)}) \|".encode()
        said = [line for line in kept["README.md"].splitlines() if not re.match(pattern, line)]
        assert len(said) == len(kept["README.md"].splitlines()) - len(varying)
        kept["README.md"] = b"\n".join(said)
        own = re.compile(rb".*  (PROVENANCE\.json|README\.md|croissant\.json)\n")  # what differs has other sums
        kept["SHA256SUMS"] = own.sub(b"", kept["SHA256SUMS"])
        date = json.loads(found["PROVENANCE.json"])["generated"]["date"].encode()
        kept["croissant.json"] = kept["croissant.json"].replace(date, b"")
    return kept


def _files(out: Path, pattern: str = "**/*") -> dict[str, bytes]:
    return _same({str(path.relative_to(out)): path.read_bytes() for path in out.glob(pattern) if path.is_file()})


def _pixels(out: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    return {path.name: np.asarray(Image.open(path).convert("RGB")) for path in sorted((out / "images").glob("*.png"))}


def _plan(folder: Path, text: str) -> str:
    path = folder / "plan.csv"
    path.write_text(text)
    return str(path)


def test_the_number_of_images_changes_no_byte_of_an_image(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "few", num_images=5)
    _sample(model, tmp_path / "many", num_images=9)
    few, many = _files(tmp_path / "few", "images/*"), _files(tmp_path / "many", "images/*")
    assert few == {name: many[name] for name in few}


def test_images_differ_from_one_another_and_with_the_seed(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "a", num_images=4)
    _sample(model, tmp_path / "b", num_images=4, seed=1)
    a, b = _pixels(tmp_path / "a"), _pixels(tmp_path / "b")
    assert len({pixels.tobytes() for pixels in [*a.values(), *b.values()]}) == 8


def test_on_a_cpu_the_batch_size_changes_no_byte(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "a", num_images=9, batch_size=2)
    _sample(model, tmp_path / "b", num_images=9, batch_size=64)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _sample(model, tmp_path / "a", num_images=9, batch_size=7)["num_kept"] == 9


def test_labels_of_other_images_do_not_matter_own_labels_do(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "a", num_images=None, labels=_plan(tmp_path, "is_gc\n1\n0\n"))
    _sample(model, tmp_path / "b", num_images=None, labels=_plan(tmp_path, "is_gc\n1\n1\n"))
    a, b = _pixels(tmp_path / "a"), _pixels(tmp_path / "b")
    assert np.array_equal(a["00000000.png"], b["00000000.png"])
    assert not np.array_equal(a["00000001.png"], b["00000001.png"])


def test_without_labels_everything_is_unknown(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path, num_images=2, label={"eye_side": 1})
    with (tmp_path / "metadata.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = {"requested_dr_grade": "", "requested_is_gc": "", "requested_eye_side": "1"}
    assert rows == [{"file_name": f"images/0000000{i}.png", **labels} for i in range(2)]
    assert next(iter(rows[0])) == "file_name"


def test_every_image_says_that_it_is_synthetic_and_of_which_model(model: Path, tmp_path: Path) -> None:
    summary = _sample(model, tmp_path, num_images=2, seed=7)
    with Image.open(tmp_path / "images" / "00000001.png") as image:
        assert image.size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
        text = dict(image.info)
    assert (text["synthetic"], text["seed"], text["index"]) == ("yes", "7", "1")
    assert text["model"] == summary["fingerprint"]
    provenance = json.loads((tmp_path / "PROVENANCE.json").read_text())
    assert provenance["synthetic"] is True
    assert provenance["model_fingerprint"] == summary["fingerprint"]
    assert (provenance["sampler"], provenance["num_steps"], provenance["seed"]) == ("ddim", 3, 7)
    assert provenance["num_images"] == 2
    page = (tmp_path / "contact-sheet.html").read_text()
    sheet = Image.open(io.BytesIO(base64.b64decode(page.partition("base64,")[2].partition('"')[0])))
    sheet.load()
    assert sheet.info["synthetic"] == "yes"
    for made in (image, sheet):
        assert "digitalsourcetype/trainedAlgorithmicMedia" in made.info["XML:com.adobe.xmp"]
        ElementTree.fromstring(made.info["XML:com.adobe.xmp"].partition("?>")[2].rpartition("<?")[0])


def test_every_picture_in_the_folder_is_a_row_of_its_table_as_imagefolder_reads_it(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path, num_images=3)
    pictures = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg")}
    with (tmp_path / "metadata.csv").open(newline="") as stream:
        assert {row["file_name"] for row in csv.DictReader(stream)} == pictures
    assert len(pictures) == 3


def test_the_layout_of_synfundus_1m_has_its_files_and_its_table_and_is_inspected_and_verified(
    model: Path, tmp_path: Path
) -> None:
    plan = _plan(tmp_path, "is_gc,eye_side\n1,0\n0,\n")
    _sample(model, tmp_path / "out", num_images=None, labels=plan, layout="synfundus-1m")
    assert _sample(model, tmp_path / "out", num_images=None, labels=plan, layout="synfundus-1m")["num_kept"] == 2
    assert sorted(path.name for path in (tmp_path / "out" / "Part0").iterdir()) == ["0.png", "1.png"]
    table = (tmp_path / "out" / "SynFundus-1M_gen_cond.csv").read_text()
    assert table == "idx,dr_grade,is_gc,eye_side\n0,,1,0\n1,,0,\n"
    found = survey_png_folder(open_png_folder(str(tmp_path / "out")), verify=True, console=SilentConsole())
    assert (found["good"], found["problems"]) == (2, [])
    images = open_sample_images(str(tmp_path / "out"))
    _sample(model, tmp_path / "plain", num_images=None, labels=plan)
    assert images.read(1) == (tmp_path / "plain" / "images" / "00000001.png").read_bytes()
    with pytest.raises(ConfigError, match="layout is 'synfundus-1m' there, 'absent' here"):
        _sample(model, tmp_path / "out", num_images=None, labels=plan)
    with pytest.raises(ValueError, match="leave format=shards out"):
        _config(model, tmp_path, layout="synfundus-1m", format="shards")


@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_a_folder_explains_itself(
    model: Path, tmp_path: Path, image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "a.person")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    summary = _sample(model, tmp_path, num_images=2, seed=7, format=image_format)
    said = (tmp_path / "README.md").read_text()
    for word in (
        "requested, not verified",
        "no ground truth",
        "Not cleared for release",
        "Not for diagnosis",
        "Licence",
        "metadata.csv",
        "synfundus judge --samples path/to/this/folder --data",
        "| account | `a.person` |",
        f"| host | `{platform.node()}` |",
        "| job | `4711` |",
    ):
        assert word in said, word
    today = datetime.now(UTC).date().isoformat()
    facts = (summary["fingerprint"], "ddim", "| num steps | `3` |", "| seed | `7` |", today, "synfundus ", model.name)
    for fact in facts:
        assert fact in said, fact
    provenance = json.loads((tmp_path / "PROVENANCE.json").read_text())
    assert "requested" in provenance["labels_are"]
    assert provenance["release"].startswith("not cleared")
    assert provenance["generated"]["model"] == model.name
    if image_format == "shards":
        (block,) = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
        found: dict[str, Any] = {}
        exec(block.replace("path/to/this/folder", str(tmp_path)), found)
        assert len(found["images"]) == 2


def test_the_table_of_a_folder_is_a_label_plan_for_the_next(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "a", num_images=None, labels=_plan(tmp_path, "is_gc,eye_side\n1,0\n0,\n"))
    _sample(model, tmp_path / "b", num_images=None, labels=str(tmp_path / "a" / "metadata.csv"))
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_more_images_of_a_request_are_added_to_those_that_are_there(
    model: Path, tmp_path: Path, image_format: str
) -> None:
    plan = _plan(tmp_path, "is_gc\n" + "1\n0\n" * 5)
    _sample(model, tmp_path / "grown", num_images=5, labels=plan, format=image_format)
    kept = _sample(model, tmp_path / "grown", num_images=9, labels=plan, format=image_format)
    assert kept["num_kept"] == (4 if image_format == "png" else 0), "whole batches; whole shards"
    _sample(model, tmp_path / "whole", num_images=9, labels=plan, format=image_format)
    assert _files(tmp_path / "grown") == _files(tmp_path / "whole")
    with pytest.raises(ConfigError, match="another request: num_images is 9 there, 5 here"):
        _sample(model, tmp_path / "grown", num_images=5, labels=plan, format=image_format)


def test_a_folder_of_an_earlier_version_is_completed_and_told_anew(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "new", num_images=2)
    old = shutil.copytree(tmp_path / "new", tmp_path / "old")
    table = (old / "metadata.csv").read_text().replace("requested_", "").replace("file_name", "file")
    (old / "labels.csv").write_text(table)
    (old / "contact-sheet.png").write_bytes(b"a sheet")
    for name in ("metadata.csv", "README.md", "contact-sheet.html"):
        (old / name).unlink()
    with pytest.raises(ConfigError, match="is_gc of image 0 is 'unknown' there, 1 here"):
        _sample(model, old, num_images=2, label={"is_gc": 1})
    assert _sample(model, old, num_images=2)["num_kept"] == 2
    assert _files(old) == _files(tmp_path / "new")


def test_the_models_own_settings_are_taken_unless_others_are_given(tmp_path: Path) -> None:
    advice = SamplerSettings("euler", 3, 3.0, (0.0, 0.5), 0.25)
    write_tiny_pipeline(tmp_path / "run" / "export", recommended_sampling=advice)
    settings = {"model": str(tmp_path / "run"), "num_images": 1, "batch_size": 1}
    said: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = [{}, {"num_steps": 2}]
    for number, given in enumerate(changes):
        out = tmp_path / str(number)
        config = {"sample": {**settings, "out": str(out), **given}, "launch": {"device": "cpu"}}
        sample.run(RunConfig.model_validate(config), LocalWorld(), SilentConsole())
        said.append(json.loads((out / "PROVENANCE.json").read_text()))
    for key, value in advice.to_document().items():
        assert said[0][key] == (list(value) if isinstance(value, tuple) else value)
    assert (said[1]["sampler"], said[1]["num_steps"]) == ("euler", 2)


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "whole", num_images=9)
    _sample(model, tmp_path / "cut", num_images=9)
    images = tmp_path / "cut" / "images"
    (images / "00000005.png").unlink()
    (images / "00000008.png").write_bytes((images / "00000008.png").read_bytes()[:-8])
    (tmp_path / "cut" / "PROVENANCE.json").unlink()
    kept = images / "00000000.png"
    before = kept.stat().st_mtime_ns
    assert _sample(model, tmp_path / "cut", num_images=9)["num_kept"] == 4
    assert kept.stat().st_mtime_ns == before
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"num_steps": 4}, "num_steps is 3 there, 4 here"),
        ({"guidance_scale": 1.0}, "guidance_scale"),
        ({"label": {"is_gc": 1}}, "is_gc of image 0 is 'unknown' there, 1 here"),
    ],
)
def test_another_request_in_the_same_folder_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    _sample(model, tmp_path, num_images=2)
    before = _files(tmp_path)
    with pytest.raises(ConfigError, match=said):
        _sample(model, tmp_path, **{"num_images": 2, **changes})
    assert _files(tmp_path) == before


def test_a_folder_with_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"holiday\.txt"):
        _sample(model, tmp_path)


def test_labels_the_model_does_not_know_are_refused_naming_both(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is_pm; its labels are dr_grade, is_gc, eye_side"):
        _sample(model, tmp_path / "out", label={"is_pm": 1})
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_put_in_from_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_pipeline(tmp_path / "run" / "export")
    LatentAutoencoder.from_pretrained(
        write_tiny_pipeline(tmp_path / "other" / "export", seed=5) / "vae"
    ).save_pretrained(folder / "vae")
    with pytest.raises(ManifestMismatch):
        _sample(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "euler", "heun"])
def test_every_sampler_makes_images(model: Path, tmp_path: Path, sampler: str) -> None:
    _sample(model, tmp_path, num_images=1, sampler=sampler)
    assert _pixels(tmp_path)["00000000.png"].std() > 0


def test_bf16_stays_close_to_fp32(model: Path, tmp_path: Path) -> None:
    _sample(model, tmp_path / "a", num_images=2, guidance_scale=1.0)
    _sample(model, tmp_path / "b", num_images=2, guidance_scale=1.0, precision="bf16")
    a, b = _pixels(tmp_path / "a"), _pixels(tmp_path / "b")
    differences = [np.abs(a[name].astype(int) - b[name].astype(int)).mean() for name in a]
    assert 0 < max(differences) < 12


def test_the_guidance_interval_is_a_part_of_the_way(model: Path, tmp_path: Path) -> None:
    label = {"is_gc": 1}
    options: dict[str, Any] = {"num_images": 1, "label": label, "guidance_scale": 4.0, "num_steps": 4}
    plain = {**options, "guidance_scale": 1.0}
    intervals = {"whole": (0.0, 1.0), "first": (0.0, 0.5), "second": (0.5, 1.0), "sliver": (0.3, 0.35)}
    for name, interval in intervals.items():
        _sample(model, tmp_path / name, guidance_interval=interval, **options)
    _sample(model, tmp_path / "none", **plain)
    found = {name: _pixels(tmp_path / name)["00000000.png"].tobytes() for name in [*intervals, "none"]}
    assert found["sliver"] == found["none"], "no step lies between three and three and a half tenths of the way"
    assert len({found[name] for name in ("whole", "first", "second", "none")}) == 4


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_shards_hold_the_same_images_and_plain_webdataset_reads_them(model: Path, tmp_path: Path) -> None:
    plan = _plan(tmp_path, "is_gc,eye_side\n" + "1,0\n0,\n" * 3)
    _sample(model, tmp_path / "png", num_images=None, labels=plan)
    _sample(model, tmp_path / "shards", num_images=None, labels=plan, format="shards")
    samples = load_shard_set(str(tmp_path / "shards"), kind="samples")
    assert samples.num_samples() == 6
    assert samples.label_schema == SCHEMA
    assert samples.properties["num_steps"] == 3
    tars = [str(path) for path in sorted((tmp_path / "shards" / "train").glob("*.tar"))]
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [entry["__key__"] for entry in read] == [f"{i:08d}" for i in range(6)]
    for index, (entry, pixels) in enumerate(zip(read, _pixels(tmp_path / "png").values(), strict=True)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(entry["png"]))), pixels)
        document = json.loads(entry["json"])
        assert document["index"] == index
        assert document["labels"]["is_gc"] == 1 - index % 2
        assert document["eye_side"] == (0 if index % 2 == 0 else None)


class Stopped(BaseException):
    """What stands for a signal or a kill."""


def _stopped(model: Path, out: Path | str, *, at: int, **options: Any) -> None:
    """Sample, and stop in the network's N-th batch."""
    draw, calls = factory._draw, iter(range(1, at + 1))

    def stopping(*arguments: Any) -> Any:
        if next(calls) == at:
            raise Stopped
        return draw(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_draw", stopping)
        with pytest.raises(Stopped):
            _sample(model, out, **options)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfundus.artifacts.samples.stores._SHARD_IMAGES", 2 * BATCH)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_a_run_that_is_stopped_anywhere_loses_one_batch_and_ends_with_the_same_bytes(
    model: Path, tmp_path: Path, image_format: str
) -> None:
    options: dict[str, Any] = {"num_images": 18, "format": image_format}
    _sample(model, tmp_path / "whole", **options)
    whole = _files(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".tar")]) == (3 if image_format == "shards" else 0)
    for at in range(1, 6):
        out = tmp_path / str(at)
        _stopped(model, out, at=at, **options)
        assert "PROVENANCE.json" not in _files(out)
        assert _sample(model, out, **options)["num_kept"] == (at - 1) * BATCH
        assert _files(out) == whole


@pytest.mark.usefixtures("small_shards")
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 18, "format": "shards"}
    for _ in range(4):
        _stopped(model, tmp_path / "stopped", at=2, **options)
    assert _sample(model, tmp_path / "stopped", **options)["num_kept"] == 4 * BATCH
    _sample(model, tmp_path / "whole", **options)
    assert _files(tmp_path / "stopped") == _files(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_part_that_is_damaged_before_it_is_merged_is_named_and_drawn_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"num_images": 18, "format": "shards"}
    _stopped(model, tmp_path / "cut", at=2, **options)
    (part,) = (tmp_path / "cut" / "parts").glob("*.tar")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    sample.run(_config(model, tmp_path / "cut", **options), LocalWorld(), PlainConsole())
    said = "damaged on the disk before they were merged into train/000000.tar: images 0 to 3; redrawn"
    assert said in capsys.readouterr().err
    _sample(model, tmp_path / "whole", **options)
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_a_disk_that_keeps_nothing_ends_the_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write", lambda *_: None)
        with pytest.raises(StorageError, match=r"train/000000\.tar are damaged each time they are read back") as caught:
            _sample(model, tmp_path, num_images=4, format="shards")
    assert caught.value.hint == "check the disk or the store"
    assert _sample(model, tmp_path, num_images=4, format="shards")["num_kept"] == 0


@pytest.mark.usefixtures("small_shards")
def test_a_part_that_is_gone_is_drawn_again(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 10, "format": "shards"}
    _stopped(model, tmp_path / "cut", at=2, **options)
    (part,) = (tmp_path / "cut" / "parts").glob("*.tar")
    part.unlink()
    _sample(model, tmp_path / "cut", **options)
    assert load_shard_set(str(tmp_path / "cut"), kind="samples").num_samples() == 10


@pytest.mark.usefixtures("small_shards")
def test_a_file_beside_the_parts_is_left_alone(model: Path, tmp_path: Path) -> None:
    _stopped(model, tmp_path, at=2, num_images=10, format="shards")
    (tmp_path / "parts" / "notes.txt").write_text("mine")
    _sample(model, tmp_path, num_images=10, format="shards")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("small_shards")
def test_a_full_disk_ends_the_run_and_keeps_what_is_written(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 18, "format": "shards"}
    write, calls = ShardStore.write, iter(range(9))

    def full(store: ShardStore, encoded: Any) -> None:
        if next(calls) == 2:
            with filesystem.storage_errors("write", str(tmp_path)):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(store, encoded)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardStore, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            _sample(model, tmp_path / "full", **options)
    assert _sample(model, tmp_path / "full", **options)["num_kept"] == 2 * BATCH
    _sample(model, tmp_path / "whole", **options)
    assert _files(tmp_path / "full") == _files(tmp_path / "whole")


@pytest.mark.usefixtures("memory_store", "small_shards")
@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_an_object_store_gets_the_same_files_and_a_stopped_run_is_resumed_there(
    model: Path, tmp_path: Path, image_format: str
) -> None:
    _sample(model, tmp_path / "disk", num_images=18, format=image_format)
    out = f"memory://samples-{secrets.token_hex(4)}"
    try:
        _stopped(model, out, at=4, num_images=18, format=image_format)
        done = [name for name in filesystem.list_files(out) if name.endswith((".png", ".tar"))]
        assert 0 < len(done) < len(_files(tmp_path / "disk"))
        assert "PROVENANCE.json" not in filesystem.list_files(out)
        summary = _sample(model, out, num_images=18, format=image_format)
        assert summary["num_kept"] == 3 * BATCH
        found = {name: filesystem.read_bytes(filesystem.join(out, name)) for name in filesystem.list_files(out)}
        assert _same(found) == _files(tmp_path / "disk")
    finally:
        filesystem.remove(out, recursive=True)


def test_an_export_samples_the_same_images_as_its_run(model: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {"export": {"run_dir": str(model), "out": str(tmp_path / "exported")}, "launch": {"device": "cpu"}}
    )
    summary = export.run(config, LocalWorld(), SilentConsole())
    _sample(model, tmp_path / "a", num_images=3)
    assert _sample(tmp_path / "exported", tmp_path / "b", num_images=3)["fingerprint"] == summary["fingerprint"]
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


@pytest.mark.usefixtures("memory_store")
def test_an_export_goes_to_an_object_store_and_over_what_a_kill_left_there(model: Path) -> None:
    out = f"memory://exported-{secrets.token_hex(4)}"
    config = RunConfig.model_validate({"export": {"run_dir": str(model), "out": out}, "launch": {"device": "cpu"}})
    try:
        first = export.run(config, LocalWorld(), SilentConsole())
        filesystem.remove(f"{out}/{DOCUMENT_NAME}")
        with pytest.raises(ConfigError, match="something else"):
            export.run(config, LocalWorld(), SilentConsole())
        filesystem.write_bytes(f"{out}/{UNFINISHED_NAME}", b"")
        assert export.run(config, LocalWorld(), SilentConsole()) == first
        listed = set(filesystem.list_files(out))
        assert listed == {name.removeprefix("export/") for name in _files(model)}
    finally:
        filesystem.remove(out, recursive=True)


def test_an_export_does_not_overwrite_something_else(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    config = RunConfig.model_validate({"export": {"run_dir": str(model), "out": str(tmp_path)}})
    with pytest.raises(ConfigError, match="something else"):
        export.run(config, LocalWorld(), SilentConsole())
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_model_of_another_label_schema_takes_its_own_labels(tmp_path: Path) -> None:
    schema = LabelSchema((LabelSpec("cataract", 3, ordinal=True),))
    write_tiny_pipeline(tmp_path / "run" / "export", schema=schema)
    _sample(tmp_path / "run", tmp_path / "out", num_images=1, label={"cataract": 2})
    with Image.open(tmp_path / "out" / "images" / "00000000.png") as image:
        assert json.loads(image.info["labels"]) == {"cataract": 2}
