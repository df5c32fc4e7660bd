"""The preview grid of a diffusion run: the same seeds and labels each time, so that pictures can be compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from synfundus.config.schema import RunConfig
from synfundus.jobs import build
from synfundus.jobs.generation import generate_images
from synfundus.labels.captions import label_caption
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentCodec
from synfundus.models.unet import ConditionalDenoiser
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.seeding import keyed_normal
from synfundus.storage.manifest import ShardSet

_COLUMNS = 8
_SEED = 0


def preview_labels(schema: LabelSchema) -> list[dict[str, int | None]]:
    """Return sixteen rows of labels: nothing known, then every value of every label in turn, then again."""
    rows: list[dict[str, int | None]] = [{}]
    for spec in schema.labels:
        rows += [{spec.name: value} for value in range(1 if spec.num_values == 2 else 0, spec.num_values)]
    return [rows[number % len(rows)] for number in range(2 * _COLUMNS)]


def draw_preview(
    config: RunConfig,
    *,
    denoisers: Mapping[str, ConditionalDenoiser],
    codec: LatentCodec,
    latents: ShardSet,
    latent_shape: tuple[int, int, int],
    title: str,
    device: torch.device,
) -> bytes:
    """Draw a grid from each network, one below the other, and return them as PNG; all are on the CPU afterwards.

    Args:
        config: The run's.
        denoisers: Networks by the name of their weights, top to bottom.
        codec: Turns latents into images.
        latents: The set trained on: its labels and statistics.
        latent_shape: ``(c, lh, lw)``.
        title: Goes before each name.
        device: Where to compute.
    """
    rows = preview_labels(latents.label_schema)
    states = np.array([latents.label_schema.encode(row) for row in rows], dtype=np.int64)
    mean, std = build.latent_statistics(config, latents.properties)
    sheets = []
    for name, denoiser in denoisers.items():
        images = generate_images(
            denoiser=denoiser.to(device),
            codec=codec.to(device),
            schedule_settings=build.schedule_settings(config),
            latent_mean=mean,
            latent_std=std,
            initial_noise=keyed_normal(_SEED, "preview", range(len(rows)), latent_shape),
            states=states,
            settings=config.sample,
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
    codec.cpu()
    return encode_png(np.concatenate(sheets), text={"synthetic": "yes"}, compress_level=6)
