"""What a step sends, as `synfundus plan` counts it, is what DeepSpeed hands to the network."""

from __future__ import annotations

import json
from pathlib import Path

import traffic_probe
from engine_probe import GLOBAL_BATCH, Network
from rank_processes import run_ranks

from synfundus.training.memory.footprint import step_traffic

RANKS = 2


def test_every_backward_pass_reduces_all_gradients_in_the_precision_of_the_weights_or_what_the_file_says(
    tmp_path: Path,
) -> None:
    for ended in run_ranks(Path(traffic_probe.__file__), [str(tmp_path)], world_size=RANKS):
        ended.check()
    found = json.loads((tmp_path / "traffic.json").read_text(encoding="utf-8"))
    parameters = sum(parameter.numel() for parameter in Network().parameters())
    for kind, dtype, size, weight in (
        ("fp32", "torch.float32", 4, 4),
        ("bf16", "torch.bfloat16", 2, 2),
        ("bf16-exact", "torch.float32", 4, 2),
    ):
        for micro in traffic_probe.MICRO_BATCHES:
            passes = GLOBAL_BATCH // RANKS // micro
            # a vector of one or two elements is a norm, a flag or a loss
            gradients = [row for row in found[f"{kind}/{micro}"] if row[2] > 2]
            assert {(name, found_type) for name, found_type, _ in gradients} == {("all_reduce", dtype)}
            assert sum(elements for *_, elements in gradients) == passes * parameters
            # a ring passes (N-1)/N of a vector on twice to reduce it on all ranks
            sent = 2 * (RANKS - 1) * sum(size * elements for *_, elements in gradients) // RANKS
            planned = step_traffic(
                parameters=parameters, ranks=RANKS, weight_bytes=weight, gradient_bytes=size, accumulation_steps=passes
            )
            assert planned.reduced == sent
            assert planned.gathered == (RANKS - 1) * weight * parameters // RANKS
