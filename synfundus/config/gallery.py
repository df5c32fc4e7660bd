"""Options of `gallery`."""

from __future__ import annotations

from synfundus.config.base import ImageSizePx, NonNegativeInt, Section


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
