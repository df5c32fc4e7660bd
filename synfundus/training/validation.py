"""The loss on held-out patients, with the same samples and noise every time, so that figures are comparable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from synfundus.errors import DataError
from synfundus.shards.batches import BatchReader, Quarantined
from synfundus.telemetry.console import Console
from synfundus.training.step import LatentDiffusionStep

_MOST_NAMED = 8


def warn_of_damage(samples: Sequence[Quarantined], console: Console) -> None:
    """Name the held-out samples a figure leaves out: it is not comparable with one that includes them."""
    for sample in samples[:_MOST_NAMED]:
        console.warning(f"held-out sample {sample.place} is left out: {sample.reason}")
    if len(samples) > _MOST_NAMED:
        console.warning(f"{len(samples) - _MOST_NAMED} more held-out samples are left out")


@torch.no_grad()
def held_out_loss(
    step: LatentDiffusionStep,
    reader: BatchReader,
    *,
    images: int,
    batch_size: int,
    images_seen: int,
    where: str,
    console: Console,
) -> dict[str, float]:
    """Compute the mean loss over the first samples of a split. Not collective; closes the reader.

    Args:
        step: The training step around the network to validate.
        reader: Reads the split.
        images: Number of samples.
        batch_size: Samples per forward pass.
        images_seen: Images trained on.
        where: The set, for the message.
        console: Shows which samples cannot be used.

    Returns:
        ``validation_loss``, and ``validation_images``: the number of samples it is the mean of.

    Raises:
        DataError: None of them can be read.
    """
    device = next(step.parameters()).device
    loss = weight = 0.0
    damaged: list[Quarantined] = []
    for first in range(0, images, batch_size):
        batch = reader.read(np.arange(first, min(first + batch_size, images), dtype=np.int64))
        tensors: dict[str, Tensor] = {name: torch.from_numpy(array).to(device) for name, array in batch.arrays.items()}
        tensors["weights"] = torch.from_numpy(batch.weights).to(device)
        _, sums = step(tensors, images_seen)
        loss += float(sums["loss"])
        weight += float(sums["images"])
        damaged += batch.quarantined
    reader.close()
    warn_of_damage(damaged, console)
    if weight == 0:
        raise DataError("no sample to validate on is readable", where=where)
    return {"validation_loss": loss / weight, "validation_images": weight}
