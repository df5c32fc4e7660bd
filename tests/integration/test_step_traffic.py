"""What a step sends, as `synfundus plan` counts it, is what DeepSpeed hands to the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import traffic_probe
from engine_probe import GLOBAL_BATCH, Network
from rank_processes import run_ranks

from synfundus.training.memory.footprint import step_traffic

RANKS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[tuple[str, str, int]], str]]:
    """What each kind of run reduced in a step, and a hash of its weights after it."""
    folder = tmp_path_factory.mktemp("traffic")
    for ended in run_ranks(Path(traffic_probe.__file__), [str(folder)], world_size=RANKS):
        ended.check()
    kinds: dict[str, tuple[list[tuple[str, str, int]], str]] = json.loads((folder / "traffic.json").read_text("utf-8"))
    return kinds


@pytest.mark.parametrize("micro", traffic_probe.MICRO_BATCHES)
@pytest.mark.parametrize(
    ("kind", "dtype", "size", "weight"),
    [
        ("fp32", "torch.float32", 4, 4),
        ("bf16", "torch.bfloat16", 2, 2),
        ("bf16-exact", "torch.float32", 4, 2),
        ("fp32-owners", "torch.float32", 4, 4),
        ("bf16-owners", "torch.bfloat16", 2, 2),
    ],
)
def test_every_backward_pass_reduces_all_gradients_in_the_precision_of_the_weights_or_what_the_file_says(
    found: dict[str, tuple[list[tuple[str, str, int]], str]], kind: str, dtype: str, size: int, weight: int, micro: int
) -> None:
    to_owners = kind.endswith("-owners")
    parameters = sum(parameter.numel() for parameter in Network().parameters())
    passes = GLOBAL_BATCH // RANKS // micro
    # a vector of one or two elements is a norm, a flag or a loss
    gradients = [row for row in found[f"{kind}/{micro}"][0] if row[2] > 2]
    assert {(name, of) for name, of, _ in gradients} == {("reduce" if to_owners else "all_reduce", dtype)}
    assert sum(elements for *_, elements in gradients) == passes * parameters
    # a ring passes (N-1)/N of a vector on, twice to reduce it on all ranks
    sent = (1 if to_owners else 2) * (RANKS - 1) * sum(size * elements for *_, elements in gradients) // RANKS
    planned = step_traffic(
        parameters=parameters,
        ranks=RANKS,
        weight_bytes=weight,
        gradient_bytes=size,
        accumulation_steps=passes,
        to_owners=to_owners,
    )
    assert planned.reduced == sent
    assert planned.gathered == (RANKS - 1) * weight * parameters // RANKS


@pytest.mark.parametrize("micro", traffic_probe.MICRO_BATCHES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reduced_to_their_owners_gradients_give_the_same_weights(
    found: dict[str, tuple[list[tuple[str, str, int]], str]], precision: str, micro: int
) -> None:
    assert found[f"{precision}-owners/{micro}"][1] == found[f"{precision}/{micro}"][1]
