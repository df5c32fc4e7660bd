"""`synfundus watch` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.machine import WatchConfig


def _dry_run(section: WatchConfig, seed: int) -> str:
    from synfundus.stages.watch.job import find_runs

    del seed
    return f"# watched\n{len(find_runs(str(section.run_dir)))} run(s)\n\n"


VERB = Verb(
    name="watch",
    help="Show the progress of a run, or of all runs of a folder: loss, rate, ETA, problems.",
    order=320,
    example="synfundus watch --run-dir runs/model",
    options=(
        Option(
            "--run-dir",
            "watch.run_dir",
            "Run of `train` or `train-vae`, or a folder of runs.",
            required=True,
            role="input",
        ),
        Option("--once", "watch.once", "Show it once and exit.", "flag"),
    ),
    sections=("watch", "storage", "telemetry"),
    results_on_stdout=True,
    dry_run=_dry_run,
)
