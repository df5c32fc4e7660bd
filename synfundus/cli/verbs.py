"""The verbs and their options, as a table: each option is a dotted path of the configuration.

Nothing else knows an option. Help texts are repeated here because reading them from the schema would import pydantic,
which `--help` cannot afford; a test compares every path with the schema.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

OptionKind = Literal["value", "many", "flag", "mapping", "switch", "list"]
"""value: one text; many: repeatable text; flag: no argument, sets true; mapping: repeatable NAME=VALUE; switch, list:
for the CLI itself."""
PathRole = Literal["input", "output", ""]


@dataclass(frozen=True)
class Option:
    """A named option.

    Attributes:
        flag: As typed, ``--image-size``.
        path: Dotted path of the configuration it sets; empty for what concerns the command line alone.
        help: One line.
        kind: How it is written.
        required: The verb cannot do without a value at this path, wherever it comes from.
        role: ``input`` must exist, ``output`` must not be a file.
    """

    flag: str
    path: str
    help: str
    kind: OptionKind = "value"
    required: bool = False
    role: PathRole = ""

    @property
    def name(self) -> str:
        """Return the Python name: ``image_size``."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: As typed.
        help: First line of its help.
        options: Its own options.
        sections: Top-level keys of the configuration that concern it.
        module: Module of `synfundus.stages` that does it.
        distributed: Whether it runs as ranks of a job with a process group.
        host_only: Whether it computes on the host whatever accelerators there are; alone it needs no process group.
        script: Batch script for several nodes; empty when it does not run on several.
        trains: Section of the training it does, ``train_vae`` or ``train``; None when it does not train.
        default_preset: Preset taken when the user names none.
        results_on_stdout: What it says is its result.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    sections: tuple[str, ...]
    module: str
    distributed: bool = False
    host_only: bool = False
    script: str = ""
    trains: str | None = None
    default_preset: str | None = None
    results_on_stdout: bool = False


def _needs(option: Option) -> Option:
    return replace(option, required=True)


COMMON = (
    Option("--preset", "", "Start from a shipped preset: demo-cpu, fundus256, fundus512, fundus1024."),
    Option("--config", "", "Then read this YAML file."),
    Option("--set", "", "Then set KEY=VALUE, e.g. train.optim.lr=2e-4 (repeatable).", "list"),
    Option("--seed", "seed", "Seed of every random draw."),
    Option(
        "--dry-run", "", "Show the resolved values, where each came from and what would start; do nothing.", "switch"
    ),
    Option("--json", "", "Print the summary as JSON on standard output.", "switch"),
    Option("--debug", "", "Show the traceback of an error.", "switch"),
)
DEVICE = Option("--device", "launch.device", "auto, cpu or cuda.")
PROCS = Option("--procs-per-node", "launch.procs_per_node", "Processes a node; default one a GPU, or 1.")
NODES = Option("--nodes", "launch.nodes", "Nodes; above 1 SLURM is used.")
DISTRIBUTED = (NODES, PROCS, DEVICE)
CACHE = Option("--cache-dir", "storage.cache_dir", "Local folder for copies of remote shards.", role="output")

MICRO_BATCH_HELP = "Most images per rank and forward pass; auto: as many as memory holds, found at start."
DATA_HELP = "Set of images, written by `prepare`."
VAE_HELP = "Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."

