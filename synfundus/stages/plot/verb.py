"""`synfundus plot` on the command line."""

from synfundus.stages.verb import Option, Verb

VERB = Verb(
    name="plot",
    help="Draw curves of one or several runs, from their files, as one PNG.",
    order=330,
    options=(
        Option("--run-dir", "plot.run_dirs", "Run of `train` or `train-vae` (repeatable).", "many", required=True),
        Option("--out", "plot.out", "PNG to write; default curves.png in the run's folder; needed for several runs."),
        Option("--curve", "plot.curves", "Name in metrics.jsonl, e.g. grad_norm; default the usual ones.", "many"),
        Option("--smoothing", "plot.smoothing", "Weight of the past in the strong line, e.g. 0.9; 0 for none."),
    ),
    sections=("plot", "storage"),
)
