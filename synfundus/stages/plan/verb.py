"""`synfundus plan` on the command line."""

from dataclasses import replace

from synfundus.stages.verb import NODES, Option, Verb

VERB = Verb(
    name="plan",
    help="Work out memory, hours and price of a diffusion run before it is started.",
    order=30,
    options=(
        replace(NODES, help="Nodes to plan for."),
        Option("--gpus-per-node", "launch.gpus_per_node", "GPUs of a node."),
        Option("--gpu", "plan.gpu", "v100, a100-40, a100, a6000, l40s, rtx4090, h100 or h200."),
        Option("--mfu", "plan.mfu", "Part of its peak a GPU computes at (its MFU without recomputation), e.g. 0.3."),
        Option("--num-images", "plan.num_images", "Images of the set."),
        Option("--price", "plan.price_per_gpu_hour", "What an hour of one GPU costs."),
    ),
    sections=("plan", "prepare", "train_vae", "train", "launch"),
    results_on_stdout=True,
)
