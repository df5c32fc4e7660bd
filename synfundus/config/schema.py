"""Every option of synfundus with its default, bound, unit and meaning: the single source of truth.

The text under a field becomes the help text and the JSON schema. Defaults live nowhere else: the classes
these values are handed to have no defaults of their own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from synfundus.config.base import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from synfundus.config.data_sections import InspectConfig, PhantomsConfig, PrepareConfig, StorageConfig
from synfundus.config.diffusion_section import DiffusionConfig
from synfundus.config.run_sections import ExportConfig, PlanConfig, PlotConfig, PostHocConfig, SigmaRel, WatchConfig

Precision = Literal["auto", "bf16", "fp32"]
AttentionBackend = Literal["auto", "xformers", "sdpa", "math"]
LrSchedule = Literal["cosine", "constant"]


class OptimConfig(Section):
    """AdamW and its learning-rate schedule, counted in images."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    schedule: LrSchedule = "cosine"
    """Shape after the warm-up."""
    warmup_images: NonNegativeInt = 10_000
    """Images over which the rate rises linearly from 0."""
    min_lr_ratio: Fraction = 0.01
    """The cosine ends at this fraction of the peak."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.99
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient clipping by global norm; 0 turns it off."""


class EmaConfig(Section):
    """Exponential moving average of the fp32 master weights (ADR-0007)."""

    half_life_images: PositiveFloat = 500_000.0
    """Images after which a weight's share in the average has halved."""
    rampup_ratio: PositiveFloat = 0.05
    """Early in training the half-life is at most this fraction of the images seen (EDM2)."""


class DiffusionEmaConfig(EmaConfig):
    """Averages of the denoiser's weights."""

    sigma_rel: tuple[SigmaRel, ...] = ()
    """Widths of power-function averages kept beside it, for `synfundus ema`; (0.05, 0.1) serves what lies between."""
    snapshot_every_images: NonNegativeInt = 0
    """Images between snapshots of those averages (fp32, one file a width); 0 takes one at the end."""


class LoopConfig(Section):
    """What both training verbs share."""

    budget_images: PositiveInt = 20_000_000
    """Images to train on, epochs included."""
    global_batch_size: PositiveInt = 256
    """Images per optimizer step over all ranks."""
    micro_batch_size: PositiveInt | Literal["auto"] = 32
    """Most images per rank and forward pass, accumulation follows from it; auto: as many as memory holds at start."""
    precision: Precision = "auto"
    """bf16: bf16 weights with fp32 masters; fp32: all in fp32; auto: bf16 where the device has instructions for it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the repeated blocks (torch.compile): minutes in the first step, which `watchdog_s` must allow for."""
    tf32: bool = True
    """On a GPU, fp32 products run on tensor cores with 10 bits of mantissa; nothing changes on a CPU."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits every time: slower; a CPU's always do."""
    channels_last: bool | Literal["auto"] = True
    """NHWC memory layout for convolutions; auto: where it is faster, measured at start."""
    prefetch_batches: NonNegativeInt = 4
    """Global batches prepared ahead of the step; 0 without workers reads in the step."""
    prefetch_max_bytes: PositiveInt = 2**30
    """Most bytes of batches prepared ahead, per rank; one batch (with workers, two a worker) always fits."""
    workers: NonNegativeInt = 0
    """Processes per rank that read and draw; 0 does it in a background thread."""
    worker_stall_s: PositiveFloat = 600.0
    """A worker that brings nothing for so long ends the run with its name."""
    checkpoint_every_images: PositiveInt = 500_000
    """Images between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """Checkpoints kept, never below two."""
    async_checkpoints: bool = True
    """A step only copies the state; gathering, hashing, writing and committing run behind the next ones."""
    watchdog_s: NonNegativeFloat = 900.0
    """A step, wait or save that takes longer (a start or export: ten times) ends all with stacks and 75; 0 never."""
    log_every_images: PositiveInt = 10_000
    """Images between two lines of metrics.jsonl."""
    preview_every_images: NonNegativeInt = 500_000
    """Images between two preview grids; 0 draws none."""
    validate_every_images: NonNegativeInt = 1_000_000
    """Images between two passes over held-out patients; 0 only at the end."""
    validation_images: PositiveInt = 1024
    """Most held-out images a validation looks at."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """When a loss or gradient is not finite: rewind goes back to the last checkpoint's weights, not to its images."""
    on_spike: Literal["off", "stop", "skip", "rewind"] = "off"
    """What happens when a loss is a spike."""
    spike_factor: Annotated[float, Field(gt=1.0)] = 4.0
    """A loss above so many times the median of the last ones is a spike."""
    spike_window_steps: Annotated[int, Field(ge=2)] = 100
    """How many last ones."""
    max_rewinds: NonNegativeInt = 3
    """Rewinds to one and the same checkpoint before the run stops."""
    max_bad_fraction: Fraction = 0.001
    """The run stops when more than this fraction of samples had to be quarantined."""
    num_threads: NonNegativeInt = 0
    """CPU threads per rank; 0 shares the cores among the ranks of the node."""


