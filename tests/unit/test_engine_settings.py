"""What the engine gives to the optimizer and to ZeRO, without starting either."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from synfundus.distributed import engine
from synfundus.distributed.world import LocalWorld


class Built(Exception):
    """Ends the construction once the optimizer is known."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__()
        self.groups, self.options = groups, options


def built(monkeypatch: pytest.MonkeyPatch, *, bucket: int) -> Built:
    def optimizer(groups: list[dict[str, Any]], **options: Any) -> None:
        raise Built(groups, **options)

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(engine, "_import_deepspeed", lambda device: None)
    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 6))
    named = list(network.named_parameters())
    groups = [[item for item in named if item[1].ndim == ndim] for ndim in (2, 1)]
    with pytest.raises(Built) as caught:
        engine.ZeroEngine(
            network,
            groups=groups,
            weight_decays=[0.1, 0.0],
            ds_config={"zero_optimization": {"reduce_bucket_size": bucket}},
            world=LocalWorld(),
            lr=2e-4,
            betas=(0.8, 0.95),
            eps=1e-5,
        )
    return caught.value


def test_the_optimizer_has_the_options_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = built(monkeypatch, bucket=1000)
    assert found.options == {"lr": 2e-4, "betas": (0.8, 0.95), "eps": 1e-5, "fused": True}
    assert [group["weight_decay"] for group in found.groups] == [0.1, 0.0]


@pytest.mark.parametrize(("bucket", "sizes"), [(1000, [[60], [11]]), (40, [[30, 30], [11]]), (10, [[30, 30], [5, 6]])])
def test_no_bundle_of_several_parameters_is_larger_than_the_bucket_of_gradients(
    monkeypatch: pytest.MonkeyPatch, bucket: int, sizes: list[list[int]]
) -> None:
    found = built(monkeypatch, bucket=bucket)
    assert [[bundle.numel() for bundle in group["params"]] for group in found.groups] == sizes
