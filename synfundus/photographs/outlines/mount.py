"""Find the mount of a slide, and how far from its colour each pixel is."""

from __future__ import annotations

import numpy as np

from synfundus.photographs.rim import Floats

_BLACK = 10.0  # of 255: darker is no mount
_AREA = 0.03  # share of the picture: minimum area of a mount that does not fill the corners
_CORNERS_ALIKE = 6.0  # levels between the corners of a picture that are its mount


def distance_to_mount(channels: Floats, lightness: Floats) -> Floats:
    """Return the distance of each pixel from the colour of a slide mount ``[h, w]``; zeros if there is no mount.

    An underexposed retina can be darker than the mount around it. In the channel in which the middle of the picture
    differs most from the mount, the distance from the mount shows it as a disc on black. The mount is what the corners
    have in common, or else the most frequent flat grey near them.

    Args:
        channels: Red, green, blue ``[3, h, w]``, 0-255.
        lightness: The brightest of them ``[h, w]``.
    """
    height, width = lightness.shape
    y, x = np.ogrid[:height, :width]
    off_middle = np.hypot(x + 0.5 - width / 2, y + 0.5 - height / 2) / min(height, width)
    corners = np.stack([channels[:, row, column] for row in (1, -2) for column in (1, -2)])
    colour = np.median(corners, axis=0)
    if np.abs(corners - colour).max() < _CORNERS_ALIKE and colour.max() > _BLACK:
        on_mount = np.abs(channels - colour[:, None, None]).max(axis=0) < _CORNERS_ALIKE
    else:
        flat = np.abs(np.diff(lightness, axis=1, append=0.0)) + np.abs(np.diff(lightness, axis=0, append=0.0)) < 4.0
        flat &= off_middle > 0.48
        counts = np.bincount(np.rint(lightness[flat]).astype(int), minlength=256).astype(np.float64)
        counts[: int(_BLACK)] = 0.0  # black is not a mount
        mount = int(np.convolve(counts, np.ones(3), mode="same").argmax())
        on_mount = flat & (np.abs(lightness - mount) < 2.0)
        if on_mount.mean() < _AREA:
            return np.zeros_like(lightness)
    difference = channels - np.median(channels[:, on_mount], axis=1)[:, None, None]
    separation = np.median(difference[:, off_middle < 0.3], axis=1)
    channel = int(np.abs(separation).argmax())
    return np.asarray(np.maximum(np.sign(separation[channel]) * difference[channel], 0.0))
