"""What the scripts share: interleaved pairs, medians, one JSON line at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.phantoms.draw import draw_phantom
from synfundus.seeding import keyed_generator
from synfundus.shards.reader import encode_npy
from synfundus.storage.manifest import ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.storage.tarshard import write_shard


def report(
    *, name: str, ours: float, reference: float, goal: float, unit: str, ratios: Sequence[float] | None = None
) -> None:
    """Print both parts of a ratio, then the JSON line that ends a script.

    Args:
        name: What is measured.
        ours: Median of our side.
        reference: Median of the other.
        goal: What the ratio should be.
        unit: Of both.
        ratios: Ratio of each pair; where given, their median counts, in which a machine's slow spells cancel out.
    """
    ratio = statistics.median(ratios) if ratios else ours / reference
    print(f"{name}: ours {ours:.1f} {unit}, reference {reference:.1f} {unit}, ratio {ratio:.3f} (goal {goal})")
    line = {"name": name, "ours": round(ours, 3), "reference": round(reference, 3), "ratio": round(ratio, 4)}
    print(json.dumps({**line, "goal": goal}), flush=True)


def interleaved(
    ours: Callable[[int], float], reference: Callable[[int], float], *, pairs: int
) -> tuple[float, float, list[float]]:
    """Run both sides alternately; returns the medians of both and the ratio of each pair.

    Shared machines are noisy: what disturbs one half of a pair mostly disturbs the other.
    """
    left: list[float] = []
    right: list[float] = []
    for number in range(pairs):
        left.append(ours(number))
        right.append(reference(number))
        print(f"  pair {number + 1}: ours {left[-1]:.1f}, reference {right[-1]:.1f}, ratio {left[-1] / right[-1]:.3f}")
    ratios = [a / b for a, b in zip(left, right, strict=True)]
    return statistics.median(left), statistics.median(right), ratios


def rate(work: Callable[[], int]) -> float:
    """Return how many units a second a piece of work does; it returns how many it did."""
    began = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - began)


def write_random_latents(
    folder: Path, *, shape: tuple[int, int, int], sizes: Sequence[int], autoencoder_folder: Path | None
) -> ShardSet:
    """Write a latent set of random moments with random labels: ``sizes`` are the samples of its train shards."""
    from synfundus.models.autoencoder import fingerprint  # brings torch, which a worker of `prepare` does not need

    schema = DEFAULT_LABEL_SCHEMA
    shards = []
    for number, size in enumerate([*sizes, 64]):
        split = "train" if number < len(sizes) else "val"
        samples = []
        states = np.zeros((size, len(schema.labels)), dtype=np.int16)
        for row in range(size):
            generator = keyed_generator(0, "benchmark", number, index=row)
            moments = generator.standard_normal(shape, dtype=np.float32).astype(np.float16)
            moments[shape[0] // 2 :] = -6
            labels = {spec.name: int(generator.integers(spec.num_values)) for spec in schema.labels}
            states[row] = schema.encode(labels)
            samples.append(
                (
                    f"{number:04d}{row:022d}",
                    {"json": json.dumps({"labels": labels}).encode(), "moments.npy": encode_npy(moments)},
                )
            )
        name = shard_name(split, number if split == "train" else 0)
        files = write_shard(str(folder / name), samples, extensions=("json", "moments.npy"), states=states)
        shards.append(ShardEntry.of(name, split, files))
    channels = shape[0] // 2
    properties = {
        "moments_shape": list(shape),
        "flip": False,
        "image_size_px": 8 * shape[1],
        "latent_mean": [0.0] * channels,
        "latent_std": [1.0] * channels,
        "autoencoder_fingerprint": "none" if autoencoder_folder is None else fingerprint(autoencoder_folder),
    }
    return save_shard_set(ShardSet(str(folder), "latents", schema, tuple(shards), {}, properties))


def write_phantom_images(folder: Path, *, num_images: int, image_size_px: int, shard_samples: int) -> ShardSet:
    """Write an image set of phantoms, all in the train split."""
    from synfundus.photographs.decode import encode_image

    shards = []
    for number, first in enumerate(range(0, num_images, shard_samples)):
        samples = []
        for index in range(first, min(first + shard_samples, num_images)):
            phantom = draw_phantom(seed=0, index=index, image_size_px=image_size_px)
            document = {"labels": phantom.labels}
            members = {"json": json.dumps(document).encode(), "png": encode_image(phantom.pixels, "png")}
            samples.append((f"p{index}", members))
        name = shard_name("train", number)
        shards.append(
            ShardEntry.of(name, "train", write_shard(str(folder / name), samples, extensions=("json", "png")))
        )
    properties = {"image_size_px": image_size_px, "crop": "none"}
    return save_shard_set(ShardSet(str(folder), "images", DEFAULT_LABEL_SCHEMA, tuple(shards), {}, properties))
