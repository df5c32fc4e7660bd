"""The loss on held-out patients, with the same samples and noise every time, so that figures are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synfundus.errors import DataError
from synfundus.shards.batches import BatchReader, Quarantined
from synfundus.telemetry.console import Console
from synfundus.training.staging import staging_for
from synfundus.training.step import LatentDiffusionStep

_MOST_NAMED = 8


def warn_of_damage(samples: Sequence[Quarantined], console: Console) -> None:
    """Name the held-out samples a figure leaves out: it is not comparable with one that includes them."""
    for sample in samples[:_MOST_NAMED]:
        console.warning(f"held-out sample {sample.place} is left out: {sample.reason}")
    if len(samples) > _MOST_NAMED:
        console.warning(f"{len(samples) - _MOST_NAMED} more held-out samples are left out")


@dataclass(frozen=True)
class JudgedBatch:
    """The losses of a batch of held-out samples.

    Attributes:
        loss: Their sum.
        images: Number of samples.
        damaged: Samples left out.
    """

    loss: float
    images: float
    damaged: tuple[Quarantined, ...]


@torch.no_grad()
def judge_batches(
    step: LatentDiffusionStep, reader: BatchReader, batches: Sequence[range], *, device: torch.device, images_seen: int
) -> list[JudgedBatch]:
    """Compute the losses of some batches of a split. Not collective; closes the reader.

    Args:
        step: The training step around the network to validate.
        reader: Reads the split.
        batches: Positions of each batch's samples.
        device: Where the network is.
        images_seen: Images trained on.
    """
    judged, stage = [], staging_for(device)
    for positions in batches:
        batch = reader.read(np.array(positions, dtype=np.int64))
        _, sums = step(stage({**batch.arrays, "weights": batch.weights}), images_seen)
        judged.append(JudgedBatch(float(sums["loss"]), float(sums["images"]), batch.quarantined))
    reader.close()
    return judged


def held_out_loss(batches: Sequence[JudgedBatch], *, where: str, console: Console) -> dict[str, float]:
    """Return the mean loss over the samples of a split.

    Args:
        batches: All batches, in order.
        where: The set, for the message.
        console: Shows which samples cannot be used.

    Returns:
        ``validation_loss``, and ``validation_images``: the number of samples it is the mean of.

    Raises:
        DataError: None of them can be read.
    """
    warn_of_damage([sample for batch in batches for sample in batch.damaged], console)
    images = sum(batch.images for batch in batches)
    if images == 0:
        raise DataError("no sample to validate on is readable", where=where)
    return {"validation_loss": sum(batch.loss for batch in batches) / images, "validation_images": images}