PHANTOMS = Verb(
    "phantoms",
    "Draw procedural fundus photographs with ground truth.",
    (
        _needs(Option("--out", "phantoms.out", "Folder for the photographs and labels.csv.", role="output")),
        Option("--num-images", "phantoms.num_images", "Number of photographs."),
        Option("--image-size", "phantoms.image_size_px", "Edge of the square photographs, in pixels."),
        Option("--workers", "phantoms.workers", "Processes that draw; 0 draws in the main process."),
    ),
    ("seed", "phantoms"),
    "phantoms",
)
PREPARE = Verb(
    "prepare",
    "Crop, de-identify and split photographs into shards.",
    (
        _needs(Option("--source", "prepare.source", "Folder of photographs.", role="input")),
        Option(
            "--labels", "prepare.labels", "Label table, CSV; needed unless the importer's set has none.", role="input"
        ),
        Option("--importer", "prepare.importer", "Known set whose table to read, e.g. eyepacs, aptos2019, odir5k."),
        Option("--mapping", "prepare.mapping", "YAML that says which column means what.", role="input"),
        _needs(Option("--out", "prepare.out", "Folder of the shard set to write.", role="output")),
        Option("--image-size", "prepare.image_size_px", "Edge of the square images in the set, in pixels."),
        Option("--splits", "prepare.splits", "Fractions of patients: train,val,test."),
        Option("--workers", "prepare.workers", "Processes that decode and crop; 0 works in the main process."),
        Option("--crosswalk", "prepare.crosswalk", "Folder for the map from keys to source names.", role="output"),
        Option("--burned-text", "prepare.burned_text", "Writing inside the disc: flag, quarantine or off."),
        Option(
            "--compare-with",
            "prepare.compare_with",
            "Other set, or its crosswalk: report look-alikes (repeatable).",
            "many",
        ),
        NODES,
        PROCS,
    ),
    ("seed", "prepare", "storage", "launch"),
    "prepare",
    distributed=True,
    host_only=True,
    script="prepare.sh",
)
TRAIN_VAE = Verb(
    "train-vae",
    "Train the autoencoder.",
    (
        _needs(Option("--data", "train_vae.data", DATA_HELP, role="input")),
        _needs(Option("--run-dir", "train_vae.run_dir", "Folder of the run.", role="output")),
        Option(
            "--init-from", "train_vae.init_from", "Start from a diffusers AutoencoderKL or AutoencoderDC.", role="input"
        ),
        Option("--budget-images", "train_vae.loop.budget_images", "Images to train on, epochs included."),
        Option("--micro-batch", "train_vae.loop.micro_batch_size", MICRO_BATCH_HELP),
        CACHE,
        *DISTRIBUTED,
    ),
    ("seed", "train_vae", "storage", "launch", "telemetry"),
    "train_vae",
    distributed=True,
    script="vae.sh",
    trains="train_vae",
)
ENCODE = Verb(
    "encode-latents",
    "Encode images into posterior moments with a frozen autoencoder.",
    (
        _needs(Option("--data", "encode_latents.data", DATA_HELP, role="input")),
        _needs(Option("--vae", "encode_latents.vae", VAE_HELP, role="input")),
        _needs(Option("--out", "encode_latents.out", "Folder of the latent set to write.", role="output")),
        Option("--flip", "encode_latents.flip", "Also store the moments of the mirrored image.", "flag"),
        Option("--batch-size", "encode_latents.batch_size", "Images per forward pass."),
        CACHE,
        *DISTRIBUTED,
    ),
    ("seed", "encode_latents", "storage", "launch", "telemetry"),
    "encode_latents",
    distributed=True,
    script="encode_latents.sh",
)
VERIFY = Verb(
    "verify-latents",
    "Decode a sample of a latent set and report its PSNR.",
    (
        _needs(Option("--latents", "verify_latents.latents", "Set of latents (`encode-latents`).", role="input")),
        _needs(Option("--vae", "verify_latents.vae", VAE_HELP, role="input")),
        Option("--data", "verify_latents.data", "Set of images the latents were made of.", role="input"),
        CACHE,
        DEVICE,
    ),
    ("seed", "verify_latents", "storage", "launch", "telemetry"),
    "verify_latents",
    distributed=True,
)
TRAIN = Verb(
    "train",
    "Train the conditional diffusion model on latents.",
    (
        _needs(
            Option(
                "--latents",
                "train.latents",
                "Set of latents; several with shares: A:0.7, then B:0.3 (repeatable).",
                kind="many",
                role="input",
            )
        ),
        _needs(Option("--run-dir", "train.run_dir", "Folder of the run.", role="output")),
        Option("--vae", "train.vae", "Autoencoder for previews; default the one the latents name.", role="input"),
        Option("--init-from", "train.init_from", "Start from an exported model or a diffusers U-Net.", role="input"),
        Option("--budget-images", "train.loop.budget_images", "Images to train on, epochs included."),
        Option("--micro-batch", "train.loop.micro_batch_size", MICRO_BATCH_HELP),
        CACHE,
        *DISTRIBUTED,
    ),
    ("seed", "train", "storage", "launch", "telemetry"),
    "train",
    distributed=True,
    script="ldm.sh",
    trains="train",
)
SAMPLE = Verb(
    "sample",
    "Generate images for labels.",
    (
        _needs(Option("--model", "sample.model", "Run of `train`, or an exported pipeline.", role="input")),
        _needs(Option("--out", "sample.out", "Folder to write.", role="output")),
        Option("--num-images", "sample.num_images", "Number of images; with a plan the default is one a row."),
        Option("--label", "sample.label", "NAME=VALUE every image gets (repeatable); the rest is unknown.", "mapping"),
        Option("--labels", "sample.labels", "Label plan: a CSV with one row an image.", role="input"),
        Option("--sampler", "sample.sampler", "ddim, dpmpp, euler or heun."),
        Option("--num-steps", "sample.num_steps", "Solver steps."),
        Option("--guidance-scale", "sample.guidance_scale", "Classifier-free guidance; 1 turns it off."),
        Option("--format", "sample.format", "png or shards."),
        *DISTRIBUTED,
    ),
    ("seed", "sample", "storage", "launch", "telemetry"),
    "sample",
    distributed=True,
    script="sample.sh",
)
EXPORT = Verb(
    "export",
    "Write a trained model as a diffusers folder; of a checkpoint while the run goes on.",
    (
        _needs(Option("--run-dir", "export.run_dir", "Run of `train`.", role="input")),
        _needs(Option("--out", "export.out", "Folder to write.", role="output")),
        Option("--checkpoint", "export.checkpoint", "images-NNNNNNNNNNNN; default the finished model, or the newest."),
        Option("--weights", "export.weights", "averaged, or raw ones of a checkpoint."),
    ),
    ("export",),
    "export",
)
EMA = Verb(
    "ema",
    "Make a model with a longer or shorter weight average than was tracked.",
    (
        _needs(Option("--run-dir", "ema.run_dir", "Run of `train` with snapshots.", role="input")),
        _needs(Option("--sigma-rel", "ema.sigma_rel", "Width of the average relative to the run, e.g. 0.10.")),
        Option("--at-images", "ema.at_images", "Time of the average; default the last snapshot's."),
        Option("--out", "ema.out", "Folder to write; default below the run.", role="output"),
    ),
    ("ema",),
    "ema",
)
DEMO = Verb(
    "demo",
    "Walk the whole chain on phantoms, or on your own photographs, in minutes.",
    (
        _needs(Option("--out", "demo.out", "Folder for everything the demo makes.", role="output")),
        Option("--minutes", "demo.minutes", "Rough time on two idle cores."),
        Option("--source", "demo.source", "Folder of your own photographs instead of phantoms.", role="input"),
        Option("--labels", "demo.labels", "Label table of your own photographs.", role="input"),
        Option("--mapping", "demo.mapping", "Mapping YAML of your own table.", role="input"),
        PROCS,
        DEVICE,
    ),
    (
        *("seed", "demo", "phantoms", "prepare", "train_vae", "encode_latents", "train", "sample"),
        *("launch", "telemetry"),
    ),
    "demo",
    distributed=True,
    trains="train",
    default_preset="demo-cpu",
)
INSPECT = Verb(
    "inspect",
    "Look into a shard set: counts, labels, sizes, pictures; check every byte.",
    (
        _needs(Option("--data", "inspect.data", "Set of images, latents or samples.", role="input")),
        Option("--out", "inspect.out", "Folder for inspect.json and the contact sheet; default: none.", role="output"),
        Option("--verify", "inspect.verify", "Read every byte and compare every hash.", "flag"),
        Option("--images", "inspect.contact_sheet_images", "Images on the contact sheet; 0 draws none."),
    ),
    ("seed", "inspect", "storage"),
    "inspect",
    results_on_stdout=True,
)
WATCH = Verb(
    "watch",
    "Show how a run is doing, from its files: progress, loss, rate, ETA, what went wrong.",
    (
        _needs(Option("--run-dir", "watch.run_dir", "Run of `train` or `train-vae`.", role="input")),
        Option("--once", "watch.once", "Show it once instead of until Ctrl-C.", "flag"),
    ),
    ("watch", "storage", "telemetry"),
    "watch",
    results_on_stdout=True,
)
PLOT = Verb(
    "plot",
    "Draw curves of one or several runs, from their files, as one PNG.",
    (
        _needs(Option("--run-dir", "plot.run_dirs", "Run of `train` or `train-vae` (repeatable).", "many")),
        Option("--out", "plot.out", "PNG to write; default curves.png in the run's folder; needed for several runs."),
        Option("--curve", "plot.curves", "Name in metrics.jsonl, e.g. grad_norm; default the usual ones.", "many"),
        Option("--smoothing", "plot.smoothing", "Weight of the past in the strong line, e.g. 0.9; 0 for none."),
    ),
    ("plot", "storage"),
    "plot",
)
PLAN = Verb(
    "plan",
    "Work out memory, hours and price of a diffusion run before it is started.",
    (
        replace(NODES, help="Nodes to plan for."),
        Option("--gpus-per-node", "launch.gpus_per_node", "GPUs of a node."),
        Option("--gpu", "plan.gpu", "v100, a100-40, a100, a6000, l40s, rtx4090, h100 or h200."),
        Option("--mfu", "plan.mfu", "Part of its peak a GPU computes at (its MFU without recomputation), e.g. 0.3."),
        Option("--num-images", "plan.num_images", "Images of the set."),
        Option("--price", "plan.price_per_gpu_hour", "What an hour of one GPU costs."),
    ),
    ("plan", "prepare", "train_vae", "train", "launch"),
    "plan",
    results_on_stdout=True,
)
DOCTOR = Verb(
    "doctor",
    "Check this machine: Python, torch, CUDA, DeepSpeed, xformers, SLURM, S3, disk.",
    (DEVICE,),
    ("launch",),
    "doctor",
    results_on_stdout=True,
)

VERBS = (
    *(DEMO, DOCTOR, PLAN, PHANTOMS, PREPARE, INSPECT, TRAIN_VAE),
    *(ENCODE, VERIFY, TRAIN, WATCH, PLOT, SAMPLE, EMA, EXPORT),
)
