"""What `make gpu-check` makes of its figures: verdicts, the document, what ends a step early."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import chain, kernels, parity, ranks, resume, speed, suite
from benchmarks.gpu_check.setting import Ended, Setting, VerbProcess, below, complaint_of, is_stand_in
from benchmarks.gpu_check.steps import STEPS, chosen
from benchmarks.gpu_check.verdicts import (
    Line,
    Report,
    document,
    lines_of_a_dead_step,
    log_line,
    overall,
    read_line,
    relative_gap,
    within,
)
from synfundus.models.attention import AttentionShape, MeasuredAttention

SHAPE = AttentionShape(4096, 4096, 5, 64)


def collected(stand_in: bool = False) -> tuple[Report, list[Line]]:
    lines: list[Line] = []
    return Report(3, stand_in=stand_in, write=lines.append), lines


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.0, "PASS"), (0.01, "PASS"), (0.011, "FAIL"), (math.inf, "FAIL"), (math.nan, "FAIL")]
)
def test_a_gap_passes_up_to_its_tolerance_and_what_is_no_number_fails(gap: float, verdict: str) -> None:
    assert within(gap, 0.01) == verdict
    report, lines = collected()
    report.parity("loss", gap, 0.01, "gap")
    assert (lines[0].verdict, lines[0].real) == (verdict, True)


def test_relative_gaps() -> None:
    assert relative_gap(1.1, 1.0) == pytest.approx(0.1)
    assert relative_gap(-1.0, -2.0) == 0.5
    assert relative_gap(0.0, 0.0) == 0.0
    assert relative_gap(1e-9, 0.0) == math.inf
    assert relative_gap(math.nan, 1.0) == relative_gap(1.0, math.inf) == math.inf


def test_a_stand_in_skips_what_compares_numbers_and_marks_the_rest() -> None:
    report, lines = collected(stand_in=True)
    report.parity("loss", 0.0, 0.01, "gap")
    report.computed("arithmetic", True, "fine")
    report.holds("exit code", False, "ended with 1")
    report.speed("fundus512, NCHW", 50.0, 100.0)
    assert [line.verdict for line in lines] == ["SKIP", "SKIP", "FAIL", "INFO"]
    assert lines[0].text == lines[1].text == "stand-in: kernels compute nothing"
    assert not any(line.real for line in lines)
    assert "ratio_to_plan" not in lines[3].figures


def test_a_speed_has_a_ratio_to_the_plan_and_no_threshold() -> None:
    report, lines = collected()
    report.speed("slow", 1.0, 1000.0, ms=3.0)
    report.speed("unknown card", 50.0, None)
    assert [line.verdict for line in lines] == ["INFO", "INFO"]
    assert lines[0].figures == {"images_per_s": 1.0, "plan_images_per_s": 1000.0, "ratio_to_plan": 0.001, "ms": 3.0}
    assert lines[1].figures["ratio_to_plan"] is None
    assert "no figure in plan" in lines[1].text


def test_the_document_counts_marks_and_is_json() -> None:
    report, lines = collected()
    report.parity("loss", math.nan, 0.01, "gap")
    report.speed("fundus512, NCHW", 50.0, 100.0)
    report.skip("two GPUs", "1 GPU here")
    machine = {"gpu": "NVIDIA H100", "driver": "580.1", "torch": "2.13", "commit": "abc"}
    found = document(lines, machine=machine, steps=[3], seconds=12.34, stand_in=False)
    read = json.loads(json.dumps(found, allow_nan=False))
    assert (read["verdict"], read["real"], read["seconds"]) == ("FAIL", True, 12.3)
    assert read["counts"] == {"PASS": 0, "FAIL": 1, "SKIP": 1}
    assert read["ratios_to_plan"] == {"fundus512, NCHW": 0.5}
    assert read["lines"][0]["figures"]["gap"] == "nan"
    text = log_line(read, date="2026-01-02")
    assert "\n" not in text
    for part in ("2026-01-02", "NVIDIA H100", "580.1", "abc", "fundus512, NCHW 0.50", "failed: 3 loss"):
        assert part in text
    assert "stand-in" not in text
    stand_in = document(lines, machine=machine, steps=[3], seconds=1, stand_in=True)
    assert (stand_in["real"], log_line(stand_in, date="2026-01-02").startswith("stand-in")) == (False, True)


def test_the_verdict_fails_with_one_line_and_without_any() -> None:
    passed = Line(0, "a", "PASS", "")
    assert overall([passed, Line(0, "b", "SKIP", ""), Line(0, "c", "INFO", "")]) == "PASS"
    assert overall([passed, Line(0, "d", "FAIL", "")]) == "FAIL"
    assert overall([]) == "FAIL"


def test_a_line_survives_its_file() -> None:
    line = Line(2, "sdpa", "PASS", "1 ms", {"ms": 1.0, "kernels": [{"name": "a"}]}, real=False)
    assert read_line(json.dumps(asdict(line))) == line


@pytest.mark.parametrize(
    ("code", "complaint", "text"),
    [
        (-11, "Segmentation fault", "ended with signal 11: Segmentation fault"),
        (1, "KeyError: 'x'", "ended with exit code 1: KeyError: 'x'"),
        (None, "", "did not end within 90 s and was ended"),
    ],
)
def test_a_step_that_dies_adds_a_failure_to_its_lines(code: int | None, complaint: str, text: str) -> None:
    lines = [Line(4, "fundus256", "INFO", "")]
    (dead,) = lines_of_a_dead_step(4, "speed", lines, code=code, complaint=complaint, limit_s=90, real=True)
    assert (dead.step, dead.verdict, dead.text) == (4, "FAIL", text)


def test_a_step_that_ends_adds_nothing_unless_it_said_nothing() -> None:
    rest: dict[str, Any] = {"code": 0, "complaint": "", "limit_s": 90, "real": True}
    assert lines_of_a_dead_step(4, "speed", [Line(4, "a", "INFO", "")], **rest) == []
    (dead,) = lines_of_a_dead_step(4, "speed", [], **rest)
    assert dead.verdict == "FAIL"


def test_steps_are_chosen_by_number_in_their_order() -> None:
    assert [step.number for step in chosen("4, 2")] == [2, 4]
    assert chosen(None) == list(STEPS)
    for wrong in ("9", "two", "", "1,x"):
        with pytest.raises(ValueError, match="--only"):
            chosen(wrong)
    assert sum(step.planned_s for step in STEPS) <= 600, "about ten minutes"


def test_without_a_gpu_it_says_what_it_needs() -> None:
    assert gpu_check.missing_gpu(cuda=None, sees_gpu=True, driver=None) is None
    cpu_build = gpu_check.missing_gpu(cuda=None, sees_gpu=False, driver="580.65")
    assert cpu_build is not None
    assert "CPU build" in cpu_build
    assert "make install-gpu" in cpu_build
    old_driver = gpu_check.missing_gpu(cuda="13.0", sees_gpu=False, driver="535.183")
    assert old_driver is not None
    assert all(part in old_driver for part in ("13.0", "535.183", "580"))
    assert "no NVIDIA driver" in str(gpu_check.missing_gpu(cuda="13.0", sees_gpu=False, driver=None))


def test_the_command_ends_with_2_without_a_gpu() -> None:
    root = Path(gpu_check.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "make install-gpu" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, False), ({"STAND_IN_GPU": "1"}, True), ({"STAND_IN_GPU": "0"}, False), ({"STAND_IN_MAJOR": "8"}, True)],
)
def test_a_stand_in_is_told_by_its_variables(environment: Mapping[str, str], expected: bool) -> None:
    assert is_stand_in(environment) is expected


def test_a_crash_ends_its_step_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that there is not ends with a traceback, in a process of its own."""
    broken = replace(STEPS[0], number=99)
    lines = gpu_check._run_apart(broken, tmp_path / "step", small=True, stand_in=False)
    assert [line.verdict for line in lines] == ["FAIL"]
    assert "exit code 1: StopIteration" in lines[0].text
    assert "FAIL  99  machine" in capsys.readouterr().out


