"""`synfundus plot` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.machine import PlotConfig


def _dry_run(section: PlotConfig, seed: int) -> str:
    from synfundus.stages.plot.job import look
    from synfundus.telemetry.console import SilentConsole

    del seed
    out, runs, _ = look(section, SilentConsole())
    return f"# curves\n{len(runs)} run(s): {out}\n\n"


VERB = Verb(
    name="plot",
    help="Plot the curves of one or several runs as one PNG.",
    order=330,
    example="synfundus plot --run-dir runs/model --run-dir runs/other --out curves.png",
    options=(
        Option(
            "--run-dir",
            "plot.run_dirs",
            "Run of `train` or `train-vae` (repeatable).",
            "many",
            required=True,
            metavar="PATH",
        ),
        Option(
            "--out",
            "plot.out",
            "PNG to write; default: curves.png in the run; needed for several runs.",
            metavar="PATH",
        ),
        Option(
            "--curve", "plot.curves", "Metric to plot, e.g. grad_norm; default: the usual ones.", "many", metavar="NAME"
        ),
        Option("--smoothing", "plot.smoothing", "Smoothing of the curves, e.g. 0.9; 0 for none."),
    ),
    sections=("plot", "storage"),
    dry_run=_dry_run,
)
