"""Options both trainings share, and those of the autoencoder (`train-vae`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from synfundus.config.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

Precision = Literal["auto", "bf16", "fp32"]


LrSchedule = Literal["cosine", "constant", "wsd"]


class OptimConfig(Section):
    """AdamW and its learning-rate schedule, counted in images."""

    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    schedule: LrSchedule = "cosine"
    """Shape after the warm-up. wsd (warm-up, stable, decay; arXiv 2404.06395) stays at the peak up to the last part of
    the budget: a budget raised before that part begins lifts no rate, while a cosine is drawn anew."""
    warmup_images: NonNegativeInt = 10_000
    """Images of the linear warm-up from 0."""
    min_lr_ratio: Fraction = 0.01
    """cosine and wsd end at this fraction of the peak."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Part of the budget, at its end, in which wsd decays."""
    beta1: Fraction = 0.9
    """Decay of the first moment."""
    beta2: Fraction = 0.99
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradient clipping by the norm over all that is trained (a discriminator hardly counts); 0 turns it off."""


class EmaConfig(Section):
    """Exponential moving average of the fp32 master weights (ADR-0007)."""

    half_life_images: PositiveFloat = 500_000.0
    """Half-life of the average, in images."""
    rampup_ratio: PositiveFloat = 0.05
    """Early in training the half-life is at most this fraction of the images seen (EDM, arXiv 2206.00364)."""


class LoopConfig(Section):
    """Options of the training loop, shared by both trainings."""

    budget_images: PositiveInt = 20_000_000
    """Images to train on, epochs included."""
    global_batch_size: PositiveInt = 256
    """Images per optimizer step over all ranks."""
    micro_batch_size: PositiveInt | Literal["auto"] = 32
    """Maximum images per rank and forward pass, which sets accumulation; auto: as many as fit, measured at start."""
    precision: Precision = "auto"
    """bf16: bf16 weights with fp32 master weights; fp32: all in fp32; auto: bf16 if the device supports it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool | Literal["auto"] = False
    """Compile the repeated blocks (torch.compile): the first step takes minutes, which `watchdog_s` must allow; auto:
    on a GPU, if the compiler works there."""
    tf32: bool = True
    """On a GPU, use TF32 tensor cores (10 bits of mantissa) for fp32; no effect on a CPU."""
    deterministic: bool = False
    """On a GPU, use only deterministic kernels, which are slower; those of a CPU always are."""
    channels_last: bool | Literal["auto"] = True
    """NHWC memory layout for convolutions; auto: if it is faster, measured at start."""
    prefetch_batches: NonNegativeInt = 4
    """Global batches to prepare ahead; 0 without workers: read in the step."""
    prefetch_max_bytes: PositiveInt = 2**30
    """Maximum bytes of batches prepared ahead, per rank; one batch (two per worker) is always allowed."""
    workers: NonNegativeInt = 0
    """Worker processes per rank that read and draw; 0: a background thread."""
    worker_stall_s: PositiveFloat = 600.0
    """The run ends when a worker delivers nothing for this long, and names the worker."""
    checkpoint_every_images: PositiveInt = 500_000
    """Images between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """Number of checkpoints to keep, at least 2."""
    async_checkpoints: bool = True
    """Only copy the state in the step; gather, hash, write and commit in the background."""
    watchdog_s: NonNegativeFloat = 900.0
    """A step, wait or save that takes longer (start, export: 10 x) prints stacks, ends all ranks with 75; 0: off."""
    log_every_images: PositiveInt = 10_000
    """Images between lines of metrics.jsonl."""
    preview_every_images: NonNegativeInt = 500_000
    """Images between preview grids; 0: none. `train` shares their images out over the ranks."""
    validate_every_images: NonNegativeInt = 1_000_000
    """Images between validations on the val split; 0: only at the end. `train` shares them out over the ranks."""
    validation_images: PositiveInt = 1024
    """Maximum number of images in a validation."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """When a loss or gradient is not finite; rewind: weights of the last checkpoint, but no image is seen again."""
    on_spike: Literal["off", "stop", "skip", "rewind"] = "off"
    """When the loss spikes."""
    spike_factor: Annotated[float, Field(gt=1.0)] = 4.0
    """A loss above this multiple of the median of the last steps is a spike."""
    spike_window_steps: Annotated[int, Field(ge=2)] = 100
    """Number of last steps for this median."""
    max_rewinds: NonNegativeInt = 3
    """Rewinds to the same checkpoint before the run stops."""
    max_bad_fraction: Fraction = 0.001
    """The run stops when more than this fraction of the samples is quarantined."""
    num_threads: NonNegativeInt = 0
    """CPU threads per rank; 0: the cores of the node divided among its ranks."""
    profile_steps: NonNegativeInt = 0
    """Steps of rank 0 to record soon after each start, with torch.profiler, in `profile/` of the run; 0: none."""


_CHANGEABLE = {
    *("budget_images", "checkpoint_every_images", "keep_checkpoints", "log_every_images", "preview_every_images"),
    *("validate_every_images", "validation_images", "on_nonfinite", "on_spike", "spike_factor", "spike_window_steps"),
    *("max_rewinds", "max_bad_fraction"),
}
"""Options of the loop that a run resumed with other values records; the rest belongs to its identity or the machine."""


def changeable(loop: LoopConfig, optim: OptimConfig, ema: EmaConfig) -> dict[str, dict[str, Any]]:
    """Return the values by section that may be others when a run is resumed."""
    return {
        "optim": optim.model_dump(mode="json"),
        "ema": ema.model_dump(mode="json", exclude={"sigma_rel"}),
        "loop": loop.model_dump(mode="json", include=_CHANGEABLE),
    }


class AutoencoderConfig(Section):
    """Architecture of the autoencoder (diffusers AutoencoderKL)."""

    latent_channels: PositiveInt = 4
    """Channels of the latents."""
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=6)] = (128, 256, 512, 512)
    """Width of each level; the downsampling factor is block_size_px * 2 ** (levels - 1)."""
    block_size_px: Annotated[int, Field(ge=1, le=16)] = 1
    """Above 1, blocks of pixels become channels (space-to-depth): for fast training from scratch on a CPU."""
    layers_per_block: PositiveInt = 2
    """Residual blocks per level."""
    norm_num_groups: PositiveInt = 32
    """Groups of the group norms."""
    mid_block_attention: bool = True
    """Self-attention at the lowest level."""
    linear_path: bool = False
    """Add a closed-form patch-PCA path, for training from scratch; off: a plain AutoencoderKL."""
    linear_path_fit_images: PositiveInt = 512
    """Number of training images to fit the linear path."""


class AutoencoderLossConfig(Section):
    """Terms of the reconstruction objective."""

    l1_weight: NonNegativeFloat = 1.0
    """Weight of the mean absolute error."""
    structural_weight: NonNegativeFloat = 0.25
    """Weight of 1 - SSIM."""
    kl_weight: NonNegativeFloat = 1e-6
    """Weight of the KL divergence from the standard normal, both terms being means over their elements. Published
    autoencoders weigh sums: their number is this one times 3 f^2 / latent channels, so the 1e-6 of f8 with 4 channels,
    and of f16 with 16, is 2.1e-8 here."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the patch discriminator; 0: none."""
    adversarial_start_images: NonNegativeInt = 1_000_000
    """Images before the discriminator joins."""


class TrainVaeConfig(Section):
    """Training of the autoencoder (`synfundus train-vae`)."""

    data: str | None = None
    """Image set (written by `prepare`)."""
    run_dir: str | None = None
    """Folder of the run."""
    init_from: str | None = None
    """Folder of a diffusers AutoencoderKL or AutoencoderDC to start from; its architecture replaces `autoencoder`.
    `drawn`: the weights shipped with the package, trained on drawn eyes alone, which must fit `autoencoder`."""
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
