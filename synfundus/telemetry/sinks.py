"""Consoles and metric sinks.

Consoles implement `telemetry.console.Console`; metric sinks take one row of figures per log interval. Messages go to
standard error, so that standard output stays free for results.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from synfundus.errors import SynfundusError
from synfundus.storage.filesystem import storage_errors
from synfundus.telemetry.console import Console, PlainConsole, Progress, SilentConsole, WarningsConsole

if TYPE_CHECKING:
    from rich import progress as rich_progress

ConsoleMode = Literal["auto", "rich", "plain", "quiet"]
Figure = float | int | str

METRICS_NAME = "metrics.jsonl"
_WIDE = 100
"""Columns from which a terminal shows the longer bar."""


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
        from rich.table import Column

        bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=12 if self._terminal.width < _WIDE else 24),
            rich_progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}", markup=False),
            rich_progress.TextColumn("ETA"),
            rich_progress.TimeRemainingColumn(),
            # last, and the only column that a narrow terminal cuts
            rich_progress.TextColumn(
                "{task.fields[shown]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=self._terminal,
            refresh_per_second=4,
            expand=True,
        )
        with bars:
            yield _RichProgress(bars, bars.add_task(description, total=total, completed=start, unit=unit, shown=""))


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

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Show a preview, where the sink shows pictures."""

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

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Do nothing: the run keeps its previews as files."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


_SPEED = re.compile(r".*_per_s|.*_per_gpu|.*_percent|.*_gib|mfu|hfu|eta_s")
_STEPS = re.compile(r"lr|grad_norm.*|step|skipped_steps|rewinds|.*_images")


def tag(name: str, row: Mapping[str, Figure]) -> str:
    """Return the TensorBoard name of a figure: ``loss/``, ``val/``, ``speed/`` or ``steps/`` in front.

    Empty for what is the same in every row, and so no curve. A row without a loss is a validation.
    """
    if name in ("images_seen", "budget_images", "flops_per_image"):
        return ""
    if "loss" not in row:
        return "" if name.endswith("_images") else f"val/{name}"
    return f"{'speed' if _SPEED.fullmatch(name) else 'steps' if _STEPS.fullmatch(name) else 'loss'}/{name}"


class TensorBoardSink:
    """Writes numbers as TensorBoard scalars over images seen, in groups, each row flushed; previews as images.

    Args:
        folder: Where to write.
        resume_images: Images seen at the checkpoint the run starts from; 0 for a new run.
        text: The settings, shown as text.
    """

    def __init__(self, folder: str | Path, *, resume_images: int, text: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote after the checkpoint
        self._writer: Any = SummaryWriter(str(folder), purge_step=resume_images + 1 if resume_images else None)
        if text:
            self._writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()), resume_images)

    def write(self, row: Mapping[str, Figure]) -> None:
        """Write every number of the row; text goes to metrics.jsonl only."""
        step = int(row.get("images_seen", 0))
        for name, value in row.items():
            if not isinstance(value, str) and (shown := tag(name, row)):
                self._writer.add_scalar(shown, value, step)
        self._writer.flush()

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Show a preview."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            self._writer.add_image("previews", np.asarray(image.convert("RGB")), images_seen, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class LooseSink:
    """A sink that no run depends on: when it fails, it says so once and takes nothing more.

    Args:
        name: What it is, for the message.
        make: Opens it.
        warn: Shows a warning.
    """

    def __init__(self, name: str, make: Callable[[], MetricSink], warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._sink: MetricSink | None = None
        self._try(lambda: self._open(make))

    def _open(self, make: Callable[[], MetricSink]) -> None:
        self._sink = make()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SynfundusError:  # no key, no such project: the user has to decide
            raise
        except Exception as error:  # noqa: BLE001 - whatever a library raises, no run depends on it
            self._sink = None
            self._warn(f"{self._name} takes no more figures: {error}; metrics.jsonl has them all")

    def write(self, row: Mapping[str, Figure]) -> None:
        """Record a row."""
        if (sink := self._sink) is not None:
            self._try(lambda: sink.write(row))

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Show a preview."""
        if (sink := self._sink) is not None:
            self._try(lambda: sink.picture(png, images_seen=images_seen))

    def close(self) -> None:
        """Flush and release resources."""
        if (sink := self._sink) is not None:
            self._try(sink.close)


class MetricSinks:
    """Several sinks as one; closes all of them even if one fails."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self.sinks = tuple(sinks)

    def write(self, row: Mapping[str, Figure]) -> None:
        """Write the row to every sink."""
        for sink in self.sinks:
            sink.write(row)

    def picture(self, png: bytes, *, images_seen: int) -> None:
        """Show a preview in every sink that shows pictures."""
        for sink in self.sinks:
            sink.picture(png, images_seen=images_seen)

    def close(self) -> None:
        """Close every sink."""
        with ExitStack() as closing:
            for sink in self.sinks:
                closing.callback(sink.close)


def build_sinks(
    run_dir: str | Path,
    *,
    rank: int,
    tensorboard: bool,
    wandb: Callable[[Path], MetricSink] | None,
    resume_images: int,
    settings: str = "",
    warn: Callable[[str], None],
) -> MetricSinks:
    """Open the sinks of a run: always ``metrics.jsonl``, the others on request. Ranks above 0 get none.

    Rows of ``metrics.jsonl`` are part of the run, and end it when they cannot be written; the other sinks only warn.

    Args:
        run_dir: Local folder to write into.
        rank: Rank of this process.
        tensorboard: Also write TensorBoard files into ``tensorboard/``.
        wandb: Opens the sink for Weights & Biases, which keeps its files in the given folder; None = no such sink.
        resume_images: Images seen at the checkpoint the run starts from; 0 for a new run.
        settings: The settings of the run, shown as text.
        warn: Shows a warning.
    """
    if rank > 0:
        return MetricSinks([])
    folder = Path(run_dir)
    sinks: list[MetricSink] = [JsonlSink(folder / METRICS_NAME, resume_images=resume_images)]
    if tensorboard:
        place = folder / "tensorboard"
        text = "" if resume_images else settings  # a resumed run has it
        sinks.append(
            LooseSink("TensorBoard", lambda: TensorBoardSink(place, resume_images=resume_images, text=text), warn)
        )
    if wandb is not None:
        sinks.append(LooseSink("Weights & Biases", lambda: wandb(folder), warn))
    return MetricSinks(sinks)
