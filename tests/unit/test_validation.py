"""The loss on held-out images: of all batches, of the images that can be read, with every label if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from synfundus.errors import DataError
from synfundus.shards.batches import Quarantined
from synfundus.telemetry.console import SilentConsole
from synfundus.training.validation import NO_VAL, JudgedBatch, held_out_loss, judge_batches, judged_on


class Talk(SilentConsole):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_the_loss_is_the_mean_over_the_images_of_all_batches() -> None:
    lost = Quarantined(position=3, place="val/000000.tar#c", reason="damaged")
    batches = [JudgedBatch(8.0, 4.0, (), 4.0), JudgedBatch(1.0, 2.0, (lost,), 2.0), JudgedBatch(3.0, 2.0, (), 0.0)]
    talk = Talk()
    figures = held_out_loss(batches, where="set", console=talk)
    assert figures == {"validation_loss": 1.5, "validation_images": 8.0, "validation_loss_all_labels": 0.75}
    assert held_out_loss(batches[::-1], where="set", console=talk) == figures
    assert talk.warnings[0] == "held-out sample val/000000.tar#c is left out: damaged"
    with pytest.raises(DataError, match="no sample to validate on is readable"):
        held_out_loss([JudgedBatch(0.0, 0.0, (lost,))], where="set", console=talk)


class Reader:
    """Batches whose samples are their positions."""

    def __init__(self, *, all_labels: bool) -> None:
        self._all_labels = all_labels
        self.closed = False

    def read(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        more = {"all_states": 10 * positions} if self._all_labels else {}
        weights = (positions != 2).astype(np.float32)
        arrays = {"states": positions, **more}
        return type("Batch", (), {"arrays": arrays, "weights": weights, "quarantined": ()})()

    def close(self) -> None:
        self.closed = True


def step(batch: Mapping[str, Tensor], images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
    weighted = batch["states"] * batch["weights"]
    return weighted.mean(), {"loss": weighted.sum(), "images": batch["weights"].sum()}


@pytest.mark.parametrize("all_labels", [False, True])
def test_each_batch_is_judged_on_its_own_labels_and_once_more_on_all_that_are_known(all_labels: bool) -> None:
    reader = Reader(all_labels=all_labels)
    judged = judge_batches(
        cast(Any, step), cast(Any, reader), [range(3), range(3, 5)], device=torch.device("cpu"), images_seen=0
    )
    assert [(one.loss, one.images) for one in judged] == [(1.0, 2.0), (7.0, 2.0)]
    assert [one.loss_all_labels for one in judged] == ([10.0, 70.0] if all_labels else [None, None])
    assert reader.closed


class Set:
    def __init__(self, val: int) -> None:
        self._val = val

    def num_samples(self, split: str) -> int:
        assert split == "val"
        return self._val


@pytest.mark.parametrize(
    ("val", "patients", "name"),
    [([0], True, NO_VAL), ([0, 3], True, "held-out patients"), ([3], False, "held-out images")],
)
def test_figures_are_called_what_they_are_of(val: list[int], patients: bool, name: str) -> None:
    assert judged_on([cast(Any, Set(number)) for number in val], patients=patients) == name
