"""Consoles and metric sinks.

Consoles implement `telemetry.console.Console`; metric sinks take one row of figures per log interval. Messages go to
standard error, so that standard output stays free for results.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from synfundus.processes.stop_signals import telling
from synfundus.storage.filesystem import storage_errors
from synfundus.telemetry.console import Console, Progress, SilentConsole, log_stamp

if TYPE_CHECKING:
    from rich import progress as rich_progress

ConsoleMode = Literal["auto", "rich", "plain", "quiet"]
Figure = float | int | str

METRICS_NAME = "metrics.jsonl"

PLAIN_INTERVAL_S = 5.0
"""Least time between two progress lines in a log file."""
PLAIN_PATIENCE_S = 60.0
"""A log file gets a line after this time even if there is little progress."""
PLAIN_FRACTION = 0.1
"""A log file gets a line each time this fraction of the work is done."""


def format_duration(seconds: float) -> str:
    """Format a duration: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def estimate_remaining_s(*, done: int, start: int, total: int, elapsed_s: float) -> float:
    """Estimate the remaining seconds from the rate since ``start``; NaN before anything is done."""
    if done <= start or elapsed_s <= 0:
        return math.nan
    return (total - done) * elapsed_s / (done - start)


def _how_far(description: str, done: int, total: int, unit: str) -> str:
    return f"{description}, {done:,} of {total:,} {unit}"


@dataclass
class _RichProgress:
    """One bar of a `rich.progress.Progress`."""

    bars: rich_progress.Progress
    task: rich_progress.TaskID
    fields: dict[str, str] = field(default_factory=dict)

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Advance and replace the values beside the bar."""
        self.fields.update(fields)
        shown = "  ".join(f"{name} {value}" for name, value in self.fields.items())
        self.bars.update(self.task, advance=amount, shown=shown)


class RichConsole:
    """Colour, tables and a live progress bar, for terminals."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console as Terminal

        self._terminal = Terminal(file=stream or sys.stderr, highlight=False)

    def message(self, text: str) -> None:
        """Print one line."""
        self._terminal.print(text, markup=False)

    def warning(self, text: str) -> None:
        """Print one line in yellow."""
        self._terminal.print(f"warning: {text}", style="yellow", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title), title_justify="left")
        for column in columns:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._terminal.print(table)

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Show a live bar with the remaining time while the block runs."""
        from rich import progress as rich_progress

        bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", markup=False),
            rich_progress.TextColumn("{task.fields[shown]}", markup=False),
            rich_progress.TextColumn("ETA"),
            rich_progress.TimeRemainingColumn(),
            console=self._terminal,
            refresh_per_second=4,
        )
        with bars:
            task = bars.add_task(description, total=total, completed=start, unit=unit, shown="")
            with telling(lambda: _how_far(description, int(bars.tasks[0].completed), total, unit)):
                yield _RichProgress(bars, task)


@dataclass
class _PlainProgress:
    """Progress as occasional lines of text."""

    say: Callable[[str], None]
    clock: Callable[[], float]
    description: str
    total: int
    unit: str
    start: int
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = self._said = self.start
        self._began = self._said_at = self.clock()

    @property
    def done(self) -> int:
        """Units that are done."""
        return self._done

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Advance; print a line now and then."""
        self._done += amount
        self.fields.update(fields)
        waited = self.clock() - self._said_at
        much = self._done - self._said >= PLAIN_FRACTION * self.total
        if waited >= PLAIN_PATIENCE_S or (waited >= PLAIN_INTERVAL_S and much):
            self.say_now()

    def say_now(self) -> None:
        """Print a progress line."""
        now = self.clock()
        remaining = estimate_remaining_s(
            done=self._done, start=self.start, total=self.total, elapsed_s=now - self._began
        )
        percent = 100 * self._done / self.total if self.total else 100.0
        parts = [f"{self.description}: {self._done}/{self.total} {self.unit} ({percent:.0f} %)"]
        parts += [f"{name} {value}" for name, value in self.fields.items()]
        if self._done < self.total and math.isfinite(remaining):
            parts.append(f"ETA {format_duration(remaining)}")
        self.say(", ".join(parts))
        self._said, self._said_at = self._done, now

    def finish(self) -> None:
        """Print a last line, unless it was just printed."""
        if self._said != self._done or self._done == self.start:
            self.say_now()


