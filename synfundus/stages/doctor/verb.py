"""`synfundus doctor` on the command line."""

from synfundus.stages.verb import DEVICE, Verb

VERB = Verb(
    name="doctor",
    help="Check this machine: Python, torch, CUDA, DeepSpeed, attention, SLURM, S3, disk.",
    order=20,
    example="synfundus doctor --device cpu",
    options=(DEVICE,),
    sections=("launch",),
    results_on_stdout=True,
)