class CodecConfig(Section):
    """Architecture of the autoencoder (diffusers AutoencoderKL)."""

    latent_channels: PositiveInt = 4
    """Channels of the latents."""
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=6)] = (128, 256, 512, 512)
    """Width of each level; the downsampling factor is block_size_px * 2 ** (levels - 1)."""
    block_size_px: Annotated[int, Field(ge=1, le=16)] = 1
    """Above 1 the network sees blocks of pixels as channels: much faster, for training from scratch on a CPU."""
    layers_per_block: PositiveInt = 2
    """Residual blocks per level."""
    norm_num_groups: PositiveInt = 32
    """Groups of the group norms."""
    mid_block_attention: bool = True
    """Self-attention at the lowest level."""
    linear_path: bool = False
    """Add the closed-form patch-PCA path (from-scratch training; stock AutoencoderKL when off)."""
    linear_path_fit_images: PositiveInt = 512
    """Training images the linear path is fitted on."""


class VaeLossConfig(Section):
    """Terms of the reconstruction objective."""

    l1_weight: NonNegativeFloat = 1.0
    """Weight of the mean absolute error."""
    structural_weight: NonNegativeFloat = 0.25
    """Weight of 1 - SSIM."""
    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the KL divergence to the standard normal, per latent element."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the patch discriminator; 0 builds none."""
    adversarial_start_images: NonNegativeInt = 1_000_000
    """The discriminator joins after this many images."""


class VaeConfig(Section):
    """Training of the autoencoder (`synfundus train-vae`)."""

    data: str | None = None
    """Set of images (written by `prepare`)."""
    run_dir: str | None = None
    """Folder of the run."""
    init_from: str | None = None
    """Folder of a diffusers AutoencoderKL or AutoencoderDC to start from; its architecture replaces `codec`."""
    codec: CodecConfig = CodecConfig()
    """Architecture."""
    loss: VaeLossConfig = VaeLossConfig()
    """Objective."""
    loop: LoopConfig = LoopConfig()
    """Budget, batch, precision, intervals."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    ema: EmaConfig = EmaConfig()
    """Weight averaging."""


class EncodeConfig(Section):
    """The separate pass that stores posterior moments (`synfundus encode-latents`)."""

    data: str | None = None
    """Set of images."""
    vae: str | None = None
    """Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."""
    out: str | None = None
    """Folder of the latent set to write."""
    flip: bool = False
    """Also store the moments of the mirrored image (training then flips image and eye side together)."""
    batch_size: PositiveInt = 32
    """Images per forward pass."""
    precision: Precision = "fp32"
    """Arithmetic of the encoder (auto as in loop.precision); moments are stored in fp16 either way."""
    max_bad_fraction: Fraction = 0.001
    """No latent set is made when more than this fraction of the images cannot be used."""
    verify_samples: PositiveInt = 64
    """Samples `verify-latents` decodes."""
    verify_min_psnr_db: NonNegativeFloat = 20.0
    """`verify-latents` fails below this PSNR."""


class UNetConfig(Section):
    """Architecture of the denoiser (diffusers UNet2DConditionModel)."""

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=6)] = (192, 384, 576, 768)
    """Width of each level."""
    layers_per_block: PositiveInt = 2
    """Residual blocks per level."""
    attention_levels: tuple[bool, ...] = (False, True, True, True)
    """Which levels have self- and cross-attention; as many entries as levels."""
    attention_head_dim: PositiveInt = 64
    """Channels per attention head."""
    transformer_layers_per_block: PositiveInt = 1
    """Transformer layers in an attention block."""
    norm_num_groups: PositiveInt = 32
    """Groups of the group norms."""
    cross_attention_dim: PositiveInt = 512
    """Width of the label tokens."""
    dropout: Fraction = 0.0
    """Dropout in residual blocks."""
    scale_shift_norm: bool = False
    """Time and labels scale and shift the normalised features (adaptive group norm) instead of only adding to them."""

    @model_validator(mode="after")
    def _levels_match(self) -> UNetConfig:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries, block_out_channels has "
                f"{len(self.block_out_channels)}: they must match"
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide the level width {width}")
        for width, attends in zip(self.block_out_channels, self.attention_levels, strict=True):
            if attends and width % self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim {self.attention_head_dim} does not divide the level width {width}"
                )
        return self


class TrainConfig(Section):
    """Inputs and outputs of `synfundus train`."""

    latents: tuple[str, ...] = ()
    """Set of latents (written by `encode-latents`), or several, each with its share: `A:0.7`, `B:0.3`."""
    vae: str | None = None
    """Autoencoder for previews and export; default: the one the latent set names."""
    run_dir: str | None = None
    """Folder of the run."""
    init_from: str | None = None
    """Weights to start from: an exported model, or a diffusers U-Net, whose architecture replaces `unet`."""

    @field_validator("latents", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value


class SampleConfig(Section):
    """Generating images (`synfundus sample`)."""

    model: str | None = None
    """Run of `train`, or an exported pipeline folder."""
    out: str | None = None
    """Folder to write."""
    num_images: PositiveInt | None = None
    """Number of images; with a label plan the default is one a row."""
    label: dict[str, int | None] = {}  # noqa: RUF012 - pydantic copies defaults
    """Labels every image gets; the rest is unknown."""
    labels: str | None = None
    """Label plan: a CSV with one row an image."""
    sampler: Literal["ddim", "dpmpp", "euler", "heun"] = "dpmpp"
    """Solver."""
    num_steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Solver steps."""
    guidance_scale: NonNegativeFloat = 2.0
    """Classifier-free guidance; 1 turns it off."""
    guidance_rescale: Fraction = 0.0
    """Pull the guided prediction back to the conditional one's contrast (arXiv 2305.08891)."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Part of the steps, from the noisy end, in which guidance acts (arXiv 2404.07724)."""
    batch_size: PositiveInt = 16
    """Images per batch."""
    format: Literal["png", "shards"] = "png"
    """Single PNG files or a shard set."""
    precision: Precision = "fp32"
    """Arithmetic of the denoiser (auto as in loop.precision)."""
    contact_sheet_images: NonNegativeInt = 64
    """Images on the contact sheet; 0 draws none."""

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"guidance_interval {value} must rise")
        return value


