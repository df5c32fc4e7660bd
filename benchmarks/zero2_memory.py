"""Bytes of a ZeRO-2 rank's model states, measured, against the formula of `synfundus plan`, on 1, 2 and 4 ranks.

Measured is every tensor that is alive when the optimizer is about to step, each storage once, less those that were
there before the engine was built; gradients are whole then, and the bucket they were gathered in is gone. The goal:
within 5 %.
"""

from __future__ import annotations

import gc
import json
import sys

import torch

from benchmarks.measuring import report
from benchmarks.training_runs import last_lines, start_ranks
from synfundus.config.loader import load_config
from synfundus.distributed.world import connect, disconnect, torch_device
from synfundus.stages import training_setup
from synfundus.stages.trial_step import latent_shape, random_batch, training_step
from synfundus.training.memory.footprint import state_bytes

RANKS = (1, 2, 4)
WIDTHS = (0.05, 0.1)
GLOBAL_BATCH, MICRO_BATCH = 8, 2
GOAL = 1.0


def living_bytes(known: frozenset[int] = frozenset()) -> tuple[int, frozenset[int]]:
    """Return the bytes of all tensors that are alive, each storage once, without known ones; and the storages."""
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    return sum(size for place, size in sizes.items() if place not in known), frozenset(sizes)


def probe(precision: str) -> None:
    """Measure one rank; rank 0 prints bytes and parameters."""
    world = connect(device="cpu", timeout_s=120, num_threads=1)
    settings = [
        f"train.loop.precision={precision}",
        f"train.loop.global_batch_size={GLOBAL_BATCH}",
        f"train.loop.micro_batch_size={MICRO_BATCH}",
    ]
    config = load_config(preset="demo-cpu", file=None, settings=settings, flags=[]).config
    _, before = living_bytes()
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    device = torch_device(world)
    step = training_step(config.train, shape, device, seed=config.seed)
    parameters = sum(parameter.numel() for parameter in step.parameters() if parameter.requires_grad)
    plan = training_setup.batch_plan(config.train.loop, world.size)
    engine = training_setup.engine(
        step,
        step.denoiser,
        loop=config.train.loop,
        optim=config.train.optim,
        launch=config.launch,
        batch=plan,
        world=world,
    )
    averages = training_setup.ema(config.train.ema, engine, sigma_rel=WIDTHS)
    measured: list[int] = []
    engine._zero.optimizer.register_step_pre_hook(lambda *_: measured.append(living_bytes(before)[0]))
    for _ in range(2):
        for _ in range(plan.gradient_accumulation_steps):
            batch = random_batch(config.train.diffusion, plan.micro_batch_size, shape, device)
            loss, _ = engine.forward(batch, 0)
            engine.backward(loss)
            del batch, loss
            engine.step(lr=1e-4)
    assert averages.power
    if world.rank == 0:
        print(json.dumps({"bytes": measured[-1], "parameters": parameters}), flush=True)
    disconnect()


def measure(ranks: int, precision: str) -> tuple[int, int]:
    """Return measured bytes of rank 0, and the network's parameters."""
    processes = start_ranks("benchmarks.zero2_memory", [precision], ranks=ranks)
    line = json.loads(last_lines(processes, timeout_s=300)[0])
    return line["bytes"], line["parameters"]


def main() -> None:
    """Measure and report."""
    for precision, weight_bytes in (("fp32", 4), ("bf16", 2)):
        for ranks in RANKS:
            measured, parameters = measure(ranks, precision)
            states = state_bytes(
                parameters=parameters,
                ranks=ranks,
                weight_bytes=weight_bytes,
                num_averages=1 + len(WIDTHS),
            )
            report(
                name=f"zero2_state_bytes_{precision}_{ranks}_ranks",
                ours=measured / 2**20,
                reference=states.total / 2**20,
                goal=GOAL,
                unit="MiB",
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        probe(sys.argv[1])
    else:
        main()
