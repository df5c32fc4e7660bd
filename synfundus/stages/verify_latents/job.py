"""`synfundus verify-latents`: do the stored moments decode to the photographs they came from?"""

from __future__ import annotations

import math

import numpy as np
import torch

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.latent_set import load_sources, require_same_autoencoder
from synfundus.config.generation import VerifyLatentsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World, torch_device
from synfundus.errors import DataError, ManifestMismatch
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.reconstruction_metrics import psnr
from synfundus.seeding import keyed_generator
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.source import ImageDecoder, LatentDecoder
from synfundus.stages import Summary, build
from synfundus.stages.reading import latent_shape_of
from synfundus.stages.verb import require
from synfundus.stages.vessel_detail import VesselDetail, describe_vessels, lost_vessels
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Decode a sample of a latent set and compare with its images.

    Returns:
        ``psnr_db`` (mean), ``worst_psnr_db``, ``samples``, and the figures of `VesselDetail`.

    Raises:
        ManifestMismatch: Another autoencoder, or another image set.
        DataError: The mean PSNR is below the limit.
    """
    section = config.verify_latents
    build.tensor_cores(False, world, console)
    latents, images, autoencoder = open_inputs(section, torch_device(world))
    values, vessels = _compare(section, config.seed, latents, images, autoencoder, console)
    mean, worst = float(np.mean(values)), float(np.min(values))
    console.message(
        f"{len(values)} samples decoded: PSNR {mean:.2f} dB, worst {worst:.2f} dB, {describe_vessels(vessels)}"
    )
    if warning := lost_vessels(vessels):
        console.warning(warning)
    if mean < section.min_psnr_db:
        raise DataError(
            f"latents decode at {mean:.2f} dB, below verify_latents.min_psnr_db = {section.min_psnr_db}",
            where=latents.url,
            hint="encode again, or train the autoencoder longer",
        )
    return {"psnr_db": mean, "worst_psnr_db": worst, "samples": len(values), **vessels}


def open_inputs(section: VerifyLatentsConfig, device: torch.device) -> tuple[ShardSet, ShardSet, LatentAutoencoder]:
    """Open latents, their images and their autoencoder.

    Raises:
        ManifestMismatch: Another autoencoder, or another image set.
    """
    latents = load_shard_set(require(section.latents, flag="--latents", key="verify_latents.latents"), kind="latents")
    folder = find_autoencoder(require(section.vae, flag="--vae", key="verify_latents.vae"))
    autoencoder, fingerprint = open_autoencoder(folder, device=device, dtype=torch.float32)
    require_same_autoencoder(latents, fingerprint, where=folder)
    images = load_shard_set(section.data or load_sources(latents.url).image_set_url, kind="images")
    if images.identity != latents.properties["image_set_identity"]:
        raise ManifestMismatch(
            f"the latents were made of image set {latents.properties['image_set_identity'][:12]}, "
            f"at its place is now {images.identity[:12]}",
            where=images.url,
        )
    return latents, images, autoencoder


def _compare(
    section: VerifyLatentsConfig,
    seed: int,
    latents: ShardSet,
    images: ShardSet,
    autoencoder: LatentAutoencoder,
    console: Console,
) -> tuple[list[float], dict[str, float]]:
    """Return the PSNR of each of a keyed choice of samples, and their vessel detail."""
    split = "train"
    stored, originals = ShardSetReader(latents, split=split), ShardSetReader(images, split=split)
    channels, height, width = latent_shape_of(latents)
    shape = (2 * channels, height, width)
    decode_latents = LatentDecoder(schema=latents.label_schema, moments_shape=shape, with_flip=False)
    decode_image = ImageDecoder(schema=images.label_schema, image_size_px=int(images.properties["image_size_px"]))
    places = [(shard, sample) for shard, size in enumerate(stored.shard_sizes) for sample in range(size)]
    count = min(section.num_samples, len(places))
    chosen = keyed_generator(seed, "verify-latents").permutation(len(places))[:count]
    index = {
        key: (shard, sample)
        for shard, size in enumerate(originals.shard_sizes)
        for sample in range(size)
        for key in [originals.key(shard, sample)]
    }
    values, vessels = [], VesselDetail()
    with torch.no_grad(), console.progress("verifying", total=count, unit="samples") as bar:
        for number in chosen.tolist():
            shard, sample = places[number]
            key, members = stored.read(shard, sample)
            moments = decode_latents(key, members, stored.sample_name(shard, sample))["moments"]
            mean, _ = LatentAutoencoder.split(torch.from_numpy(moments[None].astype(np.float32)))
            restored = autoencoder.decode(mean.to(next(autoencoder.parameters()).device)).float().clamp(-1, 1).cpu()
            place = index[key]
            original = decode_image(*originals.read(*place), originals.sample_name(*place))["pixels"]
            target = pixels_to_tensor(original[None])
            value = float(psnr(restored, target, data_range=2.0))
            vessels.add(restored, target)
            values.append(value if math.isfinite(value) else 99.0)
            bar.advance()
    stored.close()
    originals.close()
    return values, vessels.figures()
