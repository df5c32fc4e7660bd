"""`synfundus verify`: is a set of generated images what its model draws?

First every file: the hash of each shard, or the beginning and end of each PNG. Then a random choice of images is drawn
again with the model, seed, labels and settings that the set names, and pixels are compared. An image is drawn in its
batch, so the others of its batch are compared, too.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from synfundus.artifacts.model import Model, generate_again, generate_batch
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.artifacts.samples.description import PROVENANCE_NAME
from synfundus.artifacts.samples.layouts import SampleImages, open_sample_images
from synfundus.artifacts.samples.stores import is_complete_png
from synfundus.config.sample_sets import VerifyConfig
from synfundus.config.schema import RunConfig
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.distributed.numerics import reproducible_threads
from synfundus.distributed.world import World, torch_device
from synfundus.errors import CorruptShard, DataError, ManifestMismatch, StorageError
from synfundus.seeding import keyed_generator
from synfundus.shards.members import checksums_hold, decode_image
from synfundus.stages import Summary, build
from synfundus.stages.rehearsal import read_model
from synfundus.stages.sample.guide import guide_fingerprint, load_guide
from synfundus.stages.verb import require
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console

MOST_DIFFERENCE = 1
"""Grey levels that rounding explains: of another GPU, another version of torch."""
_CHUNK_BYTES = 2**20
_SHOWN = 5


@dataclass
class _Comparison:
    """What was found.

    Attributes:
        num_compared: Images drawn again.
        num_equal: Those with the same pixels.
        largest: Largest difference, in grey levels.
        differing: File of each image that differs by more than rounding, and by how much.
        problems: What is missing or damaged, in words.
    """

    num_compared: int
    num_equal: int
    largest: int
    differing: dict[str, int]
    problems: list[str]


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Check the files of ``verify.samples`` and draw some of its images again. One process.

    Returns:
        ``ok``, ``exit_code`` (3 if a file is damaged, or an image differs by more than `MOST_DIFFERENCE`),
        ``num_images``, ``num_compared``, ``num_equal``, ``largest_difference``, ``differing``, ``problems``.

    Raises:
        CheckpointError: There is no model.
        DataError: No finished sample set.
        ManifestMismatch: Another model drew it.
    """
    section = config.verify
    images = open_sample_images(require(section.samples, flag="--samples", key="verify.samples"))
    folder = find_pipeline(require(section.model, flag="--model", key="verify.model"))
    build.tensor_cores(True, world, console)  # as `sample` does
    model_device = torch_device(world)
    model = load_pipeline(folder, device=model_device)
    guide = (
        load_guide(section.guide_model, model, device=model_device, console=console) if section.guide_model else None
    )
    fingerprints = {"model": model.fingerprint, "autoencoder": model.autoencoder_fingerprint}
    require_its_model(images, fingerprints | ({} if guide is None else {"guide": guide.fingerprint}), where=folder)
    dtype, compiled = build.torch_dtype(images.provenance["precision"]), bool(images.provenance.get("compile"))
    for one in filter(None, (model, guide)):
        build.ready_to_sample(one, config.launch, dtype=dtype, world=world, console=console, compile_denoiser=compiled)
    found = _Comparison(0, 0, 0, {}, _damaged_files(images, console))
    batches = chosen_batches(images, count=section.num_images, seed=config.seed)
    with (
        reproducible_threads(device=world.device),
        console.progress("drawing again", total=len(batches), unit="batches") as bar,
    ):
        for batch in batches:
            _compare_batch(images, model, guide, batch, model_device, found)
            bar.advance()
    images.close()
    return _report(images, found, console)


def rehearse(section: VerifyConfig, seed: int) -> str:
    """Describe what would be compared, for a dry run; draws nothing.

    Raises:
        SynfundusError: As the run.
    """
    images = open_sample_images(str(section.samples))
    fingerprints = dict(read_model(str(section.model))["fingerprints"])
    if section.guide_model:
        fingerprints["guide"] = guide_fingerprint(section.guide_model)
    require_its_model(images, fingerprints, where=str(section.model))
    batches = chosen_batches(images, count=section.num_images, seed=seed)
    number = sum(map(len, (_images_of(images, batch) for batch in batches)))
    return f"# images\n{number:,} of {len(images):,} images to draw again, in {len(batches):,} batches\n\n"


def require_its_model(images: SampleImages, fingerprints: Mapping[str, str], *, where: str) -> None:
    """Refuse a model that did not draw a set.

    Args:
        images: The set.
        fingerprints: Of ``model``, ``autoencoder`` and, if there is one, ``guide``, among others.
        where: The model, for messages.

    Raises:
        ManifestMismatch: Names both sides.
    """
    for part in ("model", "autoencoder", "guide"):
        found, wanted = fingerprints.get(part, "no guide"), images.provenance.get(f"{part}_fingerprint", "no guide")
        if found != wanted:
            raise ManifestMismatch(
                f"the images were drawn with {part} {wanted[:12]}, here is {found[:12]}",
                where=where,
                hint="give the --guide-model that led them" if part == "guide" else "give the --model that drew them",
            )


