"""`synfundus plot`: which curves are drawn, under which names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ALONE
from PIL import Image

from synfundus.config.schema import RunConfig
from synfundus.errors import ConfigError
from synfundus.stages import Summary
from synfundus.stages.plot import job as plot
from synfundus.telemetry.console import SilentConsole
from synfundus.telemetry.run_files import read_run


class Talk(SilentConsole):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def write_run(folder: Path, rows: Sequence[Mapping[str, Any]], *, kind: str = "diffusion") -> str:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": kind}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


ROWS = [{"images_seen": 8 * n, "loss": 2.0 / n, "grad_norm": None, "lr": 1e-4} for n in range(1, 6)]
JUDGED = [{"images_seen": 24, "validation_loss": 0.7}]


def draw(*run_dirs: str, out: Path | None = None, talk: Talk | None = None, **options: Any) -> Summary:
    place = {} if out is None else {"out": str(out)}
    config = RunConfig.model_validate({"plot": {"run_dirs": run_dirs, **place, **options}})
    return plot.run(config, ALONE, talk or SilentConsole())


def test_the_usual_curves_that_are_there_are_drawn(tmp_path: Path) -> None:
    url = write_run(tmp_path / "run", [*ROWS, *JUDGED])
    summary = draw(url, out=tmp_path / "a.png")
    assert summary["curves"] == ["loss", "validation_loss", "lr"], "a gradient norm that is no number is none"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800


def test_curves_are_asked_for_by_name_and_unknown_ones_refused_with_those_there_are(tmp_path: Path) -> None:
    url = write_run(tmp_path / "run", ROWS)
    assert draw(url, out=tmp_path / "a.png", curves=["lr"])["curves"] == ["lr"]
    with pytest.raises(ConfigError, match="'los'") as caught:
        draw(url, out=tmp_path / "b.png", curves=["los"])
    assert caught.value.hint == "there are loss, lr"
    assert not (tmp_path / "b.png").exists()


def test_a_run_without_rows_is_named_and_left_out(tmp_path: Path) -> None:
    full, empty = write_run(tmp_path / "full", ROWS), write_run(tmp_path / "empty", [])
    talk = Talk()
    summary = draw(full, empty, out=tmp_path / "a.png", talk=talk)
    assert (summary["runs"], summary["without_rows"]) == ([full], [empty])
    assert empty in talk.warnings[0]
    with pytest.raises(ConfigError, match="no run has a row"):
        draw(empty, out=tmp_path / "b.png")


def test_values_that_are_not_finite_are_counted_and_a_run_of_nothing_else_is_refused(tmp_path: Path) -> None:
    lost = write_run(tmp_path / "lost", [*ROWS, {"images_seen": 48, "loss": None, "lr": 1e-4}])
    talk = Talk()
    draw(lost, out=tmp_path / "a.png", talk=talk, curves=["loss", "lr"])
    assert talk.warnings == [f"{lost}: 1 values of loss are not finite; the curve passes over them"]
    nothing = write_run(tmp_path / "nothing", [{"images_seen": 8, "loss": None}])
    with pytest.raises(ConfigError, match="no run has a finite value"):
        draw(nothing, out=tmp_path / "b.png")


def test_without_a_place_the_picture_lies_beside_its_run_and_that_of_several_needs_one(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name, ROWS) for name in ("one", "other"))
    summary = draw(one, one)
    assert summary["out"] == str(tmp_path / "one" / "curves.png")
    assert (tmp_path / "one" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--out is missing") as caught:
        draw(one, other)
    assert "--out FILE.png" in caught.value.hint
    assert not (tmp_path / "other" / "curves.png").exists()
    with pytest.raises(ConfigError, match="--run-dir is missing"):
        draw()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        draw(str(tmp_path / "none"), out=tmp_path / "a.png")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    urls = [write_run(tmp_path / place / "ldm", ROWS) for place in ("one", "two")]
    urls.append(write_run(tmp_path / "other", ROWS))
    views = [read_run(url) for url in urls]
    assert plot.run_names(views[1:]) == ["ldm", "other"]
    assert plot.run_names(views[:2]) == ["one/ldm", "two/ldm"]


def test_a_run_keeps_its_number_where_another_has_no_such_curve(tmp_path: Path) -> None:
    views = [read_run(write_run(tmp_path / "a", ROWS)), read_run(write_run(tmp_path / "b", [*ROWS, *JUDGED]))]
    panels = plot.plan_panels(views, ["loss", "validation_loss"])
    assert [[curve.run for curve in panel.curves] for panel in panels] == [[0, 1], [1]]


def test_titles_say_what_a_validation_was_of_where_all_runs_agree(tmp_path: Path) -> None:
    views = [read_run(str(write_run(tmp_path / name, [*ROWS, *JUDGED]))) for name in ("one", "other")]
    told = [replace(view, judged_on="training images (no val split)") for view in views]
    (title,) = (panel.title for panel in plot.plan_panels(told, ["validation_loss"]))
    assert title == "validation loss, averaged weights, training images (no val split)"
    mixed = [told[0], replace(views[1], judged_on="held-out patients")]
    assert plot.plan_panels(mixed, ["validation_loss"])[0].title == "validation loss, averaged weights"
