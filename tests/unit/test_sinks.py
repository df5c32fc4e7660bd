"""Consoles and metric sinks."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from synfundus.cli.report import report_error
from synfundus.errors import DataError, StorageError
from synfundus.pictures.sheets import encode_png
from synfundus.telemetry.console import (
    PlainConsole,
    SilentConsole,
    WarningsConsole,
    estimate_remaining_s,
    format_duration,
)
from synfundus.telemetry.sinks import (
    JsonlSink,
    LooseSink,
    MetricSinks,
    RichConsole,
    TensorBoardSink,
    build_console,
    build_sinks,
    tag,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def progress_lines(steps: int, seconds_a_step: float, total: int = 1000) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    with PlainConsole(stream, clock=clock).progress("train", total=total, unit="images") as bar:
        for _ in range(steps):
            clock.now_s += seconds_a_step
            bar.advance(total // steps, loss="0.5")
    return stream.getvalue().splitlines()


def test_a_log_file_gets_a_line_a_tenth_of_the_work() -> None:
    lines = progress_lines(steps=100, seconds_a_step=1.0)
    assert len(lines) == 10
    assert lines[0] == "train: 100/1,000 images (10 %), loss 0.5, ETA 1 min 30 s"
    assert lines[-1].startswith("train: 1,000/1,000 images (100 %)")


def test_fast_work_does_not_flood_a_log_file() -> None:
    assert len(progress_lines(steps=100, seconds_a_step=0.01)) == 1


def test_slow_work_still_says_something() -> None:
    lines = progress_lines(steps=1000, seconds_a_step=30.0)
    assert 400 < len(lines) <= 510


def test_progress_that_starts_in_the_middle_estimates_from_its_own_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainConsole(stream, clock=clock).progress("train", total=100, unit="images", start=50) as bar:
        clock.now_s = 10.0
        bar.advance(25)
    assert "75/100 images (75 %), ETA 10 s" in stream.getvalue()


def test_work_that_fails_leaves_no_line_that_says_it_ended() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="boom"), PlainConsole(stream).progress("train", total=10, unit="images"):
        raise ValueError("boom")
    assert stream.getvalue() == ""


def test_an_empty_job_is_done() -> None:
    stream = io.StringIO()
    with PlainConsole(stream).progress("encode", total=0, unit="images"):
        pass
    assert stream.getvalue() == "encode: 0/0 images (100 %)\n"


def test_a_plain_table_is_aligned() -> None:
    stream = io.StringIO()
    PlainConsole(stream).table("stages", ("stage", "s"), [("train-vae", "12"), ("x", "3")])
    assert stream.getvalue().splitlines() == [
        "stages",
        "stage      s",
        "---------  --",
        "train-vae  12",
        "x          3",
    ]


def test_a_terminal_shows_text_as_it_is_and_fields_beside_the_bar() -> None:
    stream = Terminal()
    console = RichConsole(stream)
    console.message("[bold]x[/bold]")
    console.warning("careful")
    console.table("[red]t", ("[a]",), [("[b]",)])
    with console.progress("train [x]", total=10, unit="images", start=5) as bar:
        bar.advance(5, loss="0.25")
    text = stream.getvalue()
    for expected in ("[bold]x[/bold]", "warning: careful", "[red]t", "[b]", "train [x]", "10/10 images", "loss 0.25"):
        assert expected in text


def test_the_console_follows_mode_terminal_and_rank() -> None:
    assert type(build_console("auto", 1)) is SilentConsole
    assert type(build_console("rich", 3)) is SilentConsole
    assert isinstance(build_console("auto", 0, stream=io.StringIO()), PlainConsole)
    assert isinstance(build_console("auto", 0, stream=Terminal()), RichConsole)
    assert isinstance(build_console("plain", 0, stream=Terminal()), PlainConsole)
    assert isinstance(build_console("rich", 0, stream=io.StringIO()), RichConsole)
    assert isinstance(build_console("quiet", 0), WarningsConsole)


def test_a_quiet_console_still_warns(capsys: pytest.CaptureFixture[str]) -> None:
    console = build_console("quiet", 0)
    console.message("hello")
    console.warning("careful")
    captured = capsys.readouterr()
    assert captured.err == "warning: careful\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (math.nan, "?")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_no_estimate_before_anything_was_done() -> None:
    assert math.isnan(estimate_remaining_s(done=5, start=5, total=10, elapsed_s=3))
    assert estimate_remaining_s(done=6, start=5, total=10, elapsed_s=3) == 12


def test_rows_are_on_disk_before_the_sink_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path, resume_images=0)
    sink.write({"images_seen": 32, "loss": 0.5, "phase": "train"})
    assert rows_of(path) == [{"images_seen": 32, "loss": 0.5, "phase": "train"}]
    sink.close()


def test_a_resumed_run_drops_the_torn_line_and_what_it_will_compute_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images_seen": 32}\n{"images_seen": 64}\n{"images_seen": 96}\n{"images_se')
    sink = JsonlSink(path, resume_images=64)
    sink.write({"images_seen": 96, "loss": 1.0})
    sink.close()
    assert [row["images_seen"] for row in rows_of(path)] == [32, 64, 96]
    assert rows_of(path)[-1]["loss"] == 1.0


def test_a_figure_that_is_not_finite_is_null_and_the_line_stays_json(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl", resume_images=0)
    sink.write({"images_seen": 1, "loss": math.nan, "norm": math.inf})
    sink.close()
    assert rows_of(tmp_path / "metrics.jsonl") == [{"images_seen": 1, "loss": None, "norm": None}]


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write metrics"):
        JsonlSink(tmp_path / "file" / "metrics.jsonl", resume_images=0)


def test_tensorboard_gets_numbers_over_images_seen(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoardSink(tmp_path, resume_images=0)
    sink.write({"images_seen": 64, "loss": 0.25, "phase": "train"})
    sink.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss/loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss/loss")] == [(64, 0.25)]


def test_tensorboard_shows_groups_previews_and_settings_once_over_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = encode_png(np.full((8, 8, 3), 90, np.uint8), text={}, compress_level=6)
    for resumed in (0, 64):
        sinks = build_sinks(
            tmp_path,
            rank=0,
            tensorboard=True,
            wandb=None,
            resume_images=resumed,
            settings="seed: 0",
            warn=pytest.fail,
        )
        for images in (resumed + 64, resumed + 128):
            sinks.write({"images_seen": images, "loss": 0.5, "images_per_s": 2.0, "lr": 1e-3, "budget_images": 9})
            sinks.write({"images_seen": images, "validation_loss": 0.5, "validation_images": 3})
            sinks.picture(picture, images_seen=images)
        sinks.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = events.Tags()
    assert set(found["scalars"]) == {"loss/loss", "speed/images_per_s", "steps/lr", "val/validation_loss"}
    assert [event.step for event in events.Scalars("loss/loss")] == [64, 128, 192]
    assert [event.step for event in events.Images("previews")] == [64, 128, 192]
    assert [event.step for event in events.Tensors("settings/text_summary")] == [0]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("kl", {"loss": 1.0}, "loss/kl"),
        ("loss_t3", {"loss": 1.0}, "loss/loss_t3"),
        ("quarantined_images", {"loss": 1.0}, "steps/quarantined_images"),
        ("peak_memory_gib", {"loss": 1.0}, "speed/peak_memory_gib"),
        ("flops_per_image", {"loss": 1.0}, ""),
        ("psnr_db", {}, "val/psnr_db"),
        ("evaluated_images", {}, ""),
    ],
)
def test_a_figure_has_a_group(name: str, row: dict[str, float], expected: str) -> None:
    assert tag(name, row) == expected


@pytest.mark.parametrize("fails_at", ["open", "write", "picture", "close"])
def test_a_sink_no_run_depends_on_warns_once_and_ends_nothing(fails_at: str) -> None:
    said: list[str] = []

    class Sink:
        def __init__(self) -> None:
            self.meet("open")

        def meet(self, where: str) -> None:
            if where == fails_at:
                raise OSError(28, "No space left on device")

        def write(self, row: object) -> None:
            self.meet("write")

        def picture(self, png: bytes, *, images_seen: int) -> None:
            self.meet("picture")

        def close(self) -> None:
            self.meet("close")

    sink = LooseSink("TensorBoard", Sink, said.append)
    for images in (64, 128):
        sink.write({"images_seen": images})
        sink.picture(b"", images_seen=images)
    sink.close()
    assert len(said) == 1
    assert said[0].startswith("TensorBoard takes no more figures: [Errno 28] No space left on device")


def test_a_bar_keeps_its_figures_and_its_remaining_time_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with RichConsole(stream).progress("training", total=20_000_000, unit="images", start=2_256) as bar:
        bar.advance(32, loss="0.4920", speed="156 img/s", data_wait="0 %")
    last = [
        line for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())) if line.strip()
    ][-1]
    assert "2,288/20,000,000 images" in last
    assert re.search(r"ETA (-:--:--|\d+:\d\d:\d\d)", last)
    assert "loss 0.4920" in last
    assert len(last.rstrip()) <= 80


def test_only_rank_zero_writes(tmp_path: Path) -> None:
    def unwanted(folder: Path) -> NoReturn:
        pytest.fail(f"rank 1 opened a sink in {folder}")

    silent = build_sinks(tmp_path, rank=1, tensorboard=True, wandb=unwanted, resume_images=0, warn=pytest.fail)
    silent.write({"images_seen": 1})
    silent.close()
    assert list(tmp_path.iterdir()) == []
    sinks = build_sinks(tmp_path, rank=0, tensorboard=False, wandb=None, resume_images=0, warn=pytest.fail)
    sinks.write({"images_seen": 1})
    sinks.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_sink_that_fails_to_close_does_not_keep_the_others_open() -> None:
    closed: list[str] = []

    class Sink:
        def __init__(self, name: str) -> None:
            self.name = name

        def write(self, row: object) -> None:
            del row

        def picture(self, png: bytes, *, images_seen: int) -> None:
            del png, images_seen

        def close(self) -> None:
            closed.append(self.name)
            if self.name == "b":
                raise StorageError("full")

    with pytest.raises(StorageError):
        MetricSinks([Sink("a"), Sink("b"), Sink("c")]).close()
    assert sorted(closed) == ["a", "b", "c"]


STAMP = r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d node7\] "


def test_lines_in_the_log_of_a_step_carry_time_and_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURMD_NODENAME": "node7"}.items():
        monkeypatch.setenv(name, value)
    console = build_console("auto", 0)
    with redirect_stdout(sys.stderr):  # as while a verb runs
        console.message("one\ntwo")
    console.warning("three")
    build_console("quiet", 0).warning("four")
    with redirect_stdout(sys.stderr), console.progress("train", total=10, unit="images"):
        pass
    said = capsys.readouterr()
    texts = ["one", "two", "warning: three", "warning: four", "train: 0/10 images (0 %)"]
    for line, text in zip(said.err.splitlines(), texts, strict=True):
        assert re.fullmatch(STAMP + re.escape(text), line)
    build_console("auto", 0, stream=sys.stdout).message("a result")
    assert capsys.readouterr().out == "a result\n"
    report_error(DataError("no such set"), debug=False)
    monkeypatch.setenv("RANK", "3")
    report_error(DataError("no such set"), debug=False)
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(STAMP + r"error \(data\): no such set", first)
    assert re.fullmatch(STAMP + "rank 3: Data: no such set", second)


def test_outside_a_step_a_line_is_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the shell of an allocation too."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    build_console("auto", 0).message("one")
    assert capsys.readouterr().err == "one\n"