def test_lines_are_printed_once_and_only_when_they_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "lines.jsonl"
    assert gpu_check._print_new(place, []) == []
    one = json.dumps(asdict(Line(1, "one", "PASS", "")))
    place.write_text(f"{one}\n{one[:10]}")
    lines = gpu_check._print_new(place, [])
    assert len(lines) == 1
    place.write_text(f"{one}\n{one.replace('one', 'two')}\n")
    assert [line.name for line in gpu_check._print_new(place, lines)] == ["one", "two"]
    assert capsys.readouterr().out.count("PASS  1  one") == 1


def test_a_process_is_killed_with_those_below_it(tmp_path: Path) -> None:
    code = "import subprocess as s, sys; s.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    process = VerbProcess("doctor", log=tmp_path / "log")
    process.kill()
    process.process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait_for(lambda: bool(below(process.process.pid)), timeout_s=60)
    (child,) = below(process.process.pid)
    assert process.wait(0.1).code == -9
    for _ in range(100):  # the kernel takes a moment
        if not _runs(child):
            break
        time.sleep(0.1)
    assert not _runs(child)


def _runs(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_attention_lines_tell_a_missing_kernel_from_a_wrong_one() -> None:
    measured = MeasuredAttention(
        {"sdpa": 2.0, "flash": 1.0},
        {"xformers": "not installed", "cudnn": "4096 x 4096 tokens, heads of 64: off by 0.2"},
    )
    report, lines = collected()
    kernels.say(report, SHAPE, measured, "flash")
    found = {line.name.split(",")[0]: line.verdict for line in lines}
    assert found == {"sdpa": "PASS", "flash": "PASS", "xformers": "SKIP", "cudnn": "FAIL"}
    assert "it chose flash" in lines[0].text
    report, lines = collected()
    kernels.say(report, SHAPE, MeasuredAttention({}, {"sdpa": "no kernel"}), "error")
    assert lines[0].verdict == "FAIL"


def test_a_resumed_run_is_judged_by_code_place_and_rows() -> None:
    fine = Ended(0, "resumed at 128 images from x", 1.0)
    rows: list[dict[str, float]] = [{"images_seen": 64.0 * number} for number in range(1, 5)]
    assert resume.judge_resume(fine, rows, 256)[0]
    assert not resume.judge_resume(Ended(4, "resumed at 128 images", 1.0), rows, 256)[0]
    assert not resume.judge_resume(Ended(0, "training", 1.0), rows, 256)[0]
    assert not resume.judge_resume(fine, rows[:-1], 256)[0], "it ended early"
    assert not resume.judge_resume(fine, [*rows, rows[-1]], 256)[0], "a row twice"
    assert not resume.judge_resume(fine, [], 256)[0]
    assert not resume.judge_resume(Ended(0, "resumed at 256 images", 1.0), rows, 256)[0], "nothing was left"


def test_a_complaint_is_the_error_and_not_the_warning_after_it() -> None:
    assert (
        complaint_of("a\n[rank0]: RuntimeError: no plan: x\nWarning: leaked\n") == "[rank0]: RuntimeError: no plan: x"
    )
    assert complaint_of("error (data): no sample\nwhere: x\n") == "error (data): no sample"
    assert complaint_of("started\n\n") == "started"
    assert complaint_of("") == ""


def test_a_broken_rank_is_judged_by_code_and_time() -> None:
    assert ranks.judge_break(Ended(75, "", 0), 30.0, codes=(75,), limit_s=120)[0]
    assert not ranks.judge_break(Ended(1, "", 0), 30.0, codes=(75,), limit_s=120)[0]
    assert not ranks.judge_break(Ended(75, "", 0), 130.0, codes=(75,), limit_s=120)[0]


def test_counts_of_pytest_are_read() -> None:
    text = '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"></testsuite></testsuites>'
    assert suite.read_counts(text) == suite.Counts(tests=9, failed=2, skipped=2)


def test_psnr_of_moments() -> None:
    reference = np.linspace(0, 1, 1000, dtype=np.float32)
    assert chain.psnr_db(reference, reference) == math.inf
    assert chain.psnr_db(reference + np.float32(0.01), reference) == pytest.approx(40.0, abs=0.1)


def test_a_step_computes_the_same_twice_and_notices_another_layout_by_rounding_alone(tmp_path: Path) -> None:
    import torch

    setting = Setting(small=False, stand_in=False, folder=tmp_path, ends=math.inf)
    small = ("prepare.image_size_px=64", "train.unet.block_out_channels=[32,32,32]")
    fixed = ("train.loop.precision=fp32", "train.unet.dropout=0", *small)
    first, again, nhwc = (
        parity.outcome(
            setting.config("demo-cpu", *fixed, f"train.loop.channels_last={layout}"), torch.device("cpu"), images=1
        )
        for layout in ("false", "false", "true")
    )
    assert first == again
    assert first.grad_norm > 0
    report, lines = collected()
    parity.compare(report, "layout", "fp32", nhwc, first)
    assert [line.verdict for line in lines] == ["PASS", "PASS"]
    parity.compare(report, "wrong", "bf16", replace(first, loss=first.loss * 1.1), first)
    assert lines[2].verdict == "FAIL"


@pytest.mark.parametrize("preset", speed.PRESETS)
@pytest.mark.parametrize("small", [False, True])
def test_a_job_is_compiled_only_where_it_says_so(preset: str, small: bool, tmp_path: Path) -> None:
    """A preset may compile by itself; what is called eager must not."""
    setting = Setting(small=small, stand_in=small, folder=tmp_path, ends=math.inf)
    found = {name: setting.config(preset, *changes).train.loop.compile for name, changes in speed.VARIANTS.items()}
    assert found == {name: "compiled" in name for name in speed.VARIANTS}
