"""`synfundus watch`: runs as their files show them, on a terminal that renews itself or once as text."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError, StorageError
from synfundus.stages import Summary
from synfundus.stages.rehearsal import is_run
from synfundus.stages.watch.batch_job import UNDER_WAY, BatchJob, JobReader
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console, format_duration
from synfundus.telemetry.dashboard import BLOCKS, Dashboard, Line, build_dashboard, clean, warnings
from synfundus.telemetry.live import show_live
from synfundus.telemetry.run_files import RunView, read_run
from synfundus.telemetry.sinks import RichConsole

_DEPTH = 2
"""Folders are looked into this deep for runs: `runs/STUDY/RUN`."""
_MOST_IN_STORE = 200
"""A folder of a store with more names is no folder of runs: each costs a request."""


@dataclass(frozen=True)
class Watched:
    """A run and its batch job; None if it was not submitted."""

    view: RunView
    job: BatchJob | None


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Show a run, or all runs of a folder; on a terminal until the user interrupts, elsewhere once.

    Returns:
        Of a run ``images_seen``, ``budget_images``, ``checkpoint_images``, ``warnings``, ``row`` (the newest of
        metrics.jsonl), ``state``, ``job``; of several ``runs``: these by name.

    Raises:
        ConfigError: There is no run in the folder.
    """
    del world
    url = str(config.watch.run_dir)
    jobs, unicode = JobReader(), _has_blocks()  # a live display replaces sys.stdout by an object without an encoding
    watched = _read(url, jobs)

    def look() -> Dashboard:
        try:
            return _show(url, _read(url, jobs), unicode=unicode)
        except (StorageError, ConfigError) as error:  # a store that does not answer is asked again at the next look
            return Dashboard(url, [Line("warning", error.message, "bad")])

    if isinstance(console, RichConsole) and not config.watch.once and sys.stdout.isatty():
        show_live(look, refresh_s=config.watch.refresh_s, stream=sys.stdout)
    else:
        console.message(_show(url, watched, unicode=unicode).plain())
    if url in watched:
        return _summary(watched[url])
    return {"runs": {_name(url, place): _summary(one) for place, one in watched.items()}}


def _find_runs(url: str, depth: int = _DEPTH) -> list[str]:
    """Return the folder itself if it is a run, else the runs below it."""
    names = filesystem.list_names(url)
    if is_run(names):
        return [url]
    few = filesystem.is_local(url) or len(names) <= _MOST_IN_STORE
    below = [filesystem.join(url, name) for name in names] if depth and few else []
    return [run for place in below if filesystem.is_dir(place) for run in _find_runs(place, depth - 1)]


def find_runs(url: str) -> list[str]:
    """Return a run, or the runs in a folder.

    Raises:
        ConfigError: There is none.
    """
    runs = _find_runs(url) if filesystem.is_dir(url) else []
    if not runs:
        raise ConfigError(
            "there is no run, neither in this folder nor below it",
            where=url,
            hint="--run-dir takes the folder of a run of train or train-vae, or a folder of such folders",
        )
    return runs


def _read(url: str, jobs: JobReader) -> dict[str, Watched]:
    return {place: Watched(read_run(place), jobs.read(place)) for place in find_runs(url)}


def _show(url: str, watched: dict[str, Watched], *, unicode: bool) -> Dashboard:
    now = time.time()
    if url in watched:
        dashboard = build_dashboard(watched[url].view, now=now, unicode=unicode)
        return replace(dashboard, lines=_with_job(dashboard.lines, watched[url].job))
    rows = {_name(url, place): _row(one, now) for place, one in watched.items()}
    widths = [max(len(cells[at]) for cells, _ in rows.values()) for at in range(4)]
    lines = [
        Line(name, "  ".join([*map(str.ljust, cells, widths), state.text]), state.tone)
        for name, (cells, state) in rows.items()
    ]
    return Dashboard(clean(f"{url} ({len(rows)} runs)"), lines)


def _name(url: str, place: str) -> str:
    return clean(place.removeprefix(url).strip("/"))


def _with_job(lines: Sequence[Line], job: BatchJob | None) -> list[Line]:
    """Add the batch job after the state, and the end of its log at the end, unless it is well."""
    state, *others = lines
    if job is None:
        return [*lines]
    state = _state(state, job)
    over = job.failed or (state.tone != "good" and job.state not in UNDER_WAY)
    log = [Line("log", clean(text), "dim") for text in job.log] if over else []
    return [state, Line("job", clean(job.describe()), "bad" if job.failed else ""), *others, *log]


def _state(state: Line, job: BatchJob | None) -> Line:
    """Return the state of a run, or of its job where SLURM says that it has failed, or has not begun."""
    if job is None:
        return state
    if job.failed and state.text == "finished":
        return Line("state", clean(f"finished before; job {job.describe()}"), "bad") if job.number else state
    if job.failed and (job.number or state.tone != "good"):
        word = "cancelled" if job.state == "CANCELLED" else "failed"
        return Line("state", clean(f"{word}: job {job.describe()}" if job.number else job.describe()), "bad")
    return Line("state", f"{job.state.lower()}, {state.text}", "dim") if state.tone == "dim" and job.state else state


def _row(one: Watched, now: float) -> tuple[list[str], Line]:
    """Return kind, images, loss and remaining time of a run, and its state."""
    view = one.view
    state = _state(build_dashboard(view, now=now, unicode=False).lines[0], one.job)
    newest = view.rows[-1] if view.rows else {}
    loss, left = newest.get("loss"), newest.get("eta_s")
    done = f"{100 * min(1.0, view.images_seen / view.budget_images):.1f} %" if view.budget_images else ""
    cells = [
        {"vae": "train-vae", "diffusion": "train"}.get(view.kind, "a run"),
        f"{view.images_seen:,} / {view.budget_images:,} ({done})" if done else f"{view.images_seen:,}",
        f"loss {loss:.4f}" if isinstance(loss, int | float) else "",
        f"ETA {format_duration(left)}" if isinstance(left, int | float) and left and state.tone == "good" else "",
    ]
    return cells, state


def _has_blocks() -> bool:
    """Whether standard output can say the characters of a sparkline."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _summary(one: Watched) -> Summary:
    view, job = one.view, one.job
    return {
        "images_seen": view.images_seen,
        "budget_images": view.budget_images,
        "checkpoint_images": view.checkpoint.images_seen if view.checkpoint else None,
        "warnings": warnings(view),
        "row": dict(view.rows[-1]) if view.rows else None,
        "state": _row(one, time.time())[1].text,
        "job": None if job is None else {"number": job.number, "state": job.state, "detail": clean(job.detail)},
    }