class PlainConsole:
    """Lines of text, for log files: no colour, no control characters, few progress lines."""

    def __init__(self, stream: IO[str] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock

    def message(self, text: str) -> None:
        """Print one line; in the log of a SLURM step with time and host, but for results on standard output."""
        stamp = "" if self._stream is sys.stdout else log_stamp()
        self._stream.write("".join(f"{stamp}{line}\n" for line in text.split("\n")))
        self._stream.flush()

    def warning(self, text: str) -> None:
        """Print one line that starts with ``warning:``."""
        self.message(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table with aligned columns."""
        cells = [list(columns), *(list(row) for row in rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        self.message("\n".join([title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]))

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Print progress lines, few enough for a log file."""
        progress = _PlainProgress(self.message, self._clock, description, total, unit, start)
        with telling(lambda: _how_far(description, progress.done, total, unit)):
            yield progress
        progress.finish()


class WarningsConsole(SilentConsole):
    """Prints warnings only."""

    def warning(self, text: str) -> None:
        """Print one line on standard error."""
        PlainConsole().warning(text)


def build_console(mode: ConsoleMode, rank: int, *, stream: IO[str] | None = None) -> Console:
    """Choose a console.

    Args:
        mode: ``auto`` uses rich on a terminal and plain lines elsewhere; ``quiet`` shows warnings only.
        rank: Only rank 0 prints.
        stream: Where it prints; None = standard error.
    """
    if rank > 0:
        return SilentConsole()
    if mode == "quiet":
        return WarningsConsole()
    target = stream or sys.stderr
    if mode == "rich" or (mode == "auto" and target.isatty()):
        return RichConsole(target)
    return PlainConsole(target)


class MetricSink(Protocol):
    """Takes one row of figures per log interval."""

    def write(self, row: Mapping[str, Figure]) -> None:
        """Record a row; ``images_seen`` is its position."""

    def close(self) -> None:
        """Flush and release resources."""


def _rows_to_keep(path: Path, resume_images: int) -> int:
    """Return the length in bytes of the complete lines at or before ``resume_images``."""
    kept = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or row.get("images_seen", 0) > resume_images:
                break
            kept += len(line)
    return kept


class JsonlSink:
    """Appends rows to a JSON-lines file and flushes each, so that a killed run loses none it has reported.

    A resumed run first removes the rows after the checkpoint it starts from (they will be computed again) and an
    incomplete last line, so that each position occurs once.

    Args:
        path: The file; its folder is created if needed.
        resume_images: Images seen at the checkpoint the run starts from; 0 for a new run.

    Raises:
        StorageError: The file cannot be opened.
    """

    def __init__(self, path: str | Path, *, resume_images: int) -> None:
        self._path = Path(path)
        with storage_errors("write metrics", str(path)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("ab", buffering=0)
            self._stream.truncate(_rows_to_keep(self._path, resume_images))

    def write(self, row: Mapping[str, Figure]) -> None:
        """Append one line. A figure that is not finite becomes null: JSON has no NaN."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        line = (json.dumps(clean, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with storage_errors("write metrics", str(self._path)):
            while line:
                line = line[self._stream.write(line) :]

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class TensorBoardSink:
    """Writes numbers as TensorBoard scalars over images seen, each row flushed."""

    def __init__(self, folder: str | Path, *, resume_images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote after the checkpoint
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_images + 1 if resume_images else None)

    def write(self, row: Mapping[str, Figure]) -> None:
        """Write every number of the row; text goes to metrics.jsonl only."""
        step = int(row.get("images_seen", 0))
        for name, value in row.items():
            if name != "images_seen" and not isinstance(value, str):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class MetricSinks:
    """Several sinks as one; closes all of them even if one fails."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self.sinks = tuple(sinks)

    def write(self, row: Mapping[str, Figure]) -> None:
        """Write the row to every sink."""
        for sink in self.sinks:
            sink.write(row)

    def close(self) -> None:
        """Close every sink."""
        with ExitStack() as closing:
            for sink in self.sinks:
                closing.callback(sink.close)


def build_sinks(
    run_dir: str | Path, *, rank: int, tensorboard: bool, wandb: Callable[[Path], MetricSink] | None, resume_images: int
) -> MetricSinks:
    """Open the sinks of a run: always ``metrics.jsonl``, the others on request. Ranks above 0 get none.

    Args:
        run_dir: Local folder to write into.
        rank: Rank of this process.
        tensorboard: Also write TensorBoard files into ``tensorboard/``.
        wandb: Opens the sink for Weights & Biases, which keeps its files in the given folder; None = no such sink.
        resume_images: Images seen at the checkpoint the run starts from; 0 for a new run.
    """
    if rank > 0:
        return MetricSinks([])
    folder = Path(run_dir)
    sinks: list[MetricSink] = [JsonlSink(folder / METRICS_NAME, resume_images=resume_images)]
    if tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard", resume_images=resume_images))
    if wandb is not None:
        sinks.append(wandb(folder))
    return MetricSinks(sinks)
