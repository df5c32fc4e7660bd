"""Options of the verbs that hand generated images on, and check what was handed on."""

from __future__ import annotations

from synfundus.config.base import NonNegativeInt, PositiveInt, Section


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
