"""A run as its files show it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synfundus.telemetry.dashboard import ASCII_BLOCKS, BLOCKS, build_dashboard, sparkline
from synfundus.telemetry.run_files import read_run, series


def row(images: int, **changes: Any) -> dict[str, Any]:
    return {
        "images_seen": images,
        "loss": 1000.0 / images,
        "grad_norm": 0.5,
        "images_per_s": 100.0,
        "images_per_s_per_gpu": 50.0,
        "data_wait_percent": 3.0,
        "checkpoint_stall_percent": 1.5,
        "peak_memory_gib": 2.25,
        "eta_s": 200.0,
        "quarantined_images": 0,
        "skipped_steps": 0,
        **changes,
    }


def write_run(
    folder: Path, rows: list[dict[str, Any]], *, kind: str = "diffusion", budget: int = 1000, **environment: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"kind": kind}))
    (folder / "config.yaml").write_text(
        f"train:\n  loop:\n    budget_images: {budget}\ntrain_vae:\n  loop:\n    budget_images: 77\n"
    )
    (folder / "environment.json").write_text(json.dumps({"world_size": 2, **environment}))
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def text_of(folder: Path, *, now: float | None = None, unicode: bool = True, writer: str = "process 7 on node1") -> str:
    run = replace(read_run(str(folder)), writer=writer)
    return build_dashboard(run, now=now or time.time(), unicode=unicode).plain()


def checkpoint(folder: Path, images: int, *, age_s: float = 0.0) -> None:
    manifest = folder / "checkpoints" / f"images-{images:012d}" / "MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    os.utime(manifest, (time.time() - age_s,) * 2)


@pytest.mark.parametrize(("kind", "budget"), [("diffusion", 1000), ("vae", 77)])
def test_the_budget_is_that_of_the_runs_kind_also_as_version_0_1_wrote_it(
    tmp_path: Path, kind: str, budget: int
) -> None:
    folder = write_run(tmp_path, [], kind=kind)
    assert read_run(str(folder)).budget_images == budget
    loop = "loop:\n  budget_images: 1000\n"
    (folder / "config.yaml").write_text(f"train:\n  run_dir: a\n{loop}vae:\n  loop:\n    budget_images: 77\n")
    assert read_run(str(folder)).budget_images == budget


def test_a_dashboard_says_how_far_how_well_and_how_fast(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run7", [row(100), {"images_seen": 100, "validation_loss": 0.25}, row(400)])
    checkpoint(folder, 300, age_s=130)
    (folder / "checkpoints" / "images-000000000400.tmp").mkdir()
    text = text_of(folder)
    for part in (
        "run7 (train, 2 ranks)",
        "400 / 1,000 (40.0 %)",
        "2.5000  █▁  from 10.0000",
        "0.2500  at 100 images",
        "100.0 images/s, 50.0 a rank",
        "3 min 20 s",
        "data 3.0 %, checkpoint 1.5 %",
        "2.25 GiB",
        "at 300 images, 2 min 10 s old",
        "0 samples quarantined, 0 steps skipped",
    ):
        assert part in text
    assert "warning" not in text


def test_a_run_without_any_row_is_shown(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", []))
    assert "no row yet" in text
    assert "0 / 1,000 (0.0 %)" in text
    assert "none yet" in text
    assert "no row yet" in text_of(tmp_path / "not-there")


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [row(100)])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"images_seen": 200, "lo')
    assert [one["images_seen"] for one in read_run(str(folder)).rows] == [100]


def test_the_budget_of_the_newest_row_counts_and_before_it_that_of_the_config(tmp_path: Path) -> None:
    assert read_run(str(write_run(tmp_path / "a", [row(8)]))).budget_images == 1000
    assert read_run(str(write_run(tmp_path / "b", [row(8)], kind="vae"))).budget_images == 77
    assert read_run(str(write_run(tmp_path / "c", [row(8, budget_images=5000)]))).budget_images == 5000


def test_rows_a_run_fell_back_behind_are_replaced(tmp_path: Path) -> None:
    rows = [row(100), row(200), row(300), row(200, loss=7.0), row(300, loss=8.0)]
    found = read_run(str(write_run(tmp_path / "run", rows))).rows
    assert series(found, "loss") == [(100, 10.0), (200, 5.0), (200, 7.0), (300, 8.0)]


def test_what_went_wrong_is_named_newest_first(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", [row(100), row(200, skipped_steps=2, quarantined_images=1), row(300, rewinds=1)]
    )
    sample = {"place": "s3://set/train/000001.tar#7", "reason": "checksum\x1b[2J"}
    (folder / "ledger.jsonl").write_text(json.dumps({"images_seen": 100, "samples": [sample]}) + "\n")
    lines = [line.strip() for line in text_of(folder).splitlines() if "warning" in line]
    assert "at 300 images: back to the weights of the last checkpoint" in lines[0]
    assert "at 200 images: 2 steps skipped" in lines[1]
    assert "at 100 images: s3://set/train/000001.tar#7: checksum" in lines[2]
    assert "\x1b" not in lines[2]


def test_a_run_that_says_nothing_for_long_is_said_to_stand_and_a_finished_one_is_not(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [row(100), row(400)])
    assert "running: the last row is 5" in text_of(folder, now=time.time() + 50)
    said = "silent: the last row is 10 min 00 s old; process 7 on node1 works on it"
    assert said in text_of(folder, now=time.time() + 600)
    left = text_of(folder, now=time.time() + 5, writer="")
    assert "stopped: the last row is" in left
    assert "ETA" not in left
    begun = write_run(tmp_path / "begun", [])
    assert "no row yet; process 7 on node1 works on it" in text_of(begun)
    slow = write_run(tmp_path / "slow", [row(100, images_per_s=1.0), row(400, images_per_s=1.0)])
    assert "running" in text_of(slow, now=time.time() + 600), "a row comes every five minutes"
    done = write_run(tmp_path / "done", [row(1000)])
    assert "finished" not in text_of(done, now=time.time() + 600)
    (done / "export").mkdir()
    assert "finished" in text_of(done, now=time.time() + 600)


def test_figures_that_are_no_numbers_do_not_end_the_dashboard(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "run", [row(100, loss=None, eta_s=None, grad_norm=None, images_per_s=None)]))
    assert "100 / 1,000" in text


@pytest.mark.parametrize("blocks", [BLOCKS, ASCII_BLOCKS])
def test_a_sparkline_rises_with_its_values_and_fits_its_width(blocks: str) -> None:
    assert sparkline(list(range(8)), width=20, blocks=blocks) == blocks
    drawn = sparkline([float(value) for value in range(1000)], width=20, blocks=blocks)
    assert len(drawn) == 20
    assert sorted(drawn, key=blocks.index) == list(drawn)
    assert sparkline([1.0] * 3, width=9, blocks=blocks) == blocks[0] * 3
    assert sparkline([], width=9, blocks=blocks) == ""


def test_a_terminal_without_block_characters_gets_ascii(tmp_path: Path) -> None:
    assert text_of(write_run(tmp_path / "run", [row(100), row(400)]), unicode=False).isascii()


@pytest.mark.parametrize("name", ["training images (no val split)", "held-out images", "held-out patients"])
def test_a_figure_of_a_validation_is_said_to_be_of_what_it_was_measured_on(tmp_path: Path, name: str) -> None:
    judged = {"images_seen": 100, "validation_loss": 0.25, "validation_loss_all_labels": 0.125}
    text = text_of(write_run(tmp_path / "told", [row(100), judged], judged_on=name))
    assert f"0.2500, 0.1250 with all labels  at 100 images, of {name}" in text
    assert "held" not in text_of(write_run(tmp_path / "of_before", [row(100), judged])), (
        "nothing tells who was held out"
    )
