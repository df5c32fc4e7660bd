"""The demo in miniature, through the console script: every stage, its records, its report, its picture."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked_python import run
from PIL import Image
from tiny_sets import write_config

from synfundus.stages.demo.plan import IMAGES_PER_CONDITION
from synfundus.stages.judging import NOBODY_HELD_OUT

MINIATURE: dict[str, Any] = {
    "phantoms": {"num_images": 120, "image_size_px": 64, "workers": 1},
    "prepare": {"image_size_px": 64, "shard_max_samples": 40, "workers": 1},
    "demo": {"num_generated": 24, "fit_to_machine": False},
    "sample": {"contact_sheet_images": 8},
}
STAGES = ["phantoms", "prepare", "train-vae", "encode-latents", "train", "sample", "judge"]


def _demo(folder: Path, *options: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    config = folder / "tiny.yaml"
    if not config.exists():
        write_config(config, MINIATURE)
    command = [sys.executable, "-m", "synfundus", "demo", "--config", str(config), *options]
    done = run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, _demo(folder, "--out", str(folder / "out"))


Walked = tuple[Path, subprocess.CompletedProcess[str]]


def test_the_report_has_every_stage_and_every_figure_it_promises(walked: Walked) -> None:
    report = json.loads((walked[0] / "out" / "demo.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert report["autoencoder"]["psnr_db"] > 15
    assert -1 <= report["autoencoder"]["vessel_correlation"] <= 1
    assert report["autoencoder"]["vessel_images"] > 0
    assert report["generated_vessel_energy"] > 0
    assert report["engine"]["engine"] == "DeepSpeedZeroOptimizer"
    assert report["engine"]["zero_stage"] == 2
    assert set(report["label_control"]) == {"real", "reconstructed", "generated"}
    for figures in report["label_control"].values():
        assert set(figures["headline"]) == {
            "eye_side_accuracy",
            "is_pm_auc",
            "is_gc_auc",
            "dr_referable_auc",
            "dr_kappa",
        }
        assert len(figures["labels"]) == 16
    assert set(report["camera_alone"]) == {"real", "generated"}
    side = report["label_control"]["real"]["labels"]["eye_side"]
    assert side["accuracy_interval"][0] < side["accuracy"] <= side["accuracy_interval"][1]
    assert report["label_control"]["generated"]["labels"]["eye_side"]["num_known"] <= report["num_generated"] == 24
    assert 0 < report["peak_memory_gib"] < 8
    assert report["versions"]["synfundus"]


def test_the_picture_shows_reconstructions_and_a_row_for_each_condition(walked: Walked) -> None:
    with Image.open(walked[0] / "out" / "demo.png") as picture:
        width, height = picture.size
        assert picture.info["synthetic"]
    assert (walked[0] / "out" / "gallery" / "index.html").is_file()
    assert width > 10 * 128
    assert height > 8 * 128


def test_the_table_names_the_stages(walked: Walked) -> None:
    for name in STAGES:
        assert name in walked[1].stderr
    assert "label control" in walked[1].stderr
    assert "camera, generated" in " ".join(walked[1].stderr.split())
    assert "Wilson" in walked[1].stderr
    said = " ".join(walked[1].stderr.split())
    report = json.loads((walked[0] / "out" / "demo.json").read_text())
    assert report["judged_on"] == "photographs of held-out patients"
    assert "; of held-out patients" in said
    assert all(text in said for text in report["label_control_warnings"])
    assert NOBODY_HELD_OUT not in said


def test_the_same_command_again_trains_nothing_and_reports_the_same(walked: Walked) -> None:
    folder, _ = walked
    before = json.loads((folder / "out" / "demo.json").read_text())
    models = (folder / "out" / "model" / "export" / "synfundus.json").stat().st_mtime_ns
    again = _demo(folder, "--out", str(folder / "out"))
    after = json.loads((folder / "out" / "demo.json").read_text())
    assert "training:" not in again.stderr.replace("training the judge:", "")
    assert (folder / "out" / "model" / "export" / "synfundus.json").stat().st_mtime_ns == models
    assert after["label_control"] == before["label_control"]
    assert after["stages"][:-1] == before["stages"][:-1]


def test_other_settings_in_the_same_folder_are_refused(walked: Walked) -> None:
    folder, _ = walked
    refused = _demo(folder, "--out", str(folder / "out"), "--seed", "1", expect=2)
    assert "another --out" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_own_photographs_with_few_labels_take_the_place_of_phantoms(walked: Walked, tmp_path: Path) -> None:
    folder, _ = walked
    source = folder / "out" / "phantoms"
    with (source / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ["file", "patient_id", "dr_grade", "eye_side"]
    with (tmp_path / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "out"
    own = ("--source", str(source), "--labels", str(tmp_path / "table.csv"))
    done = _demo(folder, "--out", str(out), *own, "--set", "prepare.splits=[1,0,0]")
    report = json.loads((out / "demo.json").read_text())
    assert "nobody is held out" in report["judged_on"]
    assert "of training images (no val split)" in next(s["merit"] for s in report["stages"] if s["name"] == "train-vae")
    assert NOBODY_HELD_OUT in " ".join(done.stderr.split())
    assert [stage["name"] for stage in report["stages"]] == STAGES[1:]
    real = report["label_control"]["real"]
    assert real["headline"]["eye_side_accuracy"] is not None
    assert real["headline"]["is_gc_auc"] is None
    assert report["generated_vessel_energy"] > 3, "400 images of training: mottled static"
    assert report["label_control"]["generated"] is None
    assert report["label_control_withheld"] in " ".join(done.stderr.split())
    assert "next: synfundus sample" not in done.stderr
    with (out / "label-plan.csv").open(newline="") as stream:
        asked = list(csv.DictReader(stream))[report["num_generated"] :]
    assert {row["dr_grade"] for row in asked} >= {"0", "2"}
    assert {name for row in asked for name, value in row.items() if value} <= {"dr_grade", "eye_side"}
    with Image.open(out / "demo.png") as picture:
        assert picture.height > (2 + len(asked) // IMAGES_PER_CONDITION) * 128
