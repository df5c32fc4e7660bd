"""Options of what makes, prepares and shows photographs: `phantoms`, `prepare`, `inspect`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from synfundus.config.base import Fraction, ImageSizePx, NonNegativeInt, PositiveFloat, PositiveInt, Section


class PhantomsConfig(Section):
    """Procedural fundus photographs with ground truth (`synfundus phantoms`)."""

    out: str | None = None
    """Folder for the photographs and labels.csv."""
    num_images: PositiveInt = 1000
    """Number of photographs."""
    image_size_px: Annotated[int, Field(ge=64, le=2048)] = 256
    """Edge of the square photographs in pixels."""
    workers: NonNegativeInt = 2
    """Processes that draw; 0 draws in the main process."""


class PrepareConfig(Section):
    """From photographs and a label table to de-identified shards (`synfundus prepare`)."""

    source: str | None = None
    """Folder of photographs (JPEG, PNG, TIFF, WebP)."""
    labels: str | None = None
    """Label table, CSV."""
    mapping: str | None = None
    """YAML that says which column means what; without it columns are named like the labels."""
    label_schema: str | None = None
    """YAML list of labels; without it the fifteen annotations of SynFundus-1M plus the eye side."""
    out: str | None = None
    """Folder of the shard set to write."""
    crosswalk: str | None = None
    """Folder for the map from keys to source names, outside the set; default `<out>.crosswalk`."""
    image_size_px: ImageSizePx = 512
    """Edge of the square images in the set, in pixels."""
    splits: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)
    """Fractions of patients in train, val, test; they sum to 1."""
    workers: NonNegativeInt = 2
    """Processes that decode and crop; 0 works in the main process."""
    image_format: Literal["png", "webp"] = "png"
    """How images are stored (both lossless)."""
    shard_max_samples: PositiveInt = 10_000
    """Most samples in a shard."""
    shard_max_bytes: PositiveInt = 256 * 2**20
    """Most bytes in a shard, by estimate from the image size."""
    max_pixels: PositiveInt = 120_000_000
    """Photographs with more pixels are rejected before they are decoded."""
    importer: str | None = None
    """Known data set whose table to read, e.g. eyepacs; without it columns named like the labels, or `mapping`."""
    near_duplicates: bool = True
    """Keep photographs that look the same in one split, together with their patients."""
    compare_with: tuple[str, ...] = ()
    """Other image sets: photographs that look like one of theirs go into the split it has there, and are reported."""
    burned_text: Literal["flag", "quarantine", "off"] = "flag"
    """Writing inside the disc: flag it in the report, leave the image out, or do not look."""
    photograph_limit_s: PositiveFloat = 600.0
    """Longest time a worker may take for one photograph; it gets a second chance, then it is a named reject."""

    @field_validator("splits", mode="before")
    @classmethod
    def _split_text(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("splits")
    @classmethod
    def _sum_to_one(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(value) - 1.0) > 1e-6 or value[0] <= 0:
            raise ValueError(f"splits {value} must sum to 1 and leave a part for train")
        return value


class InspectConfig(Section):
    """Look into a shard set (`synfundus inspect`)."""

    data: str | None = None
    """Set of images, latents or samples."""
    out: str | None = None
    """Folder for inspect.json and the contact sheet; by default neither is written."""
    verify: bool = False
    """Read every byte and compare every hash."""
    contact_sheet_images: NonNegativeInt = 64
    """Images on the contact sheet; 0 draws none."""
