"""A trace of a few optimizer steps, recorded with torch.profiler, and what it says of the GPU's time.

The trace is in the Chrome format, which chrome://tracing and https://ui.perfetto.dev open. Recording draws nothing at
random and changes no kernel, so a run with it has the same bits as one without. A recorded step takes longer.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console
from synfundus.training.periodic import Periodic, TrainState

WARM_UP_STEPS = 5
"""Steps before the recorder starts: the first ones compile, allocate and choose kernels."""
_RECORDERS_OWN = 1
"""Steps with the recorder on that are thrown away: its start is slow."""
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_STEP = re.compile(r"ProfilerStep#\d+")
_ROWS = 15
VIEWERS = "chrome://tracing or https://ui.perfetto.dev"

Event = Mapping[str, Any]
Span = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """The kernels of one name, in a step.

    Attributes:
        name: Their name.
        calls: How often they run.
        ms: Their milliseconds.
    """

    name: str
    calls: float
    ms: float


@dataclass(frozen=True)
class ProfileSummary:
    """What a trace says, as means over its steps.

    Attributes:
        steps: Steps in the trace.
        step_ms: Milliseconds of a step on the host's clock.
        gpu_idle: Fraction of the time in which the GPU computed and copied nothing; None if the trace has no GPU.
        launches: Kernels and copies on the GPU.
        kernels: Those by name, the longest first.
    """

    steps: int
    step_ms: float
    gpu_idle: float | None
    launches: float
    kernels: tuple[Share, ...]

    def share_of(self, pattern: str) -> float:
        """Return the fraction of the GPU's busy time in kernels whose name matches a pattern; 0 without a GPU."""
        busy = sum(one.ms for one in self.kernels)
        return sum(one.ms for one in self.kernels if re.search(pattern, one.name)) / busy if busy else 0.0


@dataclass(frozen=True)
class Trace:
    """A recorded trace.

    Attributes:
        document: The trace in the Chrome format, gzipped.
        operations: torch's table of its operations, by their own time on the host.
    """

    document: bytes
    operations: str

    def summary(self) -> ProfileSummary:
        """Return what it says."""
        return summarise(json.loads(gzip.decompress(self.document))["traceEvents"])


