"""Options of what reads or writes latents, models and images: encode, verify, sample, ema, export, demo."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from synfundus.config.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, Section
from synfundus.config.diffusion import SigmaRel
from synfundus.config.training import Precision


class EncodeLatentsConfig(Section):
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
    """Arithmetic of the encoder (auto as in train.loop.precision); moments are stored in fp16 either way."""
    max_bad_fraction: Fraction = 0.001
    """No latent set is made when more than this fraction of the images cannot be used."""


class VerifyLatentsConfig(Section):
    """Checking a latent set against its images (`synfundus verify-latents`)."""

    latents: str | None = None
    """Set of latents (written by `encode-latents`)."""
    vae: str | None = None
    """Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."""
    data: str | None = None
    """Set of images the latents were made of; by default the one they name."""
    num_samples: PositiveInt = 64
    """Samples that are decoded."""
    min_psnr_db: NonNegativeFloat = 20.0
    """Fails below this PSNR."""


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
    """Arithmetic of the denoiser (auto as in train.loop.precision)."""
    contact_sheet_images: NonNegativeInt = 64
    """Images on the contact sheet; 0 draws none."""

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"guidance_interval {value} must rise")
        return value


class PostHocEmaConfig(Section):
    """Averages of lengths nobody tracked (`synfundus ema`; EDM2, arXiv 2312.02696)."""

    run_dir: str | None = None
    """Run of `train` with snapshots."""
    sigma_rel: SigmaRel | None = None
    """Width of the average relative to the run's length."""
    at_images: PositiveInt | None = None
    """Time of the average, in images; by default the last snapshot's."""
    out: str | None = None
    """Folder for the model; by default below the run."""

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
    checkpoint: Annotated[str, Field(pattern=r"^images-\d{12}$")] | None = None
    """Checkpoint to make the model of; by default the finished export, or the newest checkpoint where there is none."""
    weights: Literal["averaged", "raw"] = "averaged"
    """Which weights of a checkpoint."""


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
