"""`synfundus encode-latents`: the separate pass that stores posterior moments.

One latent shard per image shard; a rank takes every W-th shard. A finished shard leaves a record with its hashes and
statistics, so that a stopped pass can be resumed, and the manifest is assembled from the records in shard order: the
bytes do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from synfundus import __version__
from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.claim import Claim
from synfundus.artifacts.latent_set import LatentSources, photographs_of, save_sources
from synfundus.artifacts.shard_records import ShardRecords
from synfundus.config.generation import EncodeLatentsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0, require_same
from synfundus.distributed.world import World, of_rank, share_of, torch_device, without_timeout
from synfundus.errors import ConfigError, DataError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.stages import Summary, build
from synfundus.stages.encode_latents.shard_encoder import EncodeTask, ShardEncoder, check_rejects, open_lanes
from synfundus.stages.reading import FLIP_HINT, flip_problem
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import absolute_location
from synfundus.storage.manifest import (
    REJECTS_NAME,
    SPLITS,
    ShardEntry,
    ShardSet,
    is_complete,
    load_shard_set,
    save_shard_set,
)
from synfundus.storage.shard_index import MAX_JSON_BYTES, MAX_NPY_BYTES, MAX_SAMPLE_BYTES
from synfundus.telemetry.console import Console
from synfundus.training.validation import knows_patients

_FORMAT = "synfundus-latent-shard"
_VERSION = 1
_CLAIM = Claim("request.json", _FORMAT, _VERSION, others="latents of something else")


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Encode every shard of an image set. Collective; resumes by itself.

    Returns:
        ``num_samples``, ``rejects``, ``latent_shape``, ``identity``.

    Raises:
        ConfigError: ``--out`` holds latents of something else; the message names both sides.
        DataError: Moments that fp16 cannot hold; more damaged images than ``encode_latents.max_bad_fraction``.
    """
    section = config.encode_latents
    image_set = open_images(section)
    out = require(section.out, flag="--out", key="encode_latents.out")
    folder = find_autoencoder(require(section.vae, flag="--vae", key="encode_latents.vae"))
    tf32 = section.tf32 and world.device == "cuda"
    build.tensor_cores(tf32, world, console, option=f"encode_latents.tf32={str(section.tf32).lower()}")
    device, dtype = torch_device(world), build.torch_dtype(section.precision)
    autoencoder, autoencoder_fingerprint = open_autoencoder(folder, device=device, dtype=dtype)
    build.attention(autoencoder.network, config.launch, dtype=dtype, world=world, console=console)
    build.channels_last(autoencoder.network, world=world, console=console, weights=True)
    properties = _properties(section, image_set, autoencoder, autoencoder_fingerprint, tf32=tf32)
    require_same(properties, world)
    complete = on_rank_0(lambda: _claim(out, properties), world)
    sources = LatentSources(
        image_set_url=absolute_location(image_set.url),
        autoencoder_url=absolute_location(str(section.vae)),
        patients=knows_patients(image_set),
    )
    on_rank_0(lambda: save_sources(out, sources), world)
    if complete:
        console.message(f"latents are complete: {out}")
        return _summary(load_shard_set(out, kind="latents"))
    tasks = plan_tasks(image_set)
    mine = share_of(tasks, world)
    at_the_end = without_timeout(world)
    with (
        open_lanes(device) as lanes,
        console.progress(
            of_rank("encoding", world), total=sum(task.entry.num_samples for task in mine), unit="images"
        ) as bar,
    ):
        ShardEncoder(section, image_set, autoencoder, _records(out), device, lanes).encode(mine, bar)
    at_the_end.barrier()
    limit = section.max_bad_fraction
    on_rank_0(lambda: _publish(out, tasks, image_set, properties, console, limit), at_the_end)
    return _summary(load_shard_set(out, kind="latents"))


def open_images(section: EncodeLatentsConfig) -> ShardSet:
    """Open the image set.

    Raises:
        ConfigError: Its labels do not tell the side of a mirrored eye, and `--flip` is on.
        DataError: There is none.
    """
    image_set = load_shard_set(require(section.data, flag="--data", key="encode_latents.data"), kind="images")
    if section.flip and (problem := flip_problem(image_set.label_schema)):
        raise ConfigError(problem, where=image_set.url, hint=FLIP_HINT.format(option="--flip"))
    return image_set


def compare_claim(section: EncodeLatentsConfig) -> None:
    """Refuse a folder of other latents, as the run does; what depends on the device is left out."""
    autoencoder, fingerprint = open_autoencoder(
        find_autoencoder(str(section.vae)), device=torch.device("cpu"), dtype=torch.float32
    )
    properties = _properties(section, open_images(section), autoencoder, fingerprint, tf32=False)
    by_device = section.tf32 or section.precision == "auto"
    _is_complete(str(section.out), properties, replace(_CLAIM, free="encoder_precision") if by_device else _CLAIM)


