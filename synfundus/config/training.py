"""Options both trainings share, and those of the autoencoder (`train-vae`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from synfundus.config.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

Precision = Literal["auto", "bf16", "fp32"]


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


class AutoencoderConfig(Section):
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


class AutoencoderLossConfig(Section):
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


class TrainVaeConfig(Section):
    """Training of the autoencoder (`synfundus train-vae`)."""

    data: str | None = None
    """Set of images (written by `prepare`)."""
    run_dir: str | None = None
    """Folder of the run."""
    init_from: str | None = None
    """Folder of a diffusers AutoencoderKL or AutoencoderDC to start from; its architecture replaces `autoencoder`."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """Architecture."""
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    """Objective."""
    loop: LoopConfig = LoopConfig()
    """Budget, batch, precision, intervals."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    ema: EmaConfig = EmaConfig()
    """Weight averaging."""

    def identity_document(self) -> dict[str, Any]:
        """Return what of this section belongs to a run's identity."""
        return {
            "init_from": self.init_from,
            "codec": None if self.init_from else self.autoencoder.model_dump(mode="json"),
            "loss": self.loss.model_dump(mode="json"),
            "optim": self.optim.model_dump(mode="json"),
            "ema": self.ema.model_dump(mode="json"),
            "global_batch_size": self.loop.global_batch_size,
            "precision": self.loop.precision,
        }
