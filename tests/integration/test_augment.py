"""`augment`: photographs bit for bit in their splits, generated images beside those of the train split."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_processes import run_cli
from tiny_pipeline import IMAGE_SIZE_PX, SCHEMA, write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import encode_png, write_set

from synfundus import open_dataset
from synfundus.artifacts.samples.augmented import AugmentedSet
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.evaluation.examination.verdict import Examination, Fault
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.stages import Summary
from synfundus.stages.augment import job as augment
from synfundus.stages.augment.verb import VERB
from synfundus.stages.sample import checking
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import SilentConsole

SPLITS = {"train": (13, 7), "val": (4,), "test": (3,)}
GRADES = [0] * 12 + [1] * 4 + [2] * 3 + [4]
"""Of the train split; nobody has grade 3."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(
        tmp_path_factory.mktemp("run") / "export", training_summary={"training_images": 20}
    ).parent


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "images"
    samples = []
    for number in range(27):
        pixels = np.random.default_rng(number).integers(0, 255, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
        labels = {"dr_grade": [*GRADES, 0, 1, 2, 4, 0, 1, 2][number], "is_gc": number % 2, "eye_side": None}
        document = json.dumps({"labels": labels, "source": "clinic"}).encode()
        samples.append((f"k{number:06d}", {"png": encode_png(pixels), "json": document}))
    properties = {"image_size_px": IMAGE_SIZE_PX, "crop": "none"}
    write_set(folder, samples, shards=SPLITS, schema=SCHEMA, properties=properties)
    return folder


@pytest.fixture
def half_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let about half of all images fail, by their bytes alone, and none be drawn again."""

    def by_chance(pixels: np.ndarray[Any, np.dtype[np.uint8]], *_: Any) -> Examination:
        fails = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()[0] < 128
        return Examination((Fault.NO_DISC,) if fails else (), {"brightness": 0.5})

    monkeypatch.setattr(checking, "examine", by_chance)
    monkeypatch.setattr(checking, "SMALLEST_SIZE_PX", 32)
    monkeypatch.setattr(augment, "SMALLEST_SIZE_PX", 32)


def config_of(real: Path, model: Path, out: Path, **section: Any) -> RunConfig:
    given = {"real": str(real), "model": str(model), "out": str(out), "fill": {"dr_grade": 9}, "unchecked": True}
    sampler = {"num_steps": 2, "sampler": "ddim", "contact_sheet_images": 0}
    return RunConfig.model_validate({"augment": given | section, "sample": sampler, "launch": {"device": "cpu"}})


def made(real: Path, model: Path, out: Path, **section: Any) -> Summary:
    return augment.run(config_of(real, model, out, **section), LocalWorld(), SilentConsole())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_value_that_occurs_is_filled_and_val_and_test_are_photographs(
    real: Path, model: Path, tmp_path: Path
) -> None:
    summary = made(real, model, tmp_path)
    assert (summary["num_real"], summary["num_synthetic"], summary["num_rejected"]) == (20, 5 + 6 + 8, 0)
    assert summary["num_images"] == {"train": 39, "val": 4, "test": 3}
    train = rows_of(tmp_path / "train" / "metadata.csv")
    assert list(train[0]) == ["file_name", "synthetic", *SCHEMA.names]
    grades = [row["dr_grade"] for row in train]
    assert [grades.count(str(grade)) for grade in range(5)] == [12, 9, 9, 0, 9]
    assert [row["synthetic"] for row in train] == ["0"] * 20 + ["1"] * 19
    assert {(row["is_gc"], row["eye_side"]) for row in train[20:]} == {("", "")}, "only what was filled"
    for split in ("val", "test"):
        assert {row["synthetic"] for row in rows_of(tmp_path / split / "metadata.csv")} == {"0"}
    for split in SPLITS:
        photographs = open_dataset(str(real), split=split)
        table = {row["file_name"]: row for row in rows_of(tmp_path / split / "metadata.csv")}
        assert len(table) == len(list((tmp_path / split / "images").iterdir()))
        for sample in photographs:
            row = table[f"images/{sample['key']}.png"]
            labels = {name: int(row[name]) if row[name] else None for name in SCHEMA.names}
            assert labels == sample["labels"]
    for row in train[20:]:
        number = row["file_name"].removeprefix("images/synthetic-")
        generated = (tmp_path / "generated" / "images" / number).read_bytes()
        assert (tmp_path / "train" / row["file_name"]).read_bytes() == generated
    classes = {(row["label"], row["value"]): row for row in rows_of(tmp_path / "classes.csv")}
    assert classes["dr_grade", "4"] == {
        **{"label": "dr_grade", "value": "4", "photographs": "1", "synthetic": "8", "train": "9"},
        **{"val": "1", "test": "0"},
    }
    assert not (tmp_path / "parts").exists()


def test_a_set_of_shards_opens_as_a_torch_data_set_and_nothing_trains_a_generator_on_it(
    real: Path, model: Path, tmp_path: Path
) -> None:
    made(real, model, tmp_path, format="shards")
    train = open_dataset(str(tmp_path), split="train")
    assert [sample["synthetic"] for sample in train] == [False] * 20 + [True] * 19
    assert train[25]["image"].shape == (3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    photographs = load_shard_set(str(real), kind="images")
    copies = load_shard_set(str(tmp_path), kind="augmented")
    for split in SPLITS:
        for here, there in zip(photographs.split_shards(split), copies.split_shards(split), strict=False):
            assert here == there
            assert (real / here.name).read_bytes() == (tmp_path / there.name).read_bytes()
    with pytest.raises(DataError, match="a set of augmented, a set of images is needed"):
        load_shard_set(str(tmp_path), kind="images")


def test_balance_is_as_many_as_the_most_frequent_value(real: Path, model: Path, tmp_path: Path) -> None:
    made(real, model, tmp_path, fill={}, balance=("dr_grade",), all_labels=True)
    plan, train = rows_of(tmp_path / "label-plan.csv"), rows_of(tmp_path / "train" / "metadata.csv")[20:]
    assert [row["is_gc"] for row in train] == [row["is_gc"] for row in plan]
    assert {row["is_gc"] for row in train} <= {"0", "1"}
    grades = [row["dr_grade"] for row in rows_of(tmp_path / "train" / "metadata.csv")]
    assert [grades.count(str(grade)) for grade in range(5)] == [12, 12, 12, 0, 12]


@pytest.mark.usefixtures("half_fail")
def test_what_fails_the_check_is_left_out_and_named(real: Path, model: Path, tmp_path: Path) -> None:
    summary = made(real, model, tmp_path, unchecked=False, check_redraws=0)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert 0 < len(rejects) == summary["num_rejected"] < 19
    assert summary["num_synthetic"] + len(rejects) == 19
    assert {one["reason"] for one in rejects} == {"check_failed"}
    assert rejects[0]["faults"] == [Fault.NO_DISC]
    names = {row["file_name"] for row in rows_of(tmp_path / "train" / "metadata.csv")}
    for one in rejects:
        assert f"images/synthetic-{one['image']:08d}.png" not in names
        assert not (tmp_path / "train" / "images" / f"synthetic-{one['image']:08d}.png").exists()
    classes = {(row["label"], row["value"]): row for row in rows_of(tmp_path / "classes.csv")}
    assert sum(int(classes["dr_grade", str(grade)]["synthetic"]) for grade in range(5)) == summary["num_synthetic"]


@pytest.mark.parametrize("kind", ["imagefolder", "shards"])
def test_a_stopped_run_is_resumed_to_the_same_bytes_and_a_finished_one_stays(
    real: Path, model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(real, model, tmp_path / "whole", format=kind)
    wanted = files_of(tmp_path / "whole")
    whole_write = AugmentedSet.write
    written: list[str] = []

    def stops(self: AugmentedSet, part: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(part.name)
        whole_write(self, part)

    monkeypatch.setattr(AugmentedSet, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        made(real, model, tmp_path / "stopped", format=kind)
    assert not (tmp_path / "stopped" / "classes.csv").exists()
    again: list[str] = []

    def counted(self: AugmentedSet, part: Any) -> None:
        again.append(part.name)
        whole_write(self, part)

    monkeypatch.setattr(AugmentedSet, "write", counted)
    summary = made(real, model, tmp_path / "stopped", format=kind)
    assert not {*again} & {*written}, "what was written is kept"
    assert _comparable(files_of(tmp_path / "stopped")) == _comparable(wanted)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped" / "train").rglob("*")}
    assert made(real, model, tmp_path / "stopped", format=kind) == summary
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped" / "train").rglob("*")} == before


def _comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what tells of the occasion: date and command."""
    occasion = {"generated/PROVENANCE.json", "generated/README.md", "generated/SHA256SUMS", "generated/croissant.json"}
    return {
        name: data
        for name, data in files.items()
        if name not in occasion and not name.rpartition("/")[2].startswith(".")
    }


def test_two_ranks_write_the_same_set(real: Path, model: Path, tmp_path: Path) -> None:
    made(real, model, tmp_path / "one")
    words = ["augment", "--real", str(real), "--model", str(model), "--out", str(tmp_path / "two"), "--unchecked"]
    words += ["--fill", "dr_grade=9", "--set", "sample.num_steps=2", "--set", "sample.sampler=ddim"]
    words += ["--set", "sample.contact_sheet_images=0", "--procs-per-node", "2", "--device", "cpu"]
    run_cli(*words).check()
    assert _comparable(files_of(tmp_path / "two")) == _comparable(files_of(tmp_path / "one"))


def test_what_cannot_be_is_refused_before_a_folder_is_claimed_and_the_hints_help(
    real: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(drawing: Path = model, photographs: Path = real, **section: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            made(photographs, drawing, out, **section)
        assert not out.exists()
        return caught.value

    assert "unknown label 'dr_grad'" in refused(fill={"dr_grad": 9}).message
    assert refused(unchecked=False).hint == "add --unchecked"
    assert refused(fill={"dr_grade": 1}).hint == "give a larger number to --fill"
    assert refused(balance=("dr_grade",)).hint == "leave it out of --balance, or out of --fill"
    assert refused(fill={}, balance=("eye_side",)).hint == "name another label"
    large = write_tiny_pipeline(tmp_path / "large" / "export", image_size_px=64).parent
    problem = refused(large)
    assert "the photographs have 32 px, the model draws 64 px" in problem.message
    assert problem.hint.startswith("give the set that the model was trained on")
    other = write_tiny_pipeline(tmp_path / "other" / "export", schema=LabelSchema((LabelSpec("dr_grade", 5),))).parent
    assert refused(other).hint == "give a model that was trained with the labels of the set"
    made(real, model, tmp_path / "unchecked", unchecked=True, fill={"dr_grade": 9})
    made(real, model, tmp_path / "another label", fill={}, balance=("is_gc", "dr_grade"))
    made(real, model, out)
    with pytest.raises(ConfigError, match=r"fill.dr_grade is 9 there, 10 here"):
        made(real, model, out, fill={"dr_grade": 10})


def test_a_missing_part_is_named_and_written_by_the_next_run(
    real: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(augment, "_write", lambda *_: None)
        with pytest.raises(DataError, match=r"5 of 5 parts are missing") as caught:
            made(real, model, tmp_path)
    assert caught.value.hint == "run the same command again: finished parts are kept"
    assert made(real, model, tmp_path)["num_synthetic"] == 19


def test_a_model_of_other_photographs_is_said(real: Path, tmp_path: Path) -> None:
    other = write_tiny_pipeline(tmp_path / "other" / "export").parent
    talk = Talk()
    augment.run(config_of(real, other, tmp_path / "out"), LocalWorld(), talk)
    said = "the model was trained on 77 photographs, the train split of this set has 20"
    assert any(said in line for line in talk.lines)


def test_the_dry_run_says_what_would_be_drawn(real: Path, model: Path, tmp_path: Path) -> None:
    section = config_of(real, model, tmp_path / "out").augment
    assert VERB.dry_run is not None
    assert VERB.problems is not None
    assert VERB.dry_run(section, 0).startswith("# images to draw\n19\n")
    assert not (tmp_path / "out").exists()
    assert (
        "--fill NAME=NUMBER or --balance NAMES is missing"
        in VERB.problems(config_of(real, model, tmp_path, fill={}).augment, False)[0]
    )
