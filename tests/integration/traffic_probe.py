"""What DeepSpeed hands to the collectives in a step; run by every rank of a job."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_probe
import torch
import torch.distributed as dist

from synfundus.distributed.world import connect, disconnect

REDUCING = ("all_reduce", "reduce", "reduce_scatter_tensor")
MICRO_BATCHES = (4, 2)

Recorded = list[tuple[str, str, int]]


def recorder(name: str, collective: Callable[..., Any], into: Recorded) -> Callable[..., Any]:
    """Return the collective, noting its name, type and elements first."""

    @functools.wraps(collective)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        into.append((name, str(tensors[0].dtype), tensors[0].numel()))
        return collective(*args, **kwargs)

    return recorded


def main(out: Path) -> None:
    """Write what is reduced in a step, for each precision and micro-batch."""
    world = connect(device="cpu", timeout_s=60, num_threads=1)
    found = {}
    try:
        for precision in ("fp32", "bf16"):
            for micro in MICRO_BATCHES:
                engine = engine_probe.build(engine_probe.Network(), world, precision=precision, micro=micro)
                recorded: Recorded = []
                kept = {name: getattr(dist, name) for name in REDUCING}
                for name, collective in kept.items():
                    setattr(dist, name, recorder(name, collective, recorded))
                engine_probe.train_step(engine, world, 0, micro=micro)
                for name, collective in kept.items():
                    setattr(dist, name, collective)
                found[f"{precision}/{micro}"] = recorded
        if world.rank == 0:
            (out / "traffic.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
