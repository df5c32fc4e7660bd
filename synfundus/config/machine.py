"""Options of processes, storage and metrics, and of `plan`, `watch`, `plot`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from synfundus.config.base import (
    ACCOUNT,
    PARTITIONS,
    PNG_FILE,
    TIME_LIMIT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

AttentionBackend = Literal["auto", "sdpa", "cudnn", "flash", "efficient", "xformers", "math"]


_OURS = {
    "set launch.nodes, procs_per_node, gpus_per_node or cpus_per_task": (
        *("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "tasks-per-node", "cpus-per-task", "cpus-per-gpu"),
        *("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
    ),
    "set launch.partition, account or time_limit": ("partition", "account", "time"),
    "the job's name and log belong to its folder": ("job-name", "output", "error", "input", "open-mode", "chdir"),
    "keys would reach SLURM's records": ("export", "export-file", "get-user-env"),
    "one job runs the script of the verb": ("array", "wrap", "uid", "gid"),
    "set SYNFUNDUS_MAX_RESTARTS=0 in the environment": ("no-requeue",),
    "use --dry-run": ("test-only", "help", "usage", "version"),
}
"""Options of sbatch that cannot be given, by the reason, or what to do instead."""
_SWITCHES = (
    *("contiguous", "exclusive", "hold", "no-kill", "overcommit", "oversubscribe", "requeue", "spread-job"),
    *("use-min-nodes", "verbose"),
)
_SBATCH_ARG = re.compile(r"--([a-z][a-z0-9-]*)(?:=([^\x00-\x1f\x7f]+))?")


def _sbatch_problem(text: str) -> str:
    """Return what is wrong with a further option of sbatch; empty if nothing is."""
    match = _SBATCH_ARG.fullmatch(text)
    if match is None:
        return f"{text!r} is not of the form --NAME=VALUE (one option of sbatch, in its long form)"
    name, value = match.groups()
    for reason, names in _OURS.items():
        if any(ours.startswith(name) for ours in names):  # sbatch takes abbreviations, too
            return f"--{name} cannot be given here: {reason}"
    for whole in ("signal", "gres"):
        if whole.startswith(name) and name != whole:
            return f"--{name}: write --{whole} in full"
    if name == "signal" and not re.fullmatch(r"B:USR2@\d+", value or ""):
        return f"{text!r} is not of the form --signal=B:USR2@SECONDS, which the script hands on to the ranks"
    if value is None and name not in _SWITCHES:
        return f"--{name} has no value; write --{name}=VALUE"
    return ""


class LaunchConfig(Section):
    """Processes, nodes and the cluster."""

    nodes: PositiveInt = 1
    """Number of nodes; above 1, SLURM is used, on one with partition, account, sbatch_args or submit."""
    submit: bool = False
    """Run as a batch job of SLURM, also on one node."""
    procs_per_node: PositiveInt | None = None
    """Processes per node; default: one per GPU, or 1 without GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: CUDA if available."""
    ds_config: str | None = None
    """DeepSpeed file (ZeRO and communication settings only); default: zero2.json, on a CPU zero2_cpu.json."""
    attention: AttentionBackend = "auto"
    """Attention kernel; auto: a training on a GPU takes the fastest that passes a test, everything else sdpa."""
    partition: Annotated[str, Field(pattern=PARTITIONS)] | None = None
    """SLURM partition, or several separated by commas: SLURM takes the first that is free."""
    account: Annotated[str, Field(pattern=ACCOUNT)] | None = None
    """SLURM account."""
    time_limit: Annotated[str, Field(pattern=TIME_LIMIT)] = "24:00:00"
    """SLURM time limit, e.g. 24:00:00 or 2-00:00:00."""
    sbatch_args: tuple[str, ...] = ()
    """Further options of sbatch, e.g. [--qos=long, --mem=200G, --constraint=a100]."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs to request per node of a cluster job; 0 for CPU nodes."""
    cpus_per_task: PositiveInt = 8
    """CPU cores to request per process of a cluster job."""
    collective_timeout_s: PositiveInt = 1800
    """Timeout of a collective."""
    group_readable: bool = False
    """Let the group read what is written (umask 027 instead of 077); crosswalks stay their owner's."""

    @field_validator("sbatch_args")
    @classmethod
    def _for_us(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if problems := list(filter(None, map(_sbatch_problem, value))):
            raise ValueError("; ".join(problems))
        return value


class StorageConfig(Section):
    """Reading from an object store (endpoint, region and credentials come from the environment)."""

    cache_dir: str | None = None
    """Local folder for copies of remote shards, shared by the ranks of a node; without it, no cache."""
    cache_max_bytes: PositiveInt = 200 * 2**30
    """Maximum size of the cache; the least recently used copies are removed."""
    deadline_s: PositiveFloat = 300.0
    """Maximum time for failed tries on one object, with the pauses between them."""
    connect_timeout_s: PositiveFloat = 10.0
    """Timeout of a connection."""
    read_timeout_s: PositiveFloat = 30.0
    """Timeout of a read: longest wait for the next bytes."""


class TelemetryConfig(Section):
    """Where metrics go; metrics.jsonl is always written."""

    console: Literal["auto", "rich", "plain", "quiet"] = "auto"
    """auto: a progress bar on a terminal, plain lines elsewhere."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb_project: str | None = None
    """Weights & Biases project; needs the extra `wandb`."""
    wandb_entity: str | None = None
    """Team or user the project belongs to; default: the user's own."""
    wandb_group: str | None = None
    """Group of the run there."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run there."""

    @property
    def wandb_labels(self) -> dict[str, object]:
        """Where a run is filed at Weights & Biases beside its project; what is not given is left out."""
        given = {"entity": self.wandb_entity, "group": self.wandb_group, "tags": list(self.wandb_tags)}
        return {name: value for name, value in given.items() if value}


class PlanConfig(Section):
    """Memory, time and cost of the chain (`synfundus plan`)."""

    gpu: Literal[
        "t4", "v100", "a10", "a100-40", "a100", "a6000", "l4", "l40s", "rtx4090", "h100", "h200", "b200", "mi300x"
    ] = "h100"
    """GPU to plan for."""
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Fraction of the peak FLOP/s that a GPU reaches while it computes, in all stages: the MFU without recomputation,
    which gradient checkpointing keeps while it lowers the MFU. Default: what is published or assumed for the GPU."""
    network_gbit: PositiveFloat = 400.0
    """Network of a node in one direction, Gb/s; inside a node the GPU's own links count."""
    num_images: PositiveInt = 1_000_000
    """Number of images, for the size of the latent set."""
    price_per_gpu_hour: NonNegativeFloat | None = None
    """Price of one GPU hour, in any currency."""


class WatchConfig(Section):
    """Progress of a run, read from its files (`synfundus watch`)."""

    run_dir: str | None = None
    """Folder of a run of `train` or `train-vae`, or a folder of runs."""
    once: bool = False
    """Show it once and exit."""
    refresh_s: Annotated[float, Field(ge=0.2, le=3600.0)] = 3.0
    """Seconds between updates."""


class PlotConfig(Section):
    """Curves of runs from their files (`synfundus plot`)."""

    run_dirs: tuple[str, ...] = ()
    """Folders of runs of `train` or `train-vae`."""
    out: Annotated[str, Field(pattern=PNG_FILE)] | None = None
    """PNG to write (replaced if it exists); default: curves.png in the folder of the run."""
    curves: tuple[str, ...] = ()
    """Metrics to plot, one panel each; default: the usual ones."""
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Smoothing (exponential moving average) of the curves, 0 for none; default: by the number of points."""
