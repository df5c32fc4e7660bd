"""The loss on held-out images, with the same samples and noise every time, so that figures are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synfundus.errors import DataError
from synfundus.shards.batches import BatchReader, Quarantined
from synfundus.storage.manifest import ShardSet
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
        loss_all_labels: Sum of the losses with every label that is known, none dropped; None if not asked for.
    """

    loss: float
    images: float
    damaged: tuple[Quarantined, ...]
    loss_all_labels: float | None = None


@torch.no_grad()
def judge_batches(
    step: LatentDiffusionStep, reader: BatchReader, batches: Sequence[range], *, device: torch.device, images_seen: int
) -> list[JudgedBatch]:
    """Compute the losses of some batches of a split. Not collective; closes the reader.

    Args:
        step: The training step around the network to validate.
        reader: Reads the split; its ``all_states``, if any, give a second loss, with the same noise.
        batches: Positions of each batch's samples.
        device: Where the network is.
        images_seen: Images trained on.
    """
    judged, stage = [], staging_for(device)
    for positions in batches:
        batch = reader.read(np.array(positions, dtype=np.int64))
        arrays = stage({**batch.arrays, "weights": batch.weights})
        _, sums = step(arrays, images_seen)
        known = step({**arrays, "states": arrays["all_states"]}, images_seen)[1] if "all_states" in arrays else None
        loss_all_labels = None if known is None else float(known["loss"])
        judged.append(JudgedBatch(float(sums["loss"]), float(sums["images"]), batch.quarantined, loss_all_labels))
    reader.close()
    return judged


def held_out_loss(batches: Sequence[JudgedBatch], *, where: str, console: Console) -> dict[str, float]:
    """Return the mean loss over the samples of a split.

    Args:
        batches: All batches, in order.
        where: The set, for the message.
        console: Shows which samples cannot be used.

    Returns:
        ``validation_loss``, with labels dropped as in training; ``validation_loss_all_labels``, with every known label
        (if judged); ``validation_images``: the number of samples they are the means of.

    Raises:
        DataError: None of them can be read.
    """
    warn_of_damage([sample for batch in batches for sample in batch.damaged], console)
    images = sum(batch.images for batch in batches)
    if images == 0:
        raise DataError("no sample to validate on is readable", where=where)
    figures = {"validation_loss": sum(batch.loss for batch in batches) / images, "validation_images": images}
    known = [batch.loss_all_labels for batch in batches if batch.loss_all_labels is not None]
    return figures | ({"validation_loss_all_labels": sum(known) / images} if known else {})


NO_VAL = "training images (no val split)"


def judged_on(sets: Sequence[ShardSet], *, patients: bool) -> str:
    """Return what figures of a validation are of; ``patients``: the splits of all sets keep patients apart."""
    if not any(one.num_samples("val") for one in sets):
        return NO_VAL
    return "held-out patients" if patients else "held-out images"


def knows_patients(image_set: ShardSet) -> bool:
    """Whether the images of a set are of fewer patients: without a patient column each counts as one."""
    counts = image_set.properties.get("num_patients")
    return isinstance(counts, dict) and 0 < sum(counts.values()) < image_set.num_samples()


def warn_of_no_val(name: str, console: Console) -> None:
    """Say that nobody is held out."""
    if name == NO_VAL:
        console.warning("there is no val split: every validation figure is of training images, and hides overfitting")
