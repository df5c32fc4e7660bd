"""`synfundus watch` on the command line."""

from synfundus.stages.verb import Option, Verb

VERB = Verb(
    name="watch",
    help="Show how a run is doing, from its files: progress, loss, rate, ETA, what went wrong.",
    order=320,
    options=(
        Option("--run-dir", "watch.run_dir", "Run of `train` or `train-vae`.", required=True, role="input"),
        Option("--once", "watch.once", "Show it once instead of until Ctrl-C.", "flag"),
    ),
    sections=("watch", "storage", "telemetry"),
    results_on_stdout=True,
)