class DemoConfig(Section):
    """The whole chain in minutes (`synfundus demo`)."""

    out: str | None = None
    """Folder for everything the demo makes."""
    minutes: Annotated[float, Field(ge=0.05, le=10_000)] = 7.0
    """Rough time of the chain on two idle cores; scales images, budgets and samples."""
    fit_to_machine: bool = True
    """Time a few training steps first; a fast machine gets larger budgets, a slow one no smaller ones."""
    source: str | None = None
    """Folder of your own photographs instead of phantoms."""
    labels: str | None = None
    """Label table of your own photographs."""
    mapping: str | None = None
    """Mapping YAML of your own table."""
    num_generated: PositiveInt = 320
    """Images generated for the label-control test."""


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


class TelemetryConfig(Section):
    """Where metrics go; metrics.jsonl is always written."""

    console: Literal["auto", "rich", "plain", "quiet"] = "auto"
    """auto shows a progress bar on a terminal and plain lines elsewhere."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    wandb_project: str | None = None
    """Weights & Biases project; needs the extra `wandb`."""


class RunConfig(Section):
    """One tree for every verb; a preset or a run.yaml can describe the whole chain."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw."""
    phantoms: PhantomsConfig = PhantomsConfig()
    """Procedural photographs."""
    prepare: PrepareConfig = PrepareConfig()
    """Ingestion."""
    vae: VaeConfig = VaeConfig()
    """Autoencoder training."""
    encode: EncodeConfig = EncodeConfig()
    """Latent pass."""
    train: TrainConfig = TrainConfig()
    """Diffusion training: inputs and outputs."""
    unet: UNetConfig = UNetConfig()
    """Denoiser architecture."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Objective."""
    loop: LoopConfig = LoopConfig()
    """Diffusion training: budget, batch, precision, intervals."""
    optim: OptimConfig = OptimConfig()
    """Diffusion training: optimizer."""
    ema: DiffusionEmaConfig = DiffusionEmaConfig()
    """Diffusion training: weight averaging."""
    post_hoc: PostHocConfig = PostHocConfig()
    """Averages put together after the run."""
    export: ExportConfig = ExportConfig()
    """Writing a model of its own."""
    plan: PlanConfig = PlanConfig()
    """What a run will need."""
    watch: WatchConfig = WatchConfig()
    """Looking at a run."""
    plot: PlotConfig = PlotConfig()
    """Curves of runs."""
    sample: SampleConfig = SampleConfig()
    """Generation."""
    inspect: InspectConfig = InspectConfig()
    """Looking into a set."""
    storage: StorageConfig = StorageConfig()
    """Object store and cache."""
    demo: DemoConfig = DemoConfig()
    """The demo."""
    launch: LaunchConfig = LaunchConfig()
    """Processes and cluster."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Reporting."""
