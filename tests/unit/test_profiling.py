"""What a trace of training steps says, and when one is recorded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Talk

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.training.periodic import TrainState
from synfundus.training.profiling import (
    WARM_UP_STEPS,
    StepProfiler,
    covered,
    describe,
    record,
    summarise,
)

BATCH = 8
BUDGET = 10_000


def event(category: str, name: str, start: float, length: float, *, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 0, "tid": thread}


TWO_STEPS = [
    event("user_annotation", "ProfilerStep#1", 1000, 1000),
    event("user_annotation", "ProfilerStep#2", 2000, 1000),
    event("gpu_user_annotation", "ProfilerStep#1", 1000, 2000),
    {"ph": "i", "name": "Record Window End", "ts": 3000},
    event("cpu_op", "aten::conv2d", 1000, 500),
    event("cpu_op", "aten::empty", 1100, 100),
    event("cpu_op", "aten::conv2d", 2000, 500),
    event("kernel", "conv", 1200, 600, thread=7),
    event("kernel", "conv", 2200, 600, thread=7),
    event("kernel", "nchwToNhwcKernel", 2200, 200, thread=8),  # at the same time as conv, on another stream
    event("gpu_memcpy", "Memcpy HtoD", 2900, 400, thread=8),  # ends after the last step
    event("kernel", "of the step before", 900, 50, thread=7),
]


def test_a_summary_counts_steps_idle_time_and_the_time_of_each_name() -> None:
    found = summarise(TWO_STEPS)
    assert (found.steps, found.step_ms, found.launches) == (2, 1.0, 2.0)
    assert found.gpu_idle == pytest.approx(1 - (600 + 600 + 100) / 2000)
    assert [(one.name, one.calls, one.ms) for one in found.kernels] == [
        ("conv", 1.0, 0.6),
        ("Memcpy HtoD", 0.5, 0.2),
        ("nchwToNhwcKernel", 0.5, 0.1),
    ]
    assert found.share_of("(?i)nchwToNhwc|nhwcToNchw") == pytest.approx(0.1 / 0.9)


def test_a_trace_without_a_gpu_has_no_idle_time_and_one_without_steps_is_empty() -> None:
    host = [one for one in TWO_STEPS if one.get("cat") in ("user_annotation", "cpu_op")]
    assert summarise(host).gpu_idle is None
    assert summarise(host).share_of("conv") == 0.0
    assert summarise(TWO_STEPS[4:]).steps == 0


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(0, 4), (2, 6)], 6),  # they overlap
        ([(2, 9), (3, 4), (8, 8.5)], 7),  # one holds the others
        ([(-5, 1), (9, 20)], 2),  # they stick out
        ([(-5, -1), (11, 12)], 0),  # they lie outside
    ],
)
def test_covered_time_counts_every_moment_once_and_only_in_the_window(
    spans: list[tuple[float, float]], length: float
) -> None:
    assert covered(spans, (0, 10)) == pytest.approx(length)


def test_a_recording_holds_the_steps_asked_for() -> None:
    ran: list[int] = []

    def step() -> None:
        ran.append(1)
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))

    trace = record(step, steps=3, device=torch.device("cpu"))
    assert trace.summary().steps == 3
    assert len(ran) == 4, "the first with the recorder on is thrown away"
    (row,) = (line for line in trace.operations.splitlines() if line.strip().startswith("aten::mm "))
    assert row.split()[-1] == "3"
    text = describe(trace, device="CPU")
    assert "3 steps" in text
    assert "no GPU in the trace" in text
    assert row in text


def run_steps(folder: Path, count: int, *, steps: int = 2, start: int = 0, budget: int = BUDGET, rank: int = 0) -> Talk:
    """Take steps as the loop does: a matrix product, then what is due."""
    talk, state = Talk(), TrainState(images_seen=start)
    profiler = StepProfiler(
        steps,
        str(folder),
        state=state,
        global_batch_size=BATCH,
        budget_images=budget,
        rank=rank,
        device=torch.device("cpu"),
        console=talk,
    )
    jobs = profiler.jobs()
    for _ in range(count):
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
        before, state.images_seen = state.images_seen, state.images_seen + BATCH
        for job in jobs:
            if job.due(before, state.images_seen, budget):
                job.action(state)
    profiler.close()
    return talk


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_a_run_records_once_after_its_warm_up_and_says_where(tmp_path: Path) -> None:
    talk = run_steps(tmp_path / "profile", 40, start=800)
    place = 800 + BATCH * (WARM_UP_STEPS + 3)
    assert files(tmp_path / "profile") == [f"images-{place:012d}.json.gz", f"images-{place:012d}.txt"]
    document = json.loads(gzip.decompress((tmp_path / "profile" / f"images-{place:012d}.json.gz").read_bytes()))
    assert summarise(document["traceEvents"]).steps == 2
    text = (tmp_path / "profile" / f"images-{place:012d}.txt").read_text()
    assert "aten::mm" in text
    (line,) = talk.lines
    assert f"images-{place:012d}.json.gz" in line
    assert "perfetto" in line


def test_a_run_that_ends_too_early_keeps_the_steps_it_has_or_says_why_there_are_none(tmp_path: Path) -> None:
    count = WARM_UP_STEPS + 3
    talk = run_steps(tmp_path / "some", count, steps=50, budget=count * BATCH)
    assert "profile of 2 steps" in talk.lines[0]
    assert files(tmp_path / "some")

    talk = run_steps(tmp_path / "none", WARM_UP_STEPS - 1, budget=(WARM_UP_STEPS - 1) * BATCH)
    assert talk.lines[0].startswith("warning: profile_steps=2: no trace, the run ended 4 steps after its start")
    assert not files(tmp_path / "none")


def test_a_run_that_is_stopped_while_it_records_writes_nothing_and_leaves_no_recorder(tmp_path: Path) -> None:
    run_steps(tmp_path / "stopped", WARM_UP_STEPS + 2)
    assert not files(tmp_path / "stopped")
    run_steps(tmp_path / "next", 40)  # torch refuses a second recorder beside one that runs
    assert files(tmp_path / "next")


def test_other_ranks_have_the_same_work_due_and_record_nothing(tmp_path: Path) -> None:
    talk = run_steps(tmp_path, 40, rank=1)
    assert not talk.lines
    assert not files(tmp_path)


def test_nothing_is_due_without_steps_to_record(tmp_path: Path) -> None:
    run_steps(tmp_path, 40, steps=0)
    assert not files(tmp_path)


@pytest.mark.parametrize("error", [StorageError("the disk is full"), RuntimeError("CUPTI is in use"), OSError("no")])
def test_a_fault_of_the_recording_is_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    write: Callable[..., None] = fail
    monkeypatch.setattr(filesystem, "write_bytes", write)
    talk = run_steps(tmp_path, 40)
    (line,) = talk.lines
    assert line.startswith("warning: profile_steps=2: no trace: ")
    assert str(error) in line
