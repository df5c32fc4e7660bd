"""Data of the training jobs: batches of latents or images, in the run's order."""

from __future__ import annotations

from collections.abc import Sequence

from synfundus.artifacts.latent_set import LatentSets, require_flip
from synfundus.config.training import LoopConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.labels.schema import LabelSchema
from synfundus.shards.batches import Augment, BatchReader
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan
from synfundus.shards.source import DecodedSource, ImageDecoder, LatentSource, SampleSource
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console


def latent_shape_of(latents: ShardSet) -> tuple[int, int, int]:
    """Return ``(c, lh, lw)`` of a latent set."""
    channels, height, width = latents.properties["moments_shape"]
    return int(channels) // 2, int(height), int(width)


EYE_SIDE = "eye_side"
FLIP_HINT = (
    "put a label eye_side of two values (0 right, 1 left) into the schema, which may be unknown in every row, and "
    "prepare the images with it; or leave {option} out"
)


def flip_problem(schema: LabelSchema) -> str | None:
    """Return why mirrored images cannot be labelled: a right eye mirrored is a left one. None if they can."""
    if EYE_SIDE not in schema.names:
        return f"a mirrored eye is of the other side, and no label is called {EYE_SIDE}: {', '.join(schema.names)}"
    values = schema[EYE_SIDE].num_values
    return None if values == 2 else f"a mirrored eye is of the other side, and {EYE_SIDE} has {values} values, not 2"


def check_flip(latents: ShardSet, run_url: str, console: Console) -> None:
    """Refuse flips of latents without mirrored moments, or whose labels cannot follow; a begun run is only warned.

    Raises:
        ConfigError: With what to do.
    """
    option = "train.diffusion.flip"
    require_flip(latents, wanted=True)
    if (problem := flip_problem(latents.label_schema)) is None:
        return
    if not filesystem.exists(filesystem.join(run_url, "run.json")):
        raise ConfigError(f"{option}: {problem}", where=latents.url, hint=FLIP_HINT.format(option=option))
    console.warning(f"{option}: {problem}; half of the images have been trained with a wrong side")


def _plan(shard_set: ShardSet, source: SampleSource, *, split: str, seed: int) -> ReadingPlan:
    return ReadingPlan(shard_sizes=source.shard_sizes, identity=shard_set.identity, split=split, seed=seed)


def latent_batches(
    latents: LatentSets, *, split: str, seed: int, with_flip: bool, augment: Augment | None
) -> BatchReader:
    """Return the batches of a split of one or several latent sets; sets without that split are ignored."""
    channels, height, width = latent_shape_of(latents.combined)
    there = [number for number, one in enumerate(latents.sets) if one.num_samples(split)] or [0]
    sources: list[SampleSource] = [
        LatentSource(
            ShardSetReader(latents.sets[number], split=split),
            schema=latents.combined.label_schema,
            moments_shape=(2 * channels, height, width),
            with_flip=with_flip,
        )
        for number in there
    ]
    plans = [
        _plan(latents.sets[number], source, split=split, seed=seed)
        for number, source in zip(there, sources, strict=True)
    ]
    mixed = MixedPlan(plans, weights=[latents.weights[number] for number in there], seed=seed)
    return BatchReader(mixed, sources, augment=augment)


def image_batches(image_set: ShardSet, *, split: str, seed: int, augment: Augment | None) -> BatchReader:
    """Return the batches of a split of an image set."""
    decode = ImageDecoder(schema=image_set.label_schema, image_size_px=int(image_set.properties["image_size_px"]))
    source = DecodedSource(ShardSetReader(image_set, split=split), decode=decode, layout=decode.layout)
    plan = MixedPlan([_plan(image_set, source, split=split, seed=seed)], weights=[1.0], seed=seed)
    return BatchReader(plan, [source], augment=augment)


def training_loader(reader: BatchReader, loop: LoopConfig, world: World, *, start_images: int) -> BatchLoader:
    """Return the loader of this rank's batches, from an image on."""
    return BatchLoader(
        reader=reader,
        steps=RankSteps(
            start_images=start_images, global_batch_size=loop.global_batch_size, rank=world.rank, world_size=world.size
        ),
        prefetch=Prefetch(
            batches=loop.prefetch_batches,
            max_bytes=loop.prefetch_max_bytes,
            workers=loop.workers,
            stall_s=loop.worker_stall_s,
        ),
    )


def set_names(sets: Sequence[ShardSet]) -> list[str]:
    """Return the names of sets in the ledger: the start of their identity, without any path or name."""
    return [one.identity[:16] for one in sets]
