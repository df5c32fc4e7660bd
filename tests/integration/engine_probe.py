"""What the engine does with a small network, as numbers; run by every rank of a job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from synfundus.config.assets import find_asset
from synfundus.distributed.ds_config import build_ds_config, plan_batch
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World, connect, disconnect
from synfundus.launch.processes import end_process
from synfundus.training.ema import ShardedEma, ema_decay, power_decay, power_exponent
from synfundus.training.optim import parameter_groups

GLOBAL_BATCH = 8
STEPS = 6
EMA = {"half_life_images": 60.0, "rampup_ratio": 5.0}
WIDTHS = (0.05, 0.2)
LR, BETAS, EPS, DECAY, MAX_NORM = 1e-2, (0.9, 0.99), 1e-8, 0.1, 0.5


class Network(nn.Module):
    """Odd sizes, so that partitions cut through parameters and need padding."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first = nn.Linear(17, 33)
            self.norm = nn.LayerNorm(33)
            self.last = nn.Linear(33, 5)

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error."""
        hidden = torch.relu(self.norm(self.first(inputs.to(self.first.weight.dtype))))
        return (self.last(hidden).float() - targets).square().mean(), {}


def data(step: int) -> tuple[Tensor, Tensor]:
    """Return the global batch of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(GLOBAL_BATCH, 17, generator=generator), 3 * torch.randn(GLOBAL_BATCH, 5, generator=generator)


def build(
    network: Network,
    world: World,
    *,
    precision: str,
    micro: int,
    weight_decay: float = DECAY,
    ds_file: str = "zero2_cpu.json",
) -> ZeroEngine:
    """Put the network under ZeRO-2."""
    batch = plan_batch(global_batch_size=GLOBAL_BATCH, max_micro_batch_size=micro, world_size=world.size)
    config = build_ds_config(
        json.loads(find_asset("ds_configs", ds_file).read_text(encoding="utf-8")),
        batch=batch,
        precision="bf16" if precision == "bf16" else "fp32",
        max_grad_norm=MAX_NORM,
    )
    groups, decays = parameter_groups(network.named_parameters(), weight_decay=weight_decay)
    return ZeroEngine(
        network, groups=groups, weight_decays=decays, ds_config=config, world=world, lr=LR, betas=BETAS, eps=EPS
    )


def rate(step: int) -> float:
    """Return the learning rate of a step; it changes each time."""
    return LR * (step + 1) / STEPS


def train_step(engine: ZeroEngine, world: World, step: int, *, micro: int) -> tuple[float, float]:
    """Train on this rank's part of a global batch; returns (mean loss of all ranks, gradient norm)."""
    inputs, targets = (tensor[world.rank :: world.size] for tensor in data(step))
    total, norm, count = 0.0, float("nan"), len(inputs) // micro
    for first in range(0, len(inputs), micro):
        loss, _ = engine.forward(inputs[first : first + micro], targets[first : first + micro])
        engine.backward(loss)
        result = engine.step(lr=rate(step))
        assert (result is not None) == (first + micro >= len(inputs)), "an update at the end of the global batch only"
        total += float(loss.detach()) / count
        norm = result.grad_norm if result else norm
    return world.sum([total])[0] / world.size, norm


