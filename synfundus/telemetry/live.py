"""A live dashboard on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from synfundus.telemetry.dashboard import Dashboard

if TYPE_CHECKING:
    from rich.panel import Panel

_STYLES = {"": "", "good": "green", "bad": "yellow", "dim": "dim"}


def _panel(dashboard: Dashboard) -> Panel:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for line in dashboard.lines:
        grid.add_row(Text(line.label, style="bold"), Text(line.text, style=_STYLES[line.tone]))
    return Panel(grid, title=Text(dashboard.title), title_align="left", subtitle="Ctrl-C to exit", border_style="cyan")


def show_live(build: Callable[[], Dashboard], *, refresh_s: float, stream: IO[str]) -> None:
    """Show a dashboard and refresh it until the user interrupts."""
    from rich.console import Console
    from rich.live import Live

    try:
        with Live(_panel(build()), console=Console(file=stream, highlight=False), auto_refresh=False) as live:
            while True:
                time.sleep(refresh_s)
                live.update(_panel(build()), refresh=True)
    except KeyboardInterrupt:
        return
