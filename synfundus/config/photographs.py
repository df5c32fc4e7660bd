"""Options of `phantoms`, `prepare` and `inspect`."""

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
    """Width and height of the photographs, in pixels."""
    variety: Literal["demo", "wide"] = "demo"
    """demo: clear and alike; wide: colours, haze, vessels, sharpness and fields of many clinics and cameras."""
    workers: NonNegativeInt = 2
    """Worker processes that draw; 0: the main process."""


class PrepareConfig(Section):
    """From photographs and a label table to de-identified shards (`synfundus prepare`)."""

    source: str | None = None
    """Folder of photographs (JPEG, PNG, TIFF, WebP)."""
    labels: str | None = None
    """Label table, CSV."""
    mapping: str | None = None
    """YAML that maps columns to labels; default: columns have the names of the labels."""
    label_schema: str | None = None
    """YAML list of labels; default: the fifteen annotations of SynFundus-1M plus the eye side."""
    out: str | None = None
    """Folder of the image set to write."""
    crosswalk: str | None = None
    """Folder for the map from keys to source names, outside the set; default: in
    `synfundus-crosswalks`, a folder up from the one that holds the set."""
    image_size_px: ImageSizePx = 512
    """Width and height of the images in the set, in pixels."""
    splits: tuple[Fraction, Fraction, Fraction] = (0.8, 0.1, 0.1)
    """Fractions of patients in train, val and test; must sum to 1."""
    workers: NonNegativeInt = 2
    """Worker processes that decode and crop; 0: the main process."""
    image_format: Literal["png", "webp"] = "png"
    """Format of the stored images (both lossless)."""
    shard_max_samples: PositiveInt = 10_000
    """Maximum number of samples in a shard."""
    shard_max_bytes: PositiveInt = 256 * 2**20
    """Maximum size of a shard, estimated from the image size."""
    max_pixels: PositiveInt = 120_000_000
    """Reject photographs with more pixels, before decoding."""
    importer: str | None = None
    """Importer for the table of a known data set, e.g. eyepacs; default: none (`mapping` applies)."""
    name_sides: bool = False
    """Take the eye side from the file name where that is doubtful: in EyePACS it is wrong in about a third."""
    near_duplicates: bool = True
    """Keep near-duplicate photographs, and their patients, in one split."""
    compare_with: tuple[str, ...] = ()
    """Other image sets: near-duplicates of their photographs get the same split as there, and are reported."""
    burned_text: Literal["flag", "quarantine", "off"] = "flag"
    """Text inside the field of view: flag it in the report, quarantine the image, or do not search."""
    photograph_limit_s: PositiveFloat = 600.0
    """Maximum time of a worker for one photograph, which is tried twice and then rejected."""

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


class ForgetConfig(Section):
    """Sets without the photographs of a patient who has withdrawn (`synfundus forget`)."""

    crosswalk: str | None = None
    """Crosswalk of the image set."""
    patient: str | None = None
    """The patient, as in the label table; where it has no patients, the file name of a photograph."""
    data: str | None = None
    """Image set; default: the one the crosswalk belongs to."""
    latents: tuple[str, ...] = ()
    """Latent sets encoded from it."""
    model: tuple[str, ...] = ()
    """Runs and exported models: those trained on these sets are named."""
    out: str | None = None
    """Folder for the new sets: `images`, `latents`, `latents-2` ..."""


class InspectConfig(Section):
    """Contents of a shard set (`synfundus inspect`)."""

    data: str | None = None
    """Image set, latent set or sample set."""
    out: str | None = None
    """Folder for inspect.json and the contact sheet; default: neither is written."""
    verify: bool = False
    """Read every byte and check every hash."""
    contact_sheet_images: NonNegativeInt = 64
    """Images on the contact sheet; 0: none."""
