"""An autoencoder on held-out images: PSNR, SSIM, vessel detail and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from synfundus.errors import DataError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import pixels_to_tensor, tensor_to_pixels
from synfundus.models.reconstruction_metrics import psnr, ssim
from synfundus.pictures.sheets import contact_sheet, encode_png, patients_note
from synfundus.shards.batches import Quarantined
from synfundus.stages.reading import image_batches
from synfundus.stages.vessel_detail import VesselDetail
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console
from synfundus.training.validation import warn_of_damage

_BATCH_PIXELS, _BATCH_IMAGES = 2**22, 16
"""Maximum images at a time: decoded in fp32, a layer of four images of 1,024 px takes 4 GiB."""
_GRID_IMAGES = 8


def held_out_split(image_set: ShardSet) -> str:
    """Return the split to judge on: val, or train where the set has no other."""
    return "val" if image_set.num_samples("val") else "train"


def read_images(
    image_set: ShardSet, *, split: str, count: int, seed: int, damaged: list[Quarantined] | None = None
) -> Iterator[Tensor]:
    """Yield the first ``count`` images of a split in reading order, ``[n, 3, h, w]`` in [-1, 1], in batches.

    Unusable ones are left out, and added to ``damaged``.
    """
    reader = image_batches(image_set, split=split, seed=seed, augment=None)
    total = min(count, reader.plan.set_sizes[0])
    most = max(1, min(_BATCH_IMAGES, _BATCH_PIXELS // int(image_set.properties["image_size_px"]) ** 2))
    for first in range(0, total, most):
        batch = reader.read(np.arange(first, min(first + most, total), dtype=np.int64))
        if damaged is not None:
            damaged += batch.quarantined
        yield pixels_to_tensor(batch.arrays["pixels"][batch.weights > 0])
    reader.close()


@torch.no_grad()
def judge_reconstructions(
    autoencoder: LatentAutoencoder,
    image_set: ShardSet,
    *,
    count: int,
    console: Console,
    check: Callable[[], None] = lambda: None,
) -> Mapping[str, float]:
    """Return PSNR, SSIM and vessel detail of reconstructions from the posterior mean, over held-out images.

    Args:
        autoencoder: The autoencoder, fp32.
        image_set: The image set.
        count: Maximum number of images.
        console: Shows unusable images.
        check: Called before every batch; may raise.

    Raises:
        DataError: None of them can be read.
    """
    split = held_out_split(image_set)
    decibels, similarity, number = 0.0, 0.0, 0
    vessels = VesselDetail()
    damaged: list[Quarantined] = []
    total = min(count, image_set.num_samples(split))
    with console.progress("evaluating", total=total, unit="images") as bar:
        for images in read_images(image_set, split=split, count=count, seed=0, damaged=damaged):
            check()
            if not len(images):
                continue
            target, restored = _reconstruct(autoencoder, images)
            restored = restored.float().clamp(-1, 1)
            decibels += float(psnr(restored, target, data_range=2.0).sum())
            similarity += float(ssim(restored, target, data_range=2.0).sum())
            vessels.add(restored, target)
            number += len(images)
            bar.advance(len(images))
    warn_of_damage(damaged, console)
    if not number:
        raise DataError("no image to judge the autoencoder on is readable", where=f"{image_set.url}, split {split}")
    means = {"psnr_db": decibels / number, "ssim": similarity / number}
    return {**means, **vessels.figures(), "evaluated_images": number}


@torch.no_grad()
def draw_reconstructions(autoencoder: LatentAutoencoder, image_set: ShardSet) -> bytes:
    """Draw held-out originals over their reconstructions; returns PNG."""
    split = held_out_split(image_set)
    images = torch.cat(list(read_images(image_set, split=split, count=_GRID_IMAGES, seed=0)))
    pictures = [*tensor_to_pixels(images), *tensor_to_pixels(_reconstruct(autoencoder, images)[1])]
    note = patients_note(image_set.properties)
    sheet = contact_sheet(
        pictures,
        captions=[""] * len(pictures),
        columns=len(images),
        tile_px=images.shape[-1],
        title=f"{split}: originals above, reconstructions below{note and f' · {note}'}",
    )
    return encode_png(sheet, text={"synthetic": "in part", "Warning": note}, compress_level=6)


def _reconstruct(autoencoder: LatentAutoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images on the autoencoder's device, and their reconstructions."""
    target = images.to(next(autoencoder.parameters()).device)
    mean, _ = LatentAutoencoder.split(autoencoder.encode(target))
    return target, autoencoder.decode(mean)