def observe(world: World, *, precision: str, micro: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train a few steps; returns figures and, on rank 0, full tensors."""
    network = Network()
    initial = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    engine = build(network, world, precision=precision, micro=micro)
    tensors: dict[str, Tensor] = {}

    def keep(prefix: str, named: dict[str, Tensor] | None) -> None:
        tensors.update({f"{prefix}.{name}": tensor.clone().contiguous() for name, tensor in (named or {}).items()})

    keep("initial", initial if world.rank == 0 else None)
    keep("start", engine.gather_named(engine.masters()))
    half_life, ramp = EMA["half_life_images"], EMA["rampup_ratio"]
    average = ShardedEma(engine.masters(), half_life_images=half_life, rampup_ratio=ramp, sigma_rel=WIDTHS)
    full = engine.gather_named(engine.masters())
    power = {width: engine.gather_named(engine.masters()) for width in WIDTHS}
    losses, norms = [], []
    for step in range(STEPS):
        loss, norm = train_step(engine, world, step, micro=micro)
        losses.append(loss)
        norms.append(norm)
        seen = (step + 1) * GLOBAL_BATCH
        average.update(engine.masters(), batch_images=GLOBAL_BATCH, images_seen=seen)
        now = engine.gather_named(engine.masters())
        decay = ema_decay(batch_images=GLOBAL_BATCH, images_seen=seen, **EMA)
        if full is not None and now is not None:
            full = lerp(full, now, decay)
            for width in WIDTHS:
                decay = power_decay(batch_images=GLOBAL_BATCH, images_seen=seen, gamma=power_exponent(width))
                power[width] = lerp(power[width] or {}, now, decay)
    keep("master", engine.gather_named(engine.masters()))
    keep("ema", engine.gather_named(average.partitions))
    keep("full_ema", full)
    for width in WIDTHS:
        keep(f"power_{width}", engine.gather_named(average.power[width]))
        keep(f"full_power_{width}", power[width])
    for name in ("exp_avg", "exp_avg_sq"):
        keep(name, engine.gather_named([moments[name] for moments in engine.moments()]))

    def working() -> dict[str, Tensor]:
        return {name: tensor.detach().float() for name, tensor in engine.module.named_parameters()}

    with engine.holding(average.partitions):
        keep("held", working())
    keep("working", working())
    other = {name: torch.randn(tensor.shape, generator=_generator(name)) for name, tensor in initial.items()}
    engine.load_named(other)
    keep("other", other if world.rank == 0 else None)
    keep("loaded", engine.gather_named(engine.masters()))
    figures = {
        "ranks_that_skip": world.sum([skips_what_is_not_finite(engine, world, micro=micro)])[0],
        "optimizer": engine.optimizer_name,
        "stage": engine.zero_stage,
        "losses": losses,
        "norms": norms,
        "optimizer_steps": engine.optimizer_steps(),
        "partition_sizes": [master.numel() for master in engine.masters()],
        "dtypes": sorted({str(tensor.dtype) for tensor in engine.masters()}),
        "timeouts_s": timeouts_s(),
    }
    return figures, tensors


def skips_what_is_not_finite(engine: ZeroEngine, world: World, *, micro: int) -> bool:
    """Return whether a step leaves this rank's weights alone whose gradient is finite but for the last bias."""
    before, result = [master.clone() for master in engine.masters()], None
    inputs, targets = (tensor[world.rank :: world.size] for tensor in data(0))
    last: Any = engine.module.get_submodule("last")
    for first in range(0, len(inputs), micro):
        loss, _ = engine.forward(inputs[first : first + micro], targets[first : first + micro])
        engine.backward(loss + float("nan") * last.bias.sum())
        result = engine.step(lr=LR)
    same = all(torch.equal(now, old) for now, old in zip(engine.masters(), before, strict=True))
    return result is not None and result.skipped and same


def timeouts_s() -> list[float]:
    """Return the timeout of each process group."""
    cpu = torch.device("cpu")
    backends: list[Any] = [group._get_backend(cpu) for group in distributed_c10d._world.pg_map]
    return [backend.options._timeout.total_seconds() for backend in backends]


def lerp(averages: dict[str, Tensor], now: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    """Move full-size averages towards the weights."""
    return {name: tensor.lerp(now[name], 1.0 - decay) for name, tensor in averages.items()}


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))


def main(out: Path) -> None:
    """Write the observations of both precisions."""
    world = connect(device="cpu", timeout_s=60, num_threads=1)
    try:
        for precision in ("fp32", "bf16"):
            figures, tensors = observe(world, precision=precision, micro=min(2, GLOBAL_BATCH // world.size))
            if world.rank == 0:
                (out / f"{precision}.json").write_text(json.dumps(figures), encoding="utf-8")
                safetensors.torch.save_file(tensors, out / f"{precision}.safetensors")
    finally:
        disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_process(0)
