"""Options of `synfundus plan-labels`."""

from __future__ import annotations

from synfundus.config.base import Fraction, PositiveInt, Section
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
