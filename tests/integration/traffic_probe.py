"""What DeepSpeed hands to the collectives in a step; run by every rank of a job."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import engine_probe
import torch
import torch.distributed as dist

from synfundus.config.assets import find_asset
from synfundus.distributed.world import connect, disconnect

REDUCING = ("all_reduce", "reduce", "reduce_scatter_tensor")
MICRO_BATCHES = (4, 2)
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {},
    "bf16-exact": {"communication_data_type": "fp32"},
    "fp32-owners": {"zero_optimization": {"use_multi_rank_bucket_allreduce": False}},
    "bf16-owners": {"zero_optimization": {"use_multi_rank_bucket_allreduce": False}},
}
"""Precision, and what is changed in the DeepSpeed file."""

Recorded = list[tuple[str, str, int]]


def recorder(name: str, collective: Callable[..., Any], into: Recorded) -> Callable[..., Any]:
    """Return the collective, noting its name, type and elements first."""

    @functools.wraps(collective)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        into.append((name, str(tensors[0].dtype), tensors[0].numel()))
        return collective(*args, **kwargs)

    return recorded


def ds_file(out: Path, kind: str, rank: int) -> str:
    """Write a DeepSpeed file with the changes of a kind."""
    document = json.loads(find_asset("ds_configs", "zero2_cpu.json").read_text(encoding="utf-8"))
    path = out / f"{kind}-{rank}.json"
    for key, change in KINDS[kind].items():
        document[key] = {**document[key], **change} if isinstance(change, dict) else change
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of weights."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()


def main(out: Path) -> None:
    """Write what is reduced in a step, for each precision and micro-batch."""
    world = connect(device="cpu", timeout_s=60, num_threads=1)
    found = {}
    try:
        for kind in KINDS:
            for micro in MICRO_BATCHES:
                engine = engine_probe.build(
                    engine_probe.Network(),
                    world,
                    precision=kind.partition("-")[0],
                    micro=micro,
                    ds_file=ds_file(out, kind, world.rank),
                )
                recorded: Recorded = []
                kept = {name: getattr(dist, name) for name in REDUCING}
                for name, collective in kept.items():
                    setattr(dist, name, recorder(name, collective, recorded))
                engine_probe.train_step(engine, world, 0, micro=micro)
                for name, collective in kept.items():
                    setattr(dist, name, collective)
                weights = engine.gather_named(engine.masters())
                found[f"{kind}/{micro}"] = recorded, weights and digest(weights)
        if world.rank == 0:
            (out / "traffic.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
