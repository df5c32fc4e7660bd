"""Latents that no autoencoder has made, so that the golden curves depend on none, and one that stands for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_sets import IMAGE_SIZE_PX, write_set

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.models.autoencoder import build_autoencoder, fingerprint
from synfundus.seeding import keyed_normal, keyed_uniform
from synfundus.shards.reader import encode_npy

LATENT_SHAPE = (4, 8, 8)
SHARDS = {"train": (40,), "val": (8,)}


def write_fixed_latents(folder: Path) -> tuple[Path, Path]:
    """Write both; returns the folders of the latents and of the autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = build_autoencoder(
            image_size_px=IMAGE_SIZE_PX,
            block_size_px=1,
            latent_channels=LATENT_SHAPE[0],
            block_out_channels=[4, 4, 4, 4],
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_attention=False,
            linear_path=False,
        )
    autoencoder.save_pretrained(folder / "vae")
    count = sum(sum(sizes) for sizes in SHARDS.values())
    numbers = range(count)
    means = keyed_normal(11, "golden-latents", numbers, LATENT_SHAPE)
    means += 2.0 * keyed_normal(11, "golden-offsets", numbers, (LATENT_SHAPE[0], 1, 1))
    grades = (keyed_uniform(11, "golden-grades", numbers)[:, 0] * 5).astype(int)
    samples = []
    for number in numbers:
        moments = torch.cat([torch.from_numpy(means[number]), torch.full(LATENT_SHAPE, -4.0)]).half().numpy()
        labels = {"labels": {"dr_grade": int(grades[number])}}
        members = {"moments.npy": encode_npy(moments), "json": json.dumps(labels).encode()}
        samples.append((f"g{number:05d}", members))
    write_set(
        folder / "latents",
        samples,
        shards=SHARDS,
        extensions=("json", "moments.npy"),
        kind="latents",
        schema=DEFAULT_LABEL_SCHEMA,
        properties={
            "autoencoder_fingerprint": fingerprint(folder / "vae"),
            "image_size_px": IMAGE_SIZE_PX,
            "moments_shape": [2 * LATENT_SHAPE[0], *LATENT_SHAPE[1:]],
            "latent_mean": [0.0] * LATENT_SHAPE[0],
            "latent_std": [5.0**0.5] * LATENT_SHAPE[0],
            "flip": False,
        },
    )
    return folder / "latents", folder / "vae"