def _records(out: str) -> ShardRecords:
    return ShardRecords(out, _FORMAT, _VERSION)


def plan_tasks(image_set: ShardSet) -> list[EncodeTask]:
    """Return one task per shard."""
    return [
        EncodeTask(split, number, entry)
        for split in SPLITS
        for number, entry in enumerate(image_set.split_shards(split))
    ]


def _properties(
    section: EncodeLatentsConfig, image_set: ShardSet, autoencoder: LatentAutoencoder, fingerprint: str, *, tf32: bool
) -> dict[str, Any]:
    """Return the properties of a latent set, for its manifest."""
    size = int(image_set.properties["image_size_px"])
    edge = size // autoencoder.downsample_factor
    shape = [2 * autoencoder.latent_channels, edge, edge]
    member_bytes = 2 * math.prod(shape) + 1024
    sample_bytes = (1 + section.flip) * member_bytes + MAX_JSON_BYTES
    if member_bytes > MAX_NPY_BYTES or sample_bytes > MAX_SAMPLE_BYTES:
        raise ConfigError(
            f"moments of {shape} take {member_bytes} bytes, more than a member of a shard may have",
            where="encode_latents.vae",
            hint="use an autoencoder with a higher downsampling factor, or smaller images",
        )
    return {
        "autoencoder_fingerprint": fingerprint,
        "image_set_identity": image_set.identity,
        "image_size_px": size,
        "crop": image_set.properties.get("crop"),
        "input_range": [-1.0, 1.0],
        "flip": section.flip,
        "dtype": "float16",
        "moments_shape": shape,
        "encoder_precision": "tf32" if tf32 and section.precision == "fp32" else section.precision,
        "encoder_batch_size": section.batch_size,
        "encoder_version": __version__,
    }


def _claim(out: str, properties: dict[str, Any]) -> bool:
    """Claim the folder; returns whether it is already complete."""
    if _is_complete(out, properties, _CLAIM):
        return True
    _CLAIM.make(out, properties)
    return False


def _is_complete(out: str, properties: dict[str, Any], claim: Claim) -> bool:
    """Whether a folder has all of these latents; refuses one of others."""
    if not is_complete(out):
        claim.compare(out, properties)
        return False
    try:
        found = load_shard_set(out, kind="latents").properties
    except DataError as error:
        raise ConfigError(error.message, where=out, hint="give another --out") from error
    claim.refuse_difference(out, {name: found.get(name) for name in properties}, properties)
    return True


def _channel_statistics(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Combine the train shards' sums into mean and standard deviation of the latents, sampling noise included."""
    train = [record["statistics"] for record in records if record["entry"]["split"] == "train"]
    count = sum(statistics["count"] for statistics in train)
    if count == 0:
        raise DataError("the train split holds no readable image")
    first, second, variance = np.sum([np.asarray(statistics["sums"]) for statistics in train], axis=0) / count
    return {
        "latent_mean": first.tolist(),
        "latent_std": np.sqrt(np.maximum(second - first**2 + variance, 1e-12)).tolist(),
    }


def _publish(
    out: str,
    tasks: list[EncodeTask],
    image_set: ShardSet,
    properties: dict[str, Any],
    console: Console,
    max_bad_fraction: float,
) -> None:
    """Assemble the manifest, check that in = out + rejects, publish, clean up."""
    done = _records(out)
    records = [done.require(task.entry.name) for task in tasks]
    rejects = [reject for record in records for reject in record["rejects"]]
    kinds = Counter(kind for record in records for kind in record.get("kinds", ["damaged"] * len(record["rejects"])))
    check_rejects(rejects, image_set, max_bad_fraction)
    entries = tuple(ShardEntry(**record["entry"]) for record in records)
    encoded = sum(entry.num_samples for entry in entries)
    if encoded + len(rejects) != image_set.num_samples():
        raise DataError(
            f"{encoded} encoded + {len(rejects)} rejected is not {image_set.num_samples()} images", where=out
        )
    documents.write_lines(filesystem.join(out, REJECTS_NAME), rejects)
    save_shard_set(
        ShardSet(
            url=out,
            kind="latents",
            label_schema=image_set.label_schema,
            shards=entries,
            rejects=dict(sorted(kinds.items())),
            properties={**properties, **_channel_statistics(records), **photographs_of(image_set)},
        )
    )
    for task in tasks:
        filesystem.remove(done.url(task.entry.name))
    filesystem.remove(filesystem.join(out, _CLAIM.name))
    console.message(f"{encoded:,} images encoded, {len(rejects)} rejected; latents in {out}")


def _summary(latents: ShardSet) -> Summary:
    return {
        "num_samples": latents.num_samples(),
        "rejects": dict(latents.rejects),
        "moments_shape": latents.properties["moments_shape"],
        "identity": latents.identity,
    }
