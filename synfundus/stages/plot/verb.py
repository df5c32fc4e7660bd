"""`synfundus plot` on the command line."""

from synfundus.stages.verb import Option, Verb

VERB = Verb(
    name="plot",
    help="Plot the curves of one or several runs as one PNG.",
    order=330,
    options=(
        Option("--run-dir", "plot.run_dirs", "Run of `train` or `train-vae` (repeatable).", "many", required=True),
        Option("--out", "plot.out", "PNG to write; default: curves.png in the run; needed for several runs."),
        Option("--curve", "plot.curves", "Metric to plot, e.g. grad_norm; default: the usual ones.", "many"),
        Option("--smoothing", "plot.smoothing", "Smoothing of the curves, e.g. 0.9; 0 for none."),
    ),
    sections=("plot", "storage"),
)
