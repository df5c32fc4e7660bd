"""The loss on held-out patients: the same samples and the same noise every time, so that two figures compare."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from synfundus.data.batches import BatchReader
from synfundus.errors import DataError
from synfundus.training.step import LatentDiffusionStep


@torch.no_grad()
def held_out_loss(
    step: LatentDiffusionStep, reader: BatchReader, *, images: int, batch_size: int, images_seen: int, where: str
) -> float:
    """Return the mean loss over the first samples of a split. Not collective; closes the reader.

    Args:
        step: What training minimises, around the network to judge.
        reader: Reads the split.
        images: How many samples.
        batch_size: Of a forward pass.
        images_seen: Place in the run.
        where: The set, for the message.

    Raises:
        DataError: None of them can be read.
    """
    device = next(step.parameters()).device
    loss = weight = 0.0
    for first in range(0, images, batch_size):
        batch = reader.read(np.arange(first, min(first + batch_size, images), dtype=np.int64))
        tensors: dict[str, Tensor] = {name: torch.from_numpy(array).to(device) for name, array in batch.arrays.items()}
        tensors["weights"] = torch.from_numpy(batch.weights).to(device)
        _, sums = step(tensors, images_seen)
        loss += float(sums["loss"])
        weight += float(sums["images"])
    reader.close()
    if weight == 0:
        raise DataError("no sample to validate on is readable", where=where)
    return loss / weight
