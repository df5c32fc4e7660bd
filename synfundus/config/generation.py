"""Options of the verbs that read or write latents, models and images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from synfundus.config.base import (
    CHECKPOINT,
    NAME_OF_VALUE,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Section,
)
from synfundus.config.diffusion import SigmaRel
from synfundus.config.training import Precision


class EncodeLatentsConfig(Section):
    """The separate pass that stores posterior moments (`synfundus encode-latents`)."""

    data: str | None = None
    """Image set (written by `prepare`)."""
    vae: str | None = None
    """Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."""
    out: str | None = None
    """Folder of the latent set to write."""
    flip: bool = False
    """Also store the moments of the mirrored image (training then flips image and eye side together)."""
    batch_size: PositiveInt = 32
    """Images per forward pass."""
    precision: Precision = "fp32"
    """Precision of the encoder (auto as in train.loop.precision); moments are always stored in fp16."""
    tf32: bool = False
    """On a GPU, use TF32 tensor cores (10 bits of mantissa) for fp32, several times as fast by their data sheets:
    compare what `verify-latents` says of a small set with and without."""
    max_bad_fraction: Fraction = 0.001
    """Fail when more than this fraction of the images is unusable."""


class VerifyLatentsConfig(Section):
    """Checking a latent set against its images (`synfundus verify-latents`)."""

    latents: str | None = None
    """Latent set (written by `encode-latents`)."""
    vae: str | None = None
    """Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."""
    data: str | None = None
    """Image set the latents were encoded from; default: the one named in the latent set."""
    num_samples: PositiveInt = 64
    """Number of latents to decode."""
    min_psnr_db: NonNegativeFloat = 20.0
    """Fails below this PSNR."""


LabelName = Annotated[str, Field(pattern=NAME_OF_VALUE)]
LabelValue = Annotated[int | LabelName | None, Field(union_mode="left_to_right")]
"""A value of a label by number or by name; None is unknown."""

SAMPLING_DEFAULTS: dict[str, Any] = {
    "sampler": "dpmpp",
    "num_steps": 30,
    "guidance_scale": 2.0,
    "guidance_rescale": 0.0,
    "guidance_interval": (0.0, 1.0),
    "guidance_weight": {},
    "negative_label": {},
    "decode_tile_px": 0,
}
"""How images are drawn where neither the configuration nor the model says it."""


class SampleConfig(Section):
    """Generating images (`synfundus sample`)."""

    model: str | None = None
    """Run of `train`, or an exported pipeline folder."""
    out: str | None = None
    """Folder to write."""
    num_images: PositiveInt | None = None
    """Number of images; default with a label plan: one per row."""
    label: dict[str, LabelValue] = {}  # noqa: RUF012 - pydantic copies defaults
    """Labels of every image, by number or name (dr_grade: severe); the others are unknown."""
    labels: str | None = None
    """Label plan: a CSV with one row per image."""
    allow_unseen: bool = False
    """Also draw labels that no photograph of the training has."""
    sampler: Literal["ddim", "dpmpp", "dpmpp_sde", "unipc", "euler", "heun"] | None = None
    """Solver; dpmpp_sde adds noise at each step; default: as the model recommends (the values its run was given), else
    dpmpp."""
    num_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Solver steps; default: as the model recommends, else 30."""
    guidance_scale: NonNegativeFloat | None = None
    """Classifier-free guidance; 1 turns it off; default: as the model recommends, else 2."""
    guidance_rescale: Fraction | None = None
    """How far the guided prediction is rescaled to the standard deviation of the conditional one (arXiv 2305.08891);
    default: as the model recommends, else 0."""
    guidance_interval: tuple[Fraction, Fraction] | None = None
    """Part of the timesteps with guidance, 0 being pure noise and 1 the image; (0.2, 0.8) of 1000 are the timesteps 799
    to 200. How many steps that are depends on the sampler's spacing; the paper counts in sigma (arXiv 2404.07724).
    Default: as the model recommends, else all."""
    guidance_weight: dict[str, NonNegativeFloat] = {}  # noqa: RUF012
    """Guidance of single labels in place of the scale (dr_grade: 3); each costs a further pass of the network in guided
    steps. Default: as the model recommends, else the scale for all."""
    negative_label: dict[str, LabelValue] = {}  # noqa: RUF012
    """Labels that guidance leads away from, by number or name (is_pm: yes); default: as the model recommends, else from
    images of unknown labels."""
    guide_model: str | None = None
    """A weaker model to lead away from instead (autoguidance, arXiv 2406.02507): RUN@IMAGES for a run at the checkpoint
    of that number of images, or an exported folder; trained on the same latents."""
    batch_size: PositiveInt = 16
    """Images per forward pass of a GPU, whose rounding depends on it; a CPU always takes 16."""
    format: Literal["png", "shards"] = "png"
    """PNG files or a shard set."""
    layout: Literal["imagefolder", "synfundus-1m"] = "imagefolder"
    """How PNG files lie in the folder: images/00000000.png, or as in SynFundus-1M, with its table of conditions."""
    precision: Precision = "fp32"
    """Precision of the denoiser (auto as in train.loop.precision)."""
    decode_tile_px: NonNegativeInt | None = None
    """Decode in overlapping tiles of this edge where the memory is too small for the decoder of large images. It sees a
    part of the image at a time, which moves pixels by some grey levels. Default: as the model recommends, else 0: in
    one piece."""
    compile: bool = False
    """Compile the repeated blocks of the denoiser (torch.compile): the first batch takes minutes, and values may differ
    from those without in the last bits."""
    contact_sheet_images: NonNegativeInt = 64
    """Images on the contact sheet; 0: none."""
    check: bool = False
    """Look at every image: field of view, light, sharpness, one optic disc on the side asked for."""
    check_redraws: NonNegativeInt = 3
    """How often an image that failed is drawn again, from other noise; those that still fail are named."""
    judge: str | None = None
    """Also compare with the labels asked for: folder written by `judge`, whose judge knows what it can tell."""

    @model_validator(mode="after")
    def _files(self) -> SampleConfig:
        if self.judge is not None and not self.check:
            raise ValueError("judge looks at images only with check: give --check too")
        if self.format == "shards" and self.layout != "imagefolder":
            raise ValueError(f"layout {self.layout} is one of PNG files: leave format=shards out")
        return self

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"guidance_interval {value} must rise")
        return value