def chosen_batches(images: SampleImages, *, count: int, seed: int) -> list[int]:
    """Return the batches of a random choice of images, the same for the same seed."""
    chosen = keyed_generator(seed, "verify").permutation(len(images))[:count]
    return sorted({int(image) // int(images.provenance["batch_size"]) for image in chosen})


def _images_of(images: SampleImages, batch: int) -> range:
    size = int(images.provenance["batch_size"])
    return range(batch * size, min((batch + 1) * size, len(images)))


def _damaged_files(images: SampleImages, console: Console) -> list[str]:
    """Return what is missing or damaged: shards by their hash, PNG files by their first and last bytes."""
    problems = []
    if images.shards is not None:
        total = sum(shard.bytes for shard in images.shards.shards)
        with console.progress("reading shards", total=total, unit="bytes") as bar:
            for shard in images.shards.shards:
                if _sha256(images.shards.shard_url(shard)) != shard.sha256:
                    problems.append(f"{shard.name}: its bytes do not match the manifest")
                bar.advance(shard.bytes)
        return problems
    with console.progress("looking for files", total=len(images), unit="images") as bar:
        for name in images.files:
            if not is_complete_png(filesystem.join(images.url, name)):
                problems.append(f"{name}: missing, or not a whole PNG file")
            bar.advance()
    return problems


def _sha256(url: str) -> str:
    """Return the hash of a file; empty if it is not there."""
    if not filesystem.exists(url):
        return ""
    digest = hashlib.sha256()
    with filesystem.open_read(url) as stream:
        while data := stream.read(_CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _compare_batch(
    images: SampleImages, model: Model, guide: Model | None, batch: int, device: torch.device, found: _Comparison
) -> None:
    """Draw a batch again and compare each of its images."""
    said = images.provenance
    given: dict[str, Any] = {
        "seed": int(said["seed"]),
        "settings": settings_of(said),
        "device": device,
        "guide": guide,
    }
    drawn = generate_batch(model, images.rows, batch, batch_size=int(said["batch_size"]), **given)
    for image, pixels in zip(_images_of(images, batch), drawn, strict=False):  # the last batch is padded
        name = images.files[image]
        try:
            data = images.read(image)
            stored = decode_image(data, where=name, extension="png")
        except (CorruptShard, StorageError) as error:
            found.problems.append(f"{name}: {error.message}")
            continue
        if attempt := attempt_of(data):
            pixels = generate_again(model, images.rows, image, attempt, **given)
        if not checksums_hold(data):
            found.problems.append(f"{name}: its bytes do not match its checksums")
        if stored.shape != pixels.shape:
            found.problems.append(f"{name}: {stored.shape} instead of {pixels.shape}")
            continue
        difference = int(np.abs(stored.astype(np.int16) - pixels).max())
        found.num_compared += 1
        found.num_equal += difference == 0
        found.largest = max(found.largest, difference)
        if difference > MOST_DIFFERENCE:
            found.differing[name] = difference


def attempt_of(data: bytes) -> int:
    """Return from which noise an image was drawn, by its text chunk: 0, or the number of the redraw of ``--check``."""
    with Image.open(io.BytesIO(data)) as image:
        text = image.info.get("attempt", "0")
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def settings_of(provenance: Mapping[str, Any]) -> SamplerSettings:
    """Return how a set was drawn, from its PROVENANCE.json.

    Raises:
        DataError: It does not say so.
    """
    try:
        return SamplerSettings.from_document(provenance)
    except (KeyError, TypeError, ValueError) as error:
        message = f"the set does not say how it was drawn: {type(error).__name__}, {error}"
        raise DataError(message, where=PROVENANCE_NAME) from error


def _report(images: SampleImages, found: _Comparison, console: Console) -> Summary:
    """Say what was found."""
    console.message(
        f"{found.num_compared:,} of {len(images):,} images drawn again: {found.num_equal:,} equal, "
        f"largest difference {found.largest} of 255 grey levels"
    )
    if found.largest and not found.differing:
        console.message(f"a difference of {MOST_DIFFERENCE} is rounding: another GPU, another version of torch")
    _warn(console, [f"{name} differs by up to {by} grey levels" for name, by in found.differing.items()])
    _warn(console, found.problems)
    ok = not found.differing and not found.problems
    return {
        "ok": ok,
        "exit_code": 0 if ok else DataError.exit_code,
        "num_images": len(images),
        "num_compared": found.num_compared,
        "num_equal": found.num_equal,
        "largest_difference": found.largest,
        "differing": found.differing,
        "problems": found.problems,
    }


def _warn(console: Console, lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        console.warning(line)
    if len(lines) > _SHOWN:
        console.warning(f"and {len(lines) - _SHOWN:,} more")
