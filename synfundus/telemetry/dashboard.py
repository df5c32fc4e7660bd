"""The state of a run in a few lines: progress, quality, speed, problems. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from synfundus.redaction import redact
from synfundus.telemetry.console import format_duration
from synfundus.telemetry.run_files import RunView, series

Tone = Literal["", "good", "bad", "dim"]

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-:=+*#"
_SPARK_WIDTH = 32
_BAR_WIDTH = 32
_MOST_WARNINGS = 3
_LATE = 5.0
"""A run with no row for this many usual intervals is reported as silent."""
_PATIENCE_S = 60.0
_VALIDATION = (
    *(("validation_loss", "{:.4f}"), ("validation_loss_all_labels", "{:.4f} with all labels")),
    *(("psnr_db", "PSNR {:.2f} dB"), ("ssim", "SSIM {:.3f}"), ("vessel_correlation", "vessels {:.2f}")),
)


@dataclass(frozen=True)
class Line:
    """A line of the dashboard.

    Attributes:
        label: Its subject.
        text: Its content.
        tone: How to show it.
    """

    label: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Dashboard:
    """A title and its lines."""

    title: str
    lines: Sequence[Line]

    def plain(self) -> str:
        """Return it as text."""
        width = max((len(line.label) for line in self.lines), default=0)
        return "\n".join([self.title, *(f"  {line.label:<{width}}  {line.text}" for line in self.lines)])


def sparkline(values: Sequence[float], *, width: int, blocks: str) -> str:
    """Draw values as blocks, the lowest value as the first block; more values than columns are averaged in groups."""
    if not values:
        return ""
    columns = min(width, len(values))
    bounds = [len(values) * number // columns for number in range(columns + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(blocks[min(len(blocks) - 1, int((value - low) / span * len(blocks)))] for value in means)


def build_dashboard(run: RunView, *, now: float, unicode: bool) -> Dashboard:
    """Build the dashboard of a run.

    Args:
        run: Its files.
        now: Seconds since 1970.
        unicode: Whether the terminal has block characters.
    """
    named = {"vae": "train-vae", "diffusion": "train"}.get(run.kind, "a run")
    ranks = f", {run.world_size} rank{'s' if run.world_size > 1 else ''}" if run.world_size else ""
    lines = [_state(run, now), _progress(run, unicode), *_learning(run, unicode), *_speed(run), _saved(run, now)]
    if run.rows:
        lines.append(_left_out(run))
    lines += [Line("warning", clean(text), "bad") for text in warnings(run)]
    return Dashboard(clean(f"{run.name} ({named}{ranks})"), lines)


def clean(text: str) -> str:
    """Remove secrets and control characters."""
    return "".join(character if character.isprintable() else "?" for character in redact(text))


def _state(run: RunView, now: float) -> Line:
    """Return whether it runs, is silent, has stopped or is finished, as far as files tell."""
    if run.budget_images and run.images_seen >= run.budget_images:
        return Line("state", "finished" if run.exported else "trained; the result is being written", "good")
    if run.written_at is None:
        return Line("state", f"no row yet; {run.writer} works on it" if run.writer else "no row yet", "dim")
    silent = max(0.0, now - run.written_at)
    said = f"the last row is {format_duration(silent)} old"
    if not run.writer:
        return Line("state", f"stopped: {said}", "bad")
    if silent > max(_PATIENCE_S, _LATE * _usual_gap_s(run)):
        return Line("state", f"silent: {said}; {run.writer} works on it", "bad")
    return Line("state", f"running: {said}", "good")


def _usual_gap_s(run: RunView) -> float:
    """Return the usual seconds between rows, from the rate of the newest ones."""
    gaps = []
    for before, row in list(pairwise(run.rows))[-8:]:
        rate = float(row.get("images_per_s") or 0.0)
        gaps.append((row["images_seen"] - before["images_seen"]) / rate if rate > 0 else 0.0)
    return max(gaps, default=0.0)


def _progress(run: RunView, unicode: bool) -> Line:
    if not run.budget_images:
        return Line("images", f"{run.images_seen:,}")
    part = min(1.0, run.images_seen / run.budget_images)
    full = round(part * _BAR_WIDTH)
    bar = ("█" * full + "░" * (_BAR_WIDTH - full)) if unicode else ("#" * full + "." * (_BAR_WIDTH - full))
    return Line("images", f"{bar} {run.images_seen:,} / {run.budget_images:,} ({100 * part:.1f} %)")


def _learning(run: RunView, unicode: bool) -> list[Line]:
    """Return loss, gradient norm and the newest validation figures."""
    lines = []
    for key, label in (("loss", "loss"), ("grad_norm", "gradient")):
        values = [value for _, value in series(run.rows, key)]
        if values:
            drawn = sparkline(values, width=_SPARK_WIDTH, blocks=BLOCKS if unicode else ASCII_BLOCKS)
            lines.append(Line(label, f"{values[-1]:.4f}  {drawn}  from {values[0]:.4f}"))
    figures = [(form, series(run.validation, key)) for key, form in _VALIDATION]
    texts = [form.format(found[-1][1]) for form, found in figures if found]
    if texts:
        newest = max(found[-1][0] for _, found in figures if found)
        of = f", of {run.judged_on}" if run.judged_on else ""
        lines.append(Line("validation", f"{', '.join(texts)}  at {newest:,} images{clean(of)}"))
    return lines


def _speed(run: RunView) -> list[Line]:
    """Return rate, remaining time, waits and memory of the newest row."""
    if not run.rows:
        return []
    row = run.rows[-1]

    def figure(key: str, form: str, scale: float = 1.0) -> list[str]:
        value = row.get(key)
        return [form.format(scale * value)] if isinstance(value, int | float) else []

    rate = [
        *figure("images_per_s", "{:,.1f} images/s"),
        *figure("images_per_s_per_gpu", "{:,.1f} a rank"),
        *figure("tflops_per_s", "{:,.2f} TFLOP/s"),
        *figure("mfu", "MFU {:.1f} %", 100.0),
    ]
    waits = [*figure("data_wait_percent", "data {:.1f} %"), *figure("checkpoint_stall_percent", "checkpoint {:.1f} %")]
    left = row.get("eta_s")
    under_way = run.writer and run.images_seen < run.budget_images
    eta = [format_duration(left)] if isinstance(left, int | float) and under_way else []
    memory = figure("peak_memory_gib", "{:.2f} GiB at most on a rank")
    parts = {"rate": rate, "ETA": eta, "waits for": waits, "memory": memory}
    return [Line(label, ", ".join(texts)) for label, texts in parts.items() if texts]


def _saved(run: RunView, now: float) -> Line:
    if run.checkpoint is None:
        return Line("checkpoint", "none yet", "dim")
    written = run.checkpoint.written_at
    age = "" if written is None else f", {format_duration(max(0.0, now - written))} old"
    return Line("checkpoint", f"at {run.checkpoint.images_seen:,} images{age}")


def _left_out(run: RunView) -> Line:
    row = run.rows[-1]
    quarantined, skipped = int(row.get("quarantined_images") or 0), int(row.get("skipped_steps") or 0)
    text = f"{quarantined:,} samples quarantined, {skipped:,} steps skipped"
    return Line("left out", text, "bad" if quarantined or skipped else "")


def warnings(run: RunView) -> list[str]:
    """Return the most recent problems, newest first."""
    found: list[tuple[int, str]] = [
        (int(row["images_seen"]), f"{sample.get('place')}: {sample.get('reason')}")
        for row in run.ledger
        for sample in row.get("samples") or []
        if isinstance(sample, dict)
    ]
    found += [
        (int(row["images_seen"]), f"no messages from here on: {row['messages_lost']}")
        for row in run.ledger
        if "messages_lost" in row
    ]
    for before, row in pairwise(run.rows):
        skipped = int(row.get("skipped_steps") or 0) - int(before.get("skipped_steps") or 0)
        if skipped > 0:
            found.append((int(row["images_seen"]), f"{skipped} steps skipped"))
        if int(row.get("rewinds") or 0) > int(before.get("rewinds") or 0):
            found.append((int(row["images_seen"]), "back to the weights of the last checkpoint"))
    newest = sorted(found, key=lambda item: item[0], reverse=True)[:_MOST_WARNINGS]
    return [f"at {images:,} images: {text}" for images, text in newest]
