"""`synfundus plan` on the command line."""

from dataclasses import replace

from synfundus.stages.verb import NODES, Option, Verb

VERB = Verb(
    name="plan",
    help="Estimate memory, time and cost of autoencoder, latents, diffusion model and samples beforehand.",
    order=30,
    example="synfundus plan --preset fundus512 --nodes 2 --gpu h100 --price 2",
    options=(
        replace(NODES, help="Nodes to plan for."),
        Option("--gpus-per-node", "launch.gpus_per_node", "GPUs per node."),
        Option("--gpu", "plan.gpu", "GPU to plan for."),
        Option("--mfu", "plan.mfu", "Fraction of the peak FLOP/s (MFU without recomputation); default: the GPU's."),
        Option("--network-gbit", "plan.network_gbit", "Network of a node, Gb/s."),
        Option("--vae", "encode_latents.vae", "Autoencoder that exists: its training is left out.", metavar="PATH"),
        Option("--num-images", "plan.num_images", "Number of images."),
        Option("--sample-images", "sample.num_images", "Images to generate: `sample` is planned too."),
        Option("--price", "plan.price_per_gpu_hour", "Price of one GPU hour."),
    ),
    sections=("plan", "prepare", "train_vae", "encode_latents", "train", "sample", "launch"),
    results_on_stdout=True,
)
