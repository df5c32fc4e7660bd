"""Small image sets, latents and run configurations for tests, written through the product's own writers."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from synfundus.config.schema import RunConfig
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema
from synfundus.phantoms.draw import draw_phantom
from synfundus.shards.reader import encode_npy
from synfundus.storage.manifest import SetKind, ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.storage.tarshard import write_shard

IMAGE_SIZE_PX = 64
UNEVEN_SHARDS: Mapping[str, Sequence[int]] = {"train": (31, 17, 24), "val": (7, 5), "test": (12,)}
Sample = tuple[str, dict[str, bytes]]

TINY: dict[str, Any] = {
    "train_vae": {
        "autoencoder": {
            "latent_channels": 4,
            "block_out_channels": [8, 8, 16, 16],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "mid_block_attention": False,
            "linear_path": True,
            "linear_path_fit_images": 64,
        },
        "loop": {
            "budget_images": 96,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "precision": "fp32",
            "checkpoint_every_images": 48,
            "log_every_images": 8,
            "preview_every_images": 0,
            "validation_images": 12,
            "num_threads": 1,
        },
        "optim": {"lr": 1e-3, "warmup_images": 16},
    },
    "encode_latents": {"batch_size": 8},
    "train": {
        "unet": {
            "block_out_channels": [16],  # attention to the labels is in the middle
            "layers_per_block": 1,
            "attention_levels": [False],
            "attention_head_dim": 16,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
        },
        "diffusion": {
            "prediction_type": "v_prediction",
            "beta_schedule": "cosine",
            "zero_terminal_snr": True,
            "min_snr_gamma": None,
        },
        "loop": {
            "budget_images": 400,
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "precision": "fp32",
            "checkpoint_every_images": 80,
            "log_every_images": 8,
            "preview_every_images": 0,
            "validate_every_images": 160,
            "validation_images": 12,
            "num_threads": 1,
        },
        "optim": {"lr": 1e-3, "warmup_images": 32},
        "ema": {"half_life_images": 200},
    },
    "sample": {"num_steps": 2, "guidance_scale": 1.5},
    "launch": {"device": "cpu", "collective_timeout_s": 120},
    "telemetry": {"tensorboard": False, "console": "plain"},
}
"""A run that takes seconds: 64 px images, 8 x 8 latents, a row of metrics for every step."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` laid over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def tiny_config(changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the tiny configuration with changes."""
    return RunConfig.model_validate(merged(TINY, changes or {}))


def write_config(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write the tiny configuration with changes as YAML."""
    path.write_text(yaml.safe_dump(merged(TINY, changes or {})), encoding="utf-8")
    return path


def encode_png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return pixels as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def phantom_samples(count: int, *, seed: int = 7, image_size_px: int = IMAGE_SIZE_PX) -> list[Sample]:
    """Draw labelled phantoms as members of an image set."""
    samples = []
    for index in range(count):
        phantom = draw_phantom(seed=seed, index=index, image_size_px=image_size_px)
        document = json.dumps({"labels": dict(phantom.labels)}).encode()
        samples.append((f"k{seed}-{index:06d}", {"png": encode_png(phantom.pixels), "json": document}))
    return samples


def write_set(
    folder: Path,
    samples: Sequence[Sample],
    *,
    shards: Mapping[str, Sequence[int]],
    extensions: tuple[str, ...] = ("json", "png"),
    kind: SetKind = "images",
    schema: LabelSchema = DEFAULT_LABEL_SCHEMA,
    properties: Mapping[str, Any] | None = None,
) -> ShardSet:
    """Write samples as a shard set with shards of the given sizes."""
    entries = []
    rest = list(samples)
    for split, sizes in shards.items():
        for number, size in enumerate(sizes):
            name = shard_name(split, number)
            files = write_shard(str(folder / name), rest[:size], extensions=extensions)
            entries.append(ShardEntry.of(name, split, files))
            rest = rest[size:]
    assert not rest, "the shards do not hold all samples"
    given = {"image_size_px": IMAGE_SIZE_PX, "crop": "none"} if properties is None else dict(properties)
    return save_shard_set(ShardSet(str(folder), kind, schema, tuple(entries), {}, given))


def write_phantom_set(folder: Path, *, image_size_px: int = IMAGE_SIZE_PX, seed: int = 7) -> ShardSet:
    """Write 96 phantoms in uneven shards."""
    count = sum(sum(sizes) for sizes in UNEVEN_SHARDS.values())
    samples = phantom_samples(count, seed=seed, image_size_px=image_size_px)
    properties = {"image_size_px": image_size_px, "crop": "none"}
    return write_set(folder, samples, shards=UNEVEN_SHARDS, properties=properties)


def moments_of(index: int, shape: tuple[int, int, int] = (4, 2, 2)) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return moments that tell which sample they belong to: every value is the sample's number."""
    return np.full(shape, float(index), dtype=np.float16)


def numbered_samples(count: int, *, flip: bool = False) -> list[Sample]:
    """Return latent samples whose moments are their own number; with ``flip`` the mirrored moments are minus it."""
    samples = []
    for index in range(count):
        members = {"moments.npy": encode_npy(moments_of(index)), "json": json.dumps({"labels": {}}).encode()}
        if flip:
            members["flip.npy"] = encode_npy(-moments_of(index))
        samples.append((f"s{index:05d}", members))
    return samples


def write_numbered_set(folder: Path, sizes: Sequence[int]) -> ShardSet:
    """Write a latent set of one train split whose moments are the samples' numbers."""
    return write_set(
        folder,
        numbered_samples(sum(sizes)),
        shards={"train": sizes},
        extensions=("json", "moments.npy"),
        kind="latents",
        properties={"moments_shape": [4, 2, 2], "latent_mean": [0.0, 0.0], "latent_std": [1.0, 1.0], "flip": False},
    )


def flip_byte(path: Path, position: int) -> None:
    """Damage one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def hashes(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
