"""`synfundus watch` on the command line."""

from synfundus.stages.verb import Option, Verb

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
)
