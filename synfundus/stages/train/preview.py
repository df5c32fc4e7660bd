"""The preview grid of a diffusion run: the same seeds and labels each time, so that pictures can be compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from synfundus.artifacts.model import ModelSetup, generate_images
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.labels.schema import LabelSchema, label_caption
from synfundus.models.unet import ConditionalDenoiser
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.seeding import keyed_normal

_COLUMNS = 8
_SEED = 0


def preview_labels(schema: LabelSchema) -> list[dict[str, int | None]]:
    """Return sixteen rows of labels: all unknown, then each value of each label, repeated."""
    rows: list[dict[str, int | None]] = [{}]
    for spec in schema.labels:
        rows += [{spec.name: value} for value in range(1 if spec.num_values == 2 else 0, spec.num_values)]
    return [rows[number % len(rows)] for number in range(2 * _COLUMNS)]


def draw_preview(
    setup: ModelSetup,
    *,
    denoisers: Mapping[str, ConditionalDenoiser],
    settings: SamplerSettings,
    latent_shape: tuple[int, int, int],
    title: str,
    device: torch.device,
) -> bytes:
    """Draw a grid from each network, one below the other, and return them as PNG; all are on the CPU afterwards.

    Args:
        setup: Autoencoder and settings.
        denoisers: Networks by the name of their weights, top to bottom.
        settings: Sampler, steps, guidance.
        latent_shape: ``(c, lh, lw)``.
        title: Goes before each name.
        device: Where to compute.
    """
    rows = preview_labels(setup.label_schema)
    states = np.array([setup.label_schema.encode(row) for row in rows], dtype=np.int64)
    setup.autoencoder.to(device)
    sheets = []
    for name, denoiser in denoisers.items():
        images = generate_images(
            setup,
            denoiser.to(device),
            initial_noise=keyed_normal(_SEED, "preview", range(len(rows)), latent_shape),
            states=states,
            settings=settings,
            device=device,
        )
        denoiser.cpu()
        sheets.append(
            contact_sheet(
                list(images),
                captions=[label_caption(row) for row in rows],
                columns=_COLUMNS,
                tile_px=images.shape[1],
                title=f"{title}, {name}",
            )
        )
    setup.autoencoder.cpu()
    return encode_png(np.concatenate(sheets), text={"synthetic": "yes"}, compress_level=6)
