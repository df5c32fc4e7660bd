"""Options of where things run and what is seen of them: processes, storage, metrics, `plan`, `watch`, `plot`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synfundus.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

AttentionBackend = Literal["auto", "xformers", "sdpa", "math"]


class LaunchConfig(Section):
    """Processes, nodes and the cluster."""

    nodes: PositiveInt = 1
    """Nodes; above 1 SLURM is used."""
    procs_per_node: PositiveInt | None = None
    """Processes a node; default: one a GPU, or 1 without GPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when it is there."""
    ds_config: str | None = None
    """DeepSpeed file (ZeRO and communication knobs only); default zero2.json, or zero2_cpu.json on a CPU."""
    attention: AttentionBackend = "auto"
    """Attention kernel; auto takes xformers on a GPU after a probe, else sdpa."""
    partition: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}(,[A-Za-z0-9_.-]{1,64}){0,15}$")] | None = None
    """SLURM partition, or several with commas between them: SLURM takes the one that is free first."""
    account: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    """SLURM account."""
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}(:\d{2}){0,2}$")] = "24:00:00"
    """SLURM time limit, e.g. 24:00:00 or 2-00:00:00."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs requested on each node of a cluster job; 0 for CPU nodes."""
    cpus_per_task: PositiveInt = 8
    """CPU cores requested for each process of a cluster job."""
    collective_timeout_s: PositiveInt = 1800
    """Longest wait for the other ranks."""


class StorageConfig(Section):
    """Reading from an object store (endpoint, region and credentials come from the environment)."""

    cache_dir: str | None = None
    """Local folder for copies of remote shards, shared by the ranks of a node; without it every read is a request."""
    cache_max_bytes: PositiveInt = 200 * 2**30
    """Most bytes in the cache; the copies that were not used for longest are removed."""
    deadline_s: PositiveFloat = 300.0
    """Longest time spent in vain on one object: failed tries and the pauses between them."""
    connect_timeout_s: PositiveFloat = 10.0
    """Longest wait for a connection."""
    read_timeout_s: PositiveFloat = 30.0
    """Longest wait for the next bytes of an answer."""


class TelemetryConfig(Section):
    """Where metrics go; metrics.jsonl is always written."""

    console: Literal["auto", "rich", "plain", "quiet"] = "auto"
    """auto shows a progress bar on a terminal and plain lines elsewhere."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb_project: str | None = None
    """Weights & Biases project; needs the extra `wandb`."""


class PlanConfig(Section):
    """What a run will need (`synfundus plan`)."""

    gpu: Literal["v100", "a100-40", "a100", "a6000", "l40s", "rtx4090", "h100", "h200"] = "h100"
    """Processor to plan for."""
    mfu: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Part of its peak it computes at: the MFU of a run that computes nothing twice; published runs of such U-Nets have
    .2 to .4. Gradient checkpointing keeps the part and lowers the MFU, which the plan says."""
    num_images: PositiveInt = 1_000_000
    """Images of the set, for the size of its latents."""
    price_per_gpu_hour: NonNegativeFloat | None = None
    """What an hour of one GPU costs, in any currency."""


class WatchConfig(Section):
    """Looking at a run from its files (`synfundus watch`)."""

    run_dir: str | None = None
    """Folder of a run of `train` or `train-vae`."""
    once: bool = False
    """Show it once instead of until Ctrl-C."""
    refresh_s: Annotated[float, Field(ge=0.2, le=3600.0)] = 3.0
    """Seconds between two looks."""


class PlotConfig(Section):
    """Curves of runs from their files (`synfundus plot`)."""

    run_dirs: tuple[str, ...] = ()
    """Folders of runs of `train` or `train-vae`."""
    out: Annotated[str, Field(pattern=r"(?i)\.png$")] | None = None
    """PNG to write; an older one is replaced. By default curves.png in the folder of the run."""
    curves: tuple[str, ...] = ()
    """Names in metrics.jsonl, one panel each; by default the usual ones."""
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Weight of the past in the strong line, 0 for none; by default the more, the more points a curve has."""