class PostHocEmaConfig(Section):
    """Weight averages of any length after training (`synfundus ema`; EDM2, arXiv 2312.02696)."""

    run_dir: str | None = None
    """Run of `train` with snapshots."""
    sigma_rel: SigmaRel | None = None
    """Width of the average, relative to the length of the run."""
    at_images: PositiveInt | None = None
    """End of the average, in images; default: the last snapshot."""
    out: str | None = None
    """Folder for the model; default: inside the run."""

    @field_validator("sigma_rel", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        if isinstance(value, list) or (isinstance(value, str) and ("," in value or "[" in value)):
            raise ValueError("takes one width; those that training tracks are train.ema.sigma_rel")
        return value


class ExportConfig(Section):
    """Writing the model of a run as a diffusers folder (`synfundus export`)."""

    run_dir: str | None = None
    """Run of `train`."""
    out: str | None = None
    """Folder to write."""
    checkpoint: Annotated[str, Field(pattern=CHECKPOINT)] | None = None
    """Checkpoint to export; default: the finished model, or else the newest checkpoint."""
    weights: Literal["averaged", "raw"] = "averaged"
    """Which weights of a checkpoint to export."""


class JudgeConfig(Section):
    """Label control of generated images (`synfundus judge`)."""

    model: str | None = None
    """Run of `train`, or model folder, to generate images from."""
    samples: str | None = None
    """Images to judge instead: a folder written by `sample`."""
    data: str | None = None
    """Image set (written by `prepare`); the judge learns from its photographs."""
    out: str | None = None
    """Folder for judge.json, and the images of ``model``."""
    num_images: PositiveInt = 320
    """Number of images to generate from ``model``, for label rows of held-out photographs."""


class DemoConfig(Section):
    """The whole chain in minutes (`synfundus demo`)."""

    out: str | None = None
    """Folder for all results of the demo."""
    minutes: Annotated[float, Field(ge=0.05, le=10_000)] = 7.0
    """Approximate time on two idle cores; scales images, budgets and samples."""
    fit_to_machine: bool = True
    """Time a few training steps first and enlarge the budgets on a fast machine; they are never reduced."""
    source: str | None = None
    """Folder of your own photographs instead of phantoms."""
    labels: str | None = None
    """Label table of these photographs."""
    mapping: str | None = None
    """Mapping YAML of this table."""
    importer: str | None = None
    """Importer for a known data set, as of `prepare`; some need no label table."""
    source_latent_channels: PositiveInt | None = None
    """With ``source``, in place of train_vae.autoencoder.latent_channels: real vessels are fainter than drawn ones."""
    starting_weights: bool = True
    """With ``source``, start the autoencoder from the shipped weights of drawn eyes, if they fit its architecture."""
    num_generated: PositiveInt = 320
    """Images generated for the label-control test."""
