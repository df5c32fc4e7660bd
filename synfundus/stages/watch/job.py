"""`synfundus watch`: a run as its files show it, on a terminal that renews itself or once as text."""

from __future__ import annotations

import sys
import time

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError, StorageError
from synfundus.stages import Summary
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console
from synfundus.telemetry.dashboard import BLOCKS, Dashboard, Line, build_dashboard, warnings
from synfundus.telemetry.live import show_live
from synfundus.telemetry.run_files import RunView, read_run
from synfundus.telemetry.sinks import RichConsole


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Show a run; on a terminal until the user interrupts, elsewhere once.

    Returns:
        ``images_seen``, ``budget_images``, ``checkpoint_images``, ``warnings``, ``row`` (the newest of metrics.jsonl).

    Raises:
        ConfigError: There is no run in the folder.
    """
    del world
    url = str(config.watch.run_dir)
    if not filesystem.is_dir(url):
        raise ConfigError(
            "there is no run", where=url, hint="--run-dir takes the folder of a run of train or train-vae"
        )
    view = read_run(url)
    if isinstance(console, RichConsole) and not config.watch.once and sys.stdout.isatty():
        show_live(lambda: _look(url), refresh_s=config.watch.refresh_s, stream=sys.stdout)
    else:
        console.message(build_dashboard(view, now=time.time(), unicode=_has_blocks()).plain())
    return _summary(view)


def _look(url: str) -> Dashboard:
    """Read a run again; a store that does not answer is asked again at the next look."""
    try:
        return build_dashboard(read_run(url), now=time.time(), unicode=_has_blocks())
    except StorageError as error:
        return Dashboard(url, [Line("warning", error.message, "bad")])


def _has_blocks() -> bool:
    """Whether standard output can say the characters of a sparkline."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _summary(view: RunView) -> Summary:
    return {
        "images_seen": view.images_seen,
        "budget_images": view.budget_images,
        "checkpoint_images": view.checkpoint.images_seen if view.checkpoint else None,
        "warnings": warnings(view),
        "row": dict(view.rows[-1]) if view.rows else None,
    }
