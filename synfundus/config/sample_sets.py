"""Options of the verbs around a set of generated images: which labels, looking, checking, handing on."""

from __future__ import annotations

from synfundus.config.base import Fraction, ImageSizePx, NonNegativeInt, PositiveInt, Section
from synfundus.config.generation import LabelValue


class PlanLabelsConfig(Section):
    """Which labels to generate images for (`synfundus plan-labels`)."""

    source: str | None = None
    """Image set or latent set, of which the train split counts, or a CSV of label rows."""
    out: str | None = None
    """Label plan to write, a CSV."""
    num_images: PositiveInt | None = None
    """Number of rows; default with a CSV: its rows as they are, only marked."""
    balance: tuple[str, ...] = ()
    """Labels of which every value that occurs shall be equally frequent; with fill_to the labels to fill."""
    fill_to: PositiveInt | None = None
    """Plan as many rows as every value of these labels (default: all) lacks, real and planned rows together."""
    joint: bool = False
    """Labels together as the photographs have them; this is the default."""
    independent: bool = False
    """Each label by itself, as frequent as it is: combinations may be new."""
    unreadable: Fraction | None = None
    """Fraction of unreadable images (is_fundus 0), with the labels of real ones; the others are as asked for.
    Default: as in the set."""
    where: dict[str, LabelValue] = {}  # noqa: RUF012 - pydantic copies defaults
    """Draw only from rows with these labels, by number or name."""
    seen_in: str | None = None
    """Image set or latent set of the training, with which the rows are compared; default: the set they are from."""


class GalleryConfig(Section):
    """A page on which to look through a set (`synfundus gallery`)."""

    samples: str | None = None
    """Images to show: a folder written by `sample`."""
    real: str | None = None
    """Image set (written by `prepare`) to show beside them."""
    out: str | None = None
    """Folder of the gallery to write."""
    full_images: bool = False
    """Copy every image as it is, too; without, the largest view of an image is ``zoom_px`` wide."""
    zoom_px: ImageSizePx = 256
    """Width and height of the largest view, in pixels: of the image, where that is smaller, in steps of 16."""
    workers: NonNegativeInt = 2
    """Worker processes that read and shrink images; 0: the main process."""


class ExportDicomConfig(Section):
    """Generated images as DICOM files (`synfundus export-dicom`)."""

    samples: str | None = None
    """Set of generated images (written by `sample`)."""
    out: str | None = None
    """Folder to write."""
    workers: NonNegativeInt = 2
    """Worker processes that encode; 0: the main process."""


class VerifyConfig(Section):
    """Drawing some images of a set again (`synfundus verify`)."""

    samples: str | None = None
    """Set of generated images (written by `sample`)."""
    model: str | None = None
    """The model that drew them: a run of `train`, or an exported pipeline folder."""
    guide_model: str | None = None
    """The weaker model that they were led away from, if there was one: RUN@IMAGES, or an exported folder."""
    num_images: PositiveInt = 16
    """Images to draw again, a random choice by the seed; each costs its whole batch."""
