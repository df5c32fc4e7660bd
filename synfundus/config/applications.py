"""Options of the verbs that use a model: disease modelling, editing, data augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from synfundus.config.base import NonNegativeInt, PositiveInt, Section

Values = Annotated[int | str, Field(union_mode="left_to_right")]


class ProgressConfig(Section):
    """One eye as a disease advances (`synfundus progress`)."""

    model: str | None = None
    """Run of `train`, or an exported pipeline folder."""
    out: str | None = None
    """Folder to write."""
    label: dict[str, Values] = {}  # noqa: RUF012 - pydantic copies defaults
    """Labels, by number or name: FIRST..LAST of what changes (dr_grade: 0..4), one value of what stays (eye_side:
    left). The others are unknown."""
    frames: Annotated[int, Field(ge=2, le=64)] = 9
    """Pictures from the first values to the last."""
    index: NonNegativeInt = 0
    """The first eye: its noise is that of the image of this number in `sample` with the same seed."""
    num_eyes: PositiveInt = 1
    """Eyes to show, of this and the following numbers."""
    judge: str | None = None
    """Folder written by `judge`: what its judge reads in each frame."""
    gif: bool = False
    """Also an animated GIF, which has 256 colours."""


class EditConfig(Section):
    """A photograph as another disease stage would look (`synfundus edit`)."""

    model: str | None = None
    """Run of `train`, or an exported pipeline folder."""
    image: str | None = None
    """Photograph, or generated image; cropped and resized as `prepare` does it."""
    out: str | None = None
    """Folder to write."""
    label: dict[str, Values] = {}  # noqa: RUF012 - pydantic copies defaults
    """Labels to give it, by number or name: one value (dr_grade: 3), or FIRST..LAST for several frames."""
    known: dict[str, Values] = {}  # noqa: RUF012
    """Labels that the photograph has, by number or name; they stay where label does not change them. The others are
    unknown."""
    method: Literal["inversion", "sdedit"] = "inversion"
    """inversion: the noise is sought that the model would have drawn the photograph from, which keeps more of it;
    sdedit: noise is added, and taken away again by the model's sampler under the new labels."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    """How far towards noise: more changes more, and keeps less of the eye; at 1 sdedit keeps nothing."""
    num_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Solver steps, each way."""
    frames: Annotated[int, Field(ge=2, le=64)] = 9
    """Pictures from the first values to the last."""
    judge: str | None = None
    """Folder written by `judge`: what its judge reads in each picture."""
    gif: bool = False
    """With several frames also an animated GIF, which has 256 colours."""

    @field_validator("strength", mode="before")
    @classmethod
    def _not_zero(cls, value: object) -> object:
        if str(value).strip() in ("0", "0.0"):
            raise ValueError("must be above 0: without noise nothing can change, only the autoencoder's loss is left")
        return value


class AugmentConfig(Section):
    """Photographs and generated images as one training set (`synfundus augment`)."""

    real: str | None = None
    """Image set (written by `prepare`); its val and test split stay as they are."""
    model: str | None = None
    """Run of `train`, or an exported pipeline folder."""
    out: str | None = None
    """Folder to write."""
    fill: dict[str, PositiveInt] = {}  # noqa: RUF012 - pydantic copies defaults
    """How many images every value of a label shall have in the train split, photographs and generated ones together
    (dr_grade: 500)."""
    balance: tuple[str, ...] = ()
    """Labels of which every value shall have as many images as the most frequent one has photographs."""
    matched: bool = False
    """Draw as many images of every value of these labels, common ones too: being generated then tells nothing of the
    label, which a classifier could otherwise learn instead."""
    all_labels: bool = False
    """Give generated images all labels that they were asked for; else only those of fill and balance, the others being
    unknown: a finding that the model does not show would be a wrong label."""
    format: Literal["imagefolder", "shards"] = "imagefolder"
    """Single files with a metadata.csv in each split, as Hugging Face's imagefolder expects them, or a set of
    shards."""
    unchecked: bool = False
    """Take generated images that nobody has looked at; else each is looked at, drawn again if it fails, and left out if
    it still does."""
    check_redraws: NonNegativeInt = 3
    """How often an image that failed is drawn again, from other noise."""
    judge: str | None = None
    """Folder written by `judge`: leave out images whose labels its judge contradicts, too."""