def summarise(events: Iterable[Event]) -> ProfileSummary:
    """Return what the events of a trace say. Pure.

    Args:
        events: Events of the Chrome format: ``name``, ``cat``, ``ts`` and ``dur`` in microseconds, ``pid``, ``tid``.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    spans = [
        _span(event) for event in timed if event.get("cat") == "user_annotation" and _STEP.fullmatch(event["name"])
    ]
    steps = len(spans)
    if not steps:
        return ProfileSummary(0, 0.0, None, 0.0, ())
    window = min(start for start, _ in spans), max(end for _, end in spans)
    inside = [event for event in timed if window[0] <= event["ts"] < window[1]]
    on_gpu = [event for event in inside if event.get("cat") in _ON_GPU]
    length = window[1] - window[0]
    busy = covered([_span(event) for event in on_gpu], window)
    return ProfileSummary(
        steps=steps,
        step_ms=length / steps / 1e3,
        gpu_idle=1.0 - busy / length if on_gpu and length > 0 else None,
        launches=len(on_gpu) / steps,
        kernels=_shares(on_gpu, steps),
    )


def _span(event: Event) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))


def covered(spans: Sequence[Span], window: Span) -> float:
    """Return how much of a window is covered by at least one span."""
    total, reached = 0.0, window[0]
    for start, end in sorted(spans):
        total += max(0.0, min(end, window[1]) - max(start, reached))
        reached = max(reached, min(end, window[1]))
    return total


def _shares(events: Iterable[Event], steps: int) -> tuple[Share, ...]:
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        times[event["name"]].append(event["dur"])
    shares = [Share(name, len(each) / steps, sum(each) / steps / 1e3) for name, each in times.items()]
    return tuple(sorted(shares, key=lambda one: (-one.ms, one.name)))


def describe(trace: Trace, *, device: str) -> str:
    """Return what a trace says as text, for a file beside it."""
    summary = trace.summary()
    idle = "no GPU in the trace" if summary.gpu_idle is None else f"GPU idle {summary.gpu_idle:.1%} of it"
    lines = [
        f"{device}: {summary.steps} steps, {summary.step_ms:.2f} ms each while recorded, {idle}, "
        f"{summary.launches:,.0f} kernels and copies a step"
    ]
    if total := sum(one.ms for one in summary.kernels):
        lines += ["", f"on the GPU: {total:.2f} ms a step", f"{'share':>7} {'ms':>10} {'calls':>9}  name"]
        lines += [
            f"{one.ms / total:7.1%} {one.ms:10.3f} {one.calls:9.1f}  {one.name}" for one in summary.kernels[:_ROWS]
        ]
    return "\n".join([*lines, "", "all steps together, as torch.profiler counts:", trace.operations])


def record(step: Callable[[], object], *, steps: int, device: torch.device) -> Trace:
    """Record calls of a step that is already warm.

    Args:
        step: Runs one step.
        steps: How many to record.
        device: Where it computes.
    """
    recorder = _recorder(steps, device)
    recorder.start()
    try:
        for _ in range(_RECORDERS_OWN + steps):
            step()
            recorder.step()
    finally:
        recorder.stop()
    return _trace(recorder)


def _recorder(steps: int, device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    return profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=_RECORDERS_OWN, active=steps, repeat=1),
        acc_events=True,  # one cycle: nothing is dropped, and torch does not warn that it would be
    )


def _trace(recorder: profile) -> Trace:
    with tempfile.TemporaryDirectory(prefix="synfundus-profile-") as folder:
        path = Path(folder, "trace.json.gz")
        recorder.export_chrome_trace(str(path))
        averages = recorder.key_averages()
        return Trace(path.read_bytes(), averages.table(sort_by="self_cpu_time_total", row_limit=_ROWS))


@dataclass(frozen=True)
class _AfterStep(Periodic):
    """Work after each step of a part of a run, its last step included.

    Attributes:
        first_images: Images seen before the part.
        last_images: Images seen at its end.
    """

    first_images: int = 0
    last_images: int = 0

    def due(self, before: int, now: int, budget: int) -> bool:
        """Whether a step of the part has ended."""
        del before, budget
        return self.first_images < now <= self.last_images


class StepProfiler:
    """Records steps of a run on rank 0, as periodic work of its loop.

    A fault of the recorder or of the storage is a warning: it does not end a run.

    Args:
        steps: Steps to record; 0: none.
        folder: Where the files go.
        state: The run when its loop starts.
        global_batch_size: Images of a step.
        budget_images: Images of the run.
        rank: This rank.
        device: Where it computes.
        console: Where it is said what was written.
    """

    def __init__(
        self,
        steps: int,
        folder: str,
        *,
        state: TrainState,
        global_batch_size: int,
        budget_images: int,
        rank: int,
        device: torch.device,
        console: Console,
    ) -> None:
        self._steps, self._folder, self._batch, self._budget = steps, folder, global_batch_size, budget_images
        self._first = state.images_seen
        self._records = rank == 0
        self._device, self._console = device, console
        self._recorder: profile | None = None

    def jobs(self) -> list[Periodic]:
        """Return the periodic work, the same on all ranks: none without steps to record."""
        if not self._steps:
            return []
        last = self._first + self._batch * (WARM_UP_STEPS + _RECORDERS_OWN + self._steps)
        job = _AfterStep(
            "profile", self._batch, self._after_step, lambda _: True, first_images=self._first, last_images=last
        )
        return [job]

    def close(self) -> None:
        """Drop a recording that was not finished."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            try:
                recorder.stop()
            except RuntimeError as error:
                self._console.warning(f"the recorder of profile_steps: {error}")

    def _after_step(self, state: TrainState) -> None:
        if not self._records:
            return
        done = (state.images_seen - self._first) // self._batch
        recorded, last = done - WARM_UP_STEPS - _RECORDERS_OWN, state.images_seen >= self._budget
        try:
            if recorded == self._steps or (last and recorded > 0):
                self._finish(state)
            elif last:
                self._console.warning(
                    f"profile_steps={self._steps}: no trace, the run ended {done} steps after its start and "
                    f"{WARM_UP_STEPS + _RECORDERS_OWN} come before the first that is recorded"
                )
            elif self._recorder is not None:
                self._recorder.step()
            elif done == WARM_UP_STEPS:
                self._recorder = _recorder(self._steps, self._device)
                self._recorder.start()
        except (RuntimeError, OSError, StorageError) as error:
            self._console.warning(f"profile_steps={self._steps}: no trace: {error}")
            self.close()
            self._records = False

    def _finish(self, state: TrainState) -> None:
        """Write what was recorded."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.stop()
        trace = _trace(recorder)
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU"
        stem = filesystem.join(self._folder, f"images-{state.images_seen:012d}")
        filesystem.write_bytes(f"{stem}.json.gz", trace.document)
        summary = trace.summary()
        filesystem.write_bytes(f"{stem}.txt", describe(trace, device=f"rank 0, {name}").encode())
        idle = "" if summary.gpu_idle is None else f", GPU idle {summary.gpu_idle:.0%}"
        self._console.message(
            f"profile of {summary.steps} steps ({summary.step_ms:.1f} ms each while recorded{idle}): {stem}.json.gz, "
            f"for {VIEWERS}; the longest kernels: {stem}.txt"
        )
