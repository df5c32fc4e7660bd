"""The preview grid of a diffusion run: the same seeds and labels each time, so that pictures can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.artifacts.model import ModelSetup, denoiser_latent_shape, generate_images
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.labels.schema import LabelSchema, label_caption
from synfundus.models.unet import ConditionalDenoiser
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.seeding import keyed_normal, keyed_normal_series
from synfundus.stages.run_weights import Weights

PREVIEW_IMAGES = 16
_COLUMNS = 8
_SEED = 0


def preview_labels(schema: LabelSchema) -> list[dict[str, int | None]]:
    """Return sixteen rows of labels: all unknown, then each value of each label, repeated."""
    rows: list[dict[str, int | None]] = [{}]
    for spec in schema.labels:
        rows += [{spec.name: value} for value in range(1 if spec.num_values == 2 else 0, spec.num_values)]
    return [rows[number % len(rows)] for number in range(PREVIEW_IMAGES)]


def preview_images(
    setup: ModelSetup,
    denoiser: ConditionalDenoiser,
    numbers: Sequence[int],
    *,
    settings: SamplerSettings,
    device: torch.device,
) -> list[NDArray[np.uint8]]:
    """Draw some images of the grid, each uint8 ``[h, w, 3]``. Not collective.

    Args:
        setup: Autoencoder and settings; the autoencoder is on the CPU afterwards.
        denoiser: The network.
        numbers: Places in the grid.
        settings: Sampler, steps, guidance.
        device: Where to compute; the network is there.
    """
    rows = preview_labels(setup.label_schema)
    shape = denoiser_latent_shape(denoiser)
    setup.autoencoder.to(device)
    images = generate_images(
        setup,
        denoiser,
        initial_noise=keyed_normal(_SEED, "preview", numbers, shape),
        step_noise=keyed_normal_series(_SEED, "preview-noise", numbers, shape),
        states=np.array([setup.label_schema.encode(rows[number]) for number in numbers], dtype=np.int64),
        settings=settings,
        device=device,
    )
    setup.autoencoder.cpu()
    return list(images)


def draw_preview(schema: LabelSchema, images: Mapping[Weights, Sequence[NDArray[np.uint8]]], *, title: str) -> bytes:
    """Draw a grid for each network, one below the other, and return them as PNG.

    Args:
        schema: Labels.
        images: The images of a grid by the name of its weights, top to bottom.
        title: Goes before each name.
    """
    sheets = [
        contact_sheet(
            grid,
            captions=[label_caption(row) for row in preview_labels(schema)],
            columns=_COLUMNS,
            tile_px=grid[0].shape[0],
            title=f"{title}, {name} weights",
        )
        for name, grid in images.items()
    ]
    return encode_png(np.concatenate(sheets), text={"synthetic": "yes"}, compress_level=6)
