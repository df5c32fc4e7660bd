"""Options of the diffusion model (`train`): network, objective, averages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from synfundus.config.base import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section
from synfundus.config.training import EmaConfig, LoopConfig, OptimConfig


class FlowConfig(Section):
    """Times of flow matching (`train.diffusion.prediction_type=flow_velocity`): 0 is the image, 1 is noise."""

    time_density: Literal["logit_normal", "uniform"] = "logit_normal"
    """Distribution of training times: most in the middle, or uniform (arXiv 2403.03206, Sec. 3.1)."""
    location: Annotated[float, Field(ge=-10.0, le=10.0)] = 0.0
    """Mean of the logit of a logit-normal time; above 0 means more noise."""
    scale: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Standard deviation of that logit."""
    shift: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Shifts training and sampling times towards noise, for larger images (arXiv 2403.03206, Eq. 23); usually 1-3."""

    @model_validator(mode="after")
    def _of_the_density(self) -> FlowConfig:
        odd = _changed(self, ("location", "scale")) if self.time_density == "uniform" else []
        if odd:
            raise ValueError(f"no meaning with time_density uniform: {', '.join(odd)}; leave it out")
        return self


OF_SCHEDULES = ("beta_schedule", "beta_start", "beta_end", "zero_terminal_snr", "min_snr_gamma")
"""Fields of the noise schedule, which a flow does not have."""


class DiffusionConfig(Section):
    """Objective, noise schedule or flow, and guidance drop."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Length of the discrete schedule; for a flow, the timestep the network is given at time 1."""
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    """Shape of the noise schedule."""
    beta_start: Fraction = 0.00085
    """First beta of the linear schedules."""
    beta_end: Fraction = 0.012
    """Last beta of the linear schedules."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last step is pure noise (arXiv 2305.08891); needs v_prediction or sample."""
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow_velocity"] = "epsilon"
    """What the network predicts; epsilon is the noise, as in the published system. flow_velocity is flow matching
    (rectified flow): straight paths from image to noise, no noise schedule."""
    flow: FlowConfig = FlowConfig()
    """Times of flow_velocity."""
    latent_scaling: Literal["channel", "global"] = "channel"
    """How latents get unit variance: each channel by its own standard deviation, or all by a common one."""
    min_snr_gamma: PositiveFloat | None = None
    """Min-SNR weighting (arXiv 2303.09556), usually 5; null gives the plain mean squared error."""
    label_drop_prob: Fraction = 0.1
    """Probability that all labels of a sample become unknown (for guidance)."""
    single_label_drop_prob: Fraction = 0.1
    """Probability that a single label becomes unknown, so that any subset of labels can condition."""
    flip: bool = False
    """Use the mirrored moments half of the time (needs a latent set encoded with --flip)."""

    @model_validator(mode="after")
    def _solvable(self) -> DiffusionConfig:
        self._check_flow()
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr cannot be trained with prediction_type epsilon: at the last step the image is pure "
                "noise; use v_prediction or sample"
            )
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        return self

    def _check_flow(self) -> None:
        """Refuse fields that have no effect on the objective.

        Raises:
            ValueError: Names the conflicting keys and the values they need.
        """
        if self.prediction_type != "flow_velocity":
            odd = [f"flow.{name}" for name in _changed(self.flow, tuple(FlowConfig.model_fields))]
            if odd:
                raise ValueError(
                    f"no meaning with prediction_type {self.prediction_type}: {', '.join(odd)}; only flow_velocity has "
                    "times, leave it out"
                )
            return
        odd = _changed(self, OF_SCHEDULES)
        if odd:
            fields = DiffusionConfig.model_fields
            values = " ".join(f"train.diffusion.{name}={_text(fields[name].default)}" for name in odd)
            raise ValueError(
                f"no meaning with prediction_type flow_velocity: {', '.join(odd)}; a flow has no noise schedule and is "
                f"weighted by how its times are drawn (flow.time_density). Set {values}"
            )

    def identity_document(self) -> dict[str, Any]:
        """Return what of this section belongs to a run's identity.

        The `flow` section counts only where it has an effect, so that runs from before it existed can resume.
        """
        without = set() if self.prediction_type == "flow_velocity" else {"flow"}
        return self.model_dump(mode="json", exclude=without)


def _changed(section: Section, names: tuple[str, ...]) -> list[str]:
    """Return the fields that do not have their default."""
    return [name for name in names if getattr(section, name) != type(section).model_fields[name].default]


def _text(value: object) -> str:
    """Write a value as `--set` takes it."""
    return "null" if value is None else str(value).lower()


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


SigmaRel = Annotated[float, Field(gt=0.0, le=0.28)]


class DiffusionEmaConfig(EmaConfig):
    """Averages of the denoiser's weights."""

    sigma_rel: tuple[SigmaRel, ...] = ()
    """Widths of extra power-function averages, for `synfundus ema`; (0.05, 0.1) covers the widths between."""
    snapshot_every_images: NonNegativeInt = 0
    """Images between snapshots of those averages (fp32, one file per width); 0: one at the end."""


class TrainConfig(Section):
    """Training of the diffusion model (`synfundus train`)."""

    latents: tuple[str, ...] = ()
    """Latent set (written by `encode-latents`), or several by weight: `A:0.7`, `B:0.3`; a set without one weighs 1."""
    vae: str | None = None
    """Autoencoder for previews and export; default: the one named in the latent set."""
    run_dir: str | None = None
    """Folder of the run."""
    init_from: str | None = None
    """Weights to start from: an exported model, `drawn`, or a diffusers U-Net, whose architecture replaces `unet`."""
    unet: UNetConfig = UNetConfig()
    """Architecture of the denoiser."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Objective."""
    loop: LoopConfig = LoopConfig()
    """Budget, batch, precision, intervals."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    ema: DiffusionEmaConfig = DiffusionEmaConfig()
    """Weight averaging."""

    @field_validator("latents", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value

    def identity_document(self) -> dict[str, Any]:
        """Return what of this section belongs to a run's identity; the network is added by its start."""
        ema = self.ema.model_dump(mode="json", exclude={"snapshot_every_images"})
        if not self.ema.sigma_rel:  # as in runs from before it existed
            del ema["sigma_rel"]
        return {
            "diffusion": self.diffusion.identity_document(),
            "optim": self.optim.model_dump(mode="json"),
            "ema": ema,
            "global_batch_size": self.loop.global_batch_size,
            "precision": self.loop.precision,
        }
