"""`sample --check`: what fails is drawn again from noise of its own, every image has a line, kills change no byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import write_tiny_pipeline

from synfundus.artifacts.model_folder import load_pipeline
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.evaluation.examination.verdict import Examination, Fault
from synfundus.evaluation.judge import build_judge
from synfundus.evaluation.judge_file import JUDGE_NAME, pack_judge
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.stages.sample import checking, factory
from synfundus.stages.sample import job as sample
from synfundus.stages.verify import job as verify
from synfundus.telemetry.console import PlainConsole, SilentConsole

BATCH, NUMBER = 4, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfundus.artifacts.model.CPU_BATCH_SIZE", BATCH)


@pytest.fixture
def chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let about half of all images fail, by their bytes alone."""

    def by_chance(pixels: np.ndarray[Any, np.dtype[np.uint8]], *_: Any) -> Examination:
        fails = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()[0] < 128
        return Examination((Fault.NO_DISC,) if fails else (), {"brightness": 0.5})

    monkeypatch.setattr(checking, "examine", by_chance)
    monkeypatch.setattr(checking, "SMALLEST_SIZE_PX", 32)


def config_of(model: Path, out: Path, **section: Any) -> RunConfig:
    given = {"model": str(model), "out": str(out), "num_images": NUMBER, "num_steps": 2, "sampler": "ddim"}
    return RunConfig.model_validate({"sample": given | {"check": True} | section, "launch": {"device": "cpu"}})


def drawn(model: Path, out: Path, **section: Any) -> dict[str, Any]:
    return sample.run(config_of(model, out, **section), LocalWorld(), SilentConsole())


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "checks.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    told = ("PROVENANCE.json", "README.md", "SHA256SUMS", "croissant.json")
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in told)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.usefixtures("chance")
@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_what_fails_is_drawn_again_and_the_rest_is_as_without_a_check(
    model: Path, tmp_path: Path, image_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(model, tmp_path / "checked", format=image_format, check_redraws=1)
    counts = sample.run(config, LocalWorld(), PlainConsole())["checks"]
    lines = lines_of(tmp_path / "checked")
    assert [line["image"] for line in lines] == list(range(NUMBER))
    again = [line["image"] for line in lines if line["attempt"]]
    failed = [line["image"] for line in lines if line["verdict"] == "failed"]
    assert 0 < len(failed) < len(again) < NUMBER
    assert counts == {
        "num_images": NUMBER,
        "num_passed_at_once": NUMBER - len(again),
        "num_redraws": len(again),
        "num_failed": len(failed),
        "faults_at_first": {"no_optic_disc": len(again)},
        "faults_left": {"no_optic_disc": len(failed)},
    }
    assert f"{len(failed)} still fail (no_optic_disc {len(failed)}), named in checks.jsonl" in capsys.readouterr().err
    provenance = json.loads((tmp_path / "checked" / "PROVENANCE.json").read_text())
    assert (provenance["checks"], provenance["check_redraws"]) == (counts, 1)
    assert not (tmp_path / "checked" / "checks").exists()
    if image_format == "shards":
        return
    drawn(model, tmp_path / "plain", check=False)
    for image in range(NUMBER):
        paths = [tmp_path / name / "images" / f"{image:08d}.png" for name in ("checked", "plain")]
        assert (paths[0].read_bytes() == paths[1].read_bytes()) == (image not in again)
        with Image.open(paths[0]) as picture:
            assert picture.info.get("attempt", "0") == str(int(image in again))
            assert ("check" in picture.info) == (image in failed)


@pytest.mark.usefixtures("chance")
@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_a_stop_changes_neither_images_nor_lines(model: Path, tmp_path: Path, image_format: str) -> None:
    drawn(model, tmp_path / "whole", format=image_format)
    draw, calls = factory._draw, iter(range(3))

    def stopping(*given: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return draw(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_draw", stopping)
        with pytest.raises(KeyboardInterrupt):
            drawn(model, tmp_path / "cut", format=image_format)
    assert drawn(model, tmp_path / "cut", format=image_format)["num_kept"] == 2 * BATCH
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert drawn(model, tmp_path / "cut", format=image_format)["num_kept"] == NUMBER
    grown = drawn(model, tmp_path / "cut", format=image_format, num_images=NUMBER + 3)
    assert grown["checks"]["num_images"] == NUMBER + 3
    drawn(model, tmp_path / "more", format=image_format, num_images=NUMBER + 3)
    assert contents(tmp_path / "cut") == contents(tmp_path / "more")


@pytest.mark.usefixtures("chance")
def test_images_that_were_drawn_again_are_verified_as_such(model: Path, tmp_path: Path) -> None:
    drawn(model, tmp_path / "out")
    assert any(line["attempt"] for line in lines_of(tmp_path / "out"))
    section = {"samples": str(tmp_path / "out"), "model": str(model), "num_images": NUMBER}
    config = RunConfig.model_validate({"verify": section, "launch": {"device": "cpu"}})
    found = verify.run(config, LocalWorld(), SilentConsole())
    assert (found["ok"], found["num_equal"]) == (True, NUMBER)


@pytest.mark.usefixtures("chance")
def test_a_line_that_is_gone_is_named(model: Path, tmp_path: Path) -> None:
    drawn(model, tmp_path / "out")
    ledger = tmp_path / "out" / "checks.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:7]))
    with pytest.raises(DataError, match="the check of image 7 is missing") as refused:
        drawn(model, tmp_path / "out")
    assert refused.value.hint == "give another --out: the images of this one are kept as they are"


def test_what_a_network_of_random_weights_draws_fails(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="images of 32 px are too small to look at") as refused:
        drawn(model, tmp_path / "out")
    assert refused.value.hint == "leave --check out"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(checking, "SMALLEST_SIZE_PX", 32)
    monkeypatch.setattr("synfundus.evaluation.examination.verdict.SMALLEST_SIZE_PX", 32)
    counts = drawn(model, tmp_path / "out", num_images=4, check_redraws=1)["checks"]
    assert counts["num_images"] == counts["num_redraws"] == counts["num_failed"] == 4
    assert sum(counts["faults_left"].values()) >= 4


@pytest.mark.usefixtures("chance")
def test_a_judge_reads_the_labels_too(model: Path, tmp_path: Path) -> None:
    schema = load_pipeline(model / "export", device=torch.device("cpu")).label_schema
    judge = build_judge(schema=schema, image_size_px=16, seed=0)
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / JUDGE_NAME).write_bytes(pack_judge(judge, {"is_gc": 1.0}))
    drawn(model, tmp_path / "out", label={"is_gc": 1}, judge=str(tmp_path / "judged"), check_redraws=0)
    lines = lines_of(tmp_path / "out")
    assert all(line["contradicted"] == ["is_gc"] and "labels_contradicted" in line["faults"] for line in lines)
    with pytest.raises(ConfigError, match="judge_sha256"):
        drawn(model, tmp_path / "out", label={"is_gc": 1}, check_redraws=0)


@pytest.mark.usefixtures("chance")
def test_a_judge_that_is_not_there_or_reads_other_labels_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no label-judge") as refused:
        drawn(model, tmp_path / "out", judge=str(tmp_path))
    assert refused.value.hint == "give the --out of a `synfundus judge` that has ended"
    other = build_judge(schema=LabelSchema((LabelSpec("cataract", 2),)), image_size_px=16, seed=0)
    (tmp_path / JUDGE_NAME).write_bytes(pack_judge(other, {"cataract": 0.1}))
    with pytest.raises(DataError, match="does not have: cataract") as refused:
        drawn(model, tmp_path / "out", judge=str(tmp_path))
    assert refused.value.hint == "give a judge that learned from photographs of the model's labels"
    with pytest.raises(ValueError, match="give --check too"):
        config_of(model, tmp_path, check=False, judge=str(tmp_path))
