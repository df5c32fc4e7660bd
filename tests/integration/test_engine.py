"""DeepSpeed's ZeRO-2 behind the engine: the arithmetic of plain PyTorch, partitioned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import engine_probe
import pytest
import safetensors.torch
import torch
from engine_probe import GLOBAL_BATCH, STEPS, Network
from rank_processes import run_ranks
from torch import Tensor

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World
from synfundus.errors import Interrupted
from synfundus.training.optim import parameter_groups

Observed = tuple[dict[str, Any], dict[str, Tensor]]


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def assert_same(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    assert one.keys() == other.keys()
    assert one
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observed]:
    """What two real processes observed."""
    return observed_by(2, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observed]:
    """What four real processes observed."""
    return observed_by(4, tmp_path_factory.mktemp("probe"))


def observed_by(world_size: int, out: Path) -> dict[str, Observed]:
    """Run the probe; with a folder for extensions that must stay empty."""
    extensions = out / "extensions"
    extensions.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
        for ended in run_ranks(Path(engine_probe.__file__), [str(out)], world_size=world_size):
            ended.check()
    assert list(extensions.iterdir()) == [], "an extension was built"
    return {
        precision: (
            json.loads((out / f"{precision}.json").read_text()),
            safetensors.torch.load_file(out / f"{precision}.safetensors"),
        )
        for precision in ("fp32", "bf16")
    }


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observed]:
    extensions = tmp_path_factory.mktemp("extensions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
        observed = {
            precision: engine_probe.observe(world, precision=precision, micro=2) for precision in ("fp32", "bf16")
        }
    assert list(extensions.iterdir()) == [], "an extension was built"
    return observed


def reference() -> tuple[list[float], list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Train the same network in a bare PyTorch loop; returns (losses, norms, weights, first moments)."""
    network = Network()
    groups, decays = parameter_groups(network.named_parameters(), weight_decay=engine_probe.DECAY)
    optimizer = torch.optim.AdamW(
        [{"params": [p for _, p in group], "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)],
        lr=engine_probe.LR,
        betas=engine_probe.BETAS,
        eps=engine_probe.EPS,
    )
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = engine_probe.rate(step)
        optimizer.zero_grad()
        loss, _ = network(*engine_probe.data(step))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), engine_probe.MAX_NORM)))
        optimizer.step()
        losses.append(float(loss.detach()))
    named = dict(network.named_parameters())
    return (
        losses,
        norms,
        {name: tensor.detach() for name, tensor in named.items()},
        {name: optimizer.state[tensor]["exp_avg"] for name, tensor in named.items()},
    )


def test_the_optimizer_is_deepspeeds_zero_2(
    one_rank: dict[str, Observed], two_ranks: dict[str, Observed], world: World
) -> None:
    for observed in (one_rank, two_ranks):
        for figures, _ in observed.values():
            assert (figures["optimizer"], figures["stage"]) == ("DeepSpeedZeroOptimizer", 2)
            assert figures["optimizer_steps"] == STEPS
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    engine = engine_probe.build(Network(), world, precision="fp32", micro=8)
    assert type(engine._zero) is DeepSpeedZeroOptimizer
    assert type(engine._zero.optimizer) is torch.optim.AdamW


def test_every_process_group_has_the_timeout_of_the_job(
    two_ranks: dict[str, Observed], four_ranks: dict[str, Observed]
) -> None:
    """DeepSpeed makes groups of its own, and all gradients go through them."""
    for observed in (two_ranks, four_ranks):
        for figures, _ in observed.values():
            assert len(figures["timeouts_s"]) > 1
            assert set(figures["timeouts_s"]) == {60.0}


def test_two_ranks_hold_half_of_the_masters_each(one_rank: dict[str, Observed], two_ranks: dict[str, Observed]) -> None:
    for precision in ("fp32", "bf16"):
        whole = one_rank[precision][0]["partition_sizes"]
        half = two_ranks[precision][0]["partition_sizes"]
        assert all(abs(2 * small - large) <= 4 for small, large in zip(half, whole, strict=True))
        assert two_ranks[precision][0]["dtypes"] == ["torch.float32"]


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
def test_a_bare_pytorch_loop_gives_the_same_weights(ranks: str, request: pytest.FixtureRequest) -> None:
    figures, tensors = request.getfixturevalue(ranks)["fp32"]
    losses, norms, weights, moments = reference()
    assert figures["losses"] == pytest.approx(losses, rel=2e-6)
    assert figures["norms"] == pytest.approx(norms, rel=2e-6)
    assert max(norms) > engine_probe.MAX_NORM, "the clipping was not exercised"
    assert_same(part(tensors, "master"), weights, rtol=2e-5, atol=1e-6)
    assert_same(part(tensors, "exp_avg"), moments, rtol=2e-5, atol=1e-7)


def test_accumulation_equals_one_big_batch(one_rank: dict[str, Observed], world: World) -> None:
    figures, tensors = one_rank["fp32"]
    whole, at_once = engine_probe.observe(world, precision="fp32", micro=GLOBAL_BATCH)
    assert figures["losses"] == pytest.approx(whole["losses"], rel=1e-6)
    assert_same(part(tensors, "master"), part(at_once, "master"), rtol=1e-5, atol=1e-6)


def test_one_and_two_ranks_agree(one_rank: dict[str, Observed], two_ranks: dict[str, Observed]) -> None:
    assert two_ranks["fp32"][0]["losses"] == pytest.approx(one_rank["fp32"][0]["losses"], rel=1e-6)
    assert_same(part(two_ranks["fp32"][1], "master"), part(one_rank["fp32"][1], "master"), rtol=1e-5, atol=1e-6)
    assert_same(part(two_ranks["fp32"][1], "ema"), part(one_rank["fp32"][1], "ema"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks", "four_ranks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_sharded_averages_equal_the_averages_of_a_full_copy(
    ranks: str, precision: str, request: pytest.FixtureRequest
) -> None:
    _, tensors = request.getfixturevalue(ranks)[precision]
    averages = ("ema", *(f"power_{width}" for width in engine_probe.WIDTHS))
    for average in averages:
        assert_same(part(tensors, average), part(tensors, f"full_{average}"))
        assert not torch.equal(tensors[f"{average}.first.weight"], tensors["master.first.weight"])


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gathering_what_was_loaded_by_name_gives_it_back(
    ranks: str, precision: str, request: pytest.FixtureRequest
) -> None:
    _, tensors = request.getfixturevalue(ranks)[precision]
    assert_same(part(tensors, "loaded"), part(tensors, "other"))


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks"])
def test_bf16_keeps_exact_fp32_masters(ranks: str, request: pytest.FixtureRequest) -> None:
    _, tensors = request.getfixturevalue(ranks)["bf16"]
    assert_same(part(tensors, "start"), part(tensors, "initial"))
    masters, working = part(tensors, "master"), part(tensors, "working")
    assert_same(working, {name: tensor.bfloat16().float() for name, tensor in masters.items()})
    assert any(not torch.equal(masters[name], working[name]) for name in masters)


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks", "four_ranks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_module_holds_the_averages_for_a_while(ranks: str, precision: str, request: pytest.FixtureRequest) -> None:
    _, tensors = request.getfixturevalue(ranks)[precision]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for held, of in (("held", "ema"), ("working", "master")):
        assert_same(part(tensors, held), {name: t.to(dtype).float() for name, t in part(tensors, of).items()})


@pytest.mark.parametrize("ranks", ["one_rank", "two_ranks", "four_ranks"])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(
    ranks: str, request: pytest.FixtureRequest
) -> None:
    for figures, _ in request.getfixturevalue(ranks).values():
        assert figures["ranks_that_skip"] == {"one_rank": 1, "two_ranks": 2, "four_ranks": 4}[ranks]


def be_interrupted_with_zeros(engine: ZeroEngine) -> None:
    with engine.holding([torch.zeros_like(master) for master in engine.masters()]):
        assert not any(parameter.any() for parameter in engine.module.parameters())
        raise Interrupted("a signal")


def test_training_goes_on_after_an_interruption_as_if_nothing_had_been_held(world: World) -> None:
    for precision in ("fp32", "bf16"):
        straight, disturbed = (engine_probe.build(Network(), world, precision=precision, micro=4) for _ in range(2))
        for step in range(STEPS):
            with pytest.raises(Interrupted):
                be_interrupted_with_zeros(disturbed)
            expected = engine_probe.train_step(straight, world, step, micro=4)
            assert engine_probe.train_step(disturbed, world, step, micro=4) == expected


def test_updates_too_small_for_bf16_add_up_in_the_masters(world: World) -> None:
    network = Network()
    engine = engine_probe.build(network, world, precision="bf16", micro=8, weight_decay=0.0)
    before = [master.clone() for master in engine.masters()]
    frozen = {name: tensor.detach().clone() for name, tensor in engine.module.named_parameters()}
    for _ in range(5):
        loss, _ = engine.forward(*engine_probe.data(0))
        engine.backward(loss)
        engine.step(lr=1e-7)
    moved = [(now - old).abs().max() for now, old in zip(engine.masters(), before, strict=True)]
    assert all(2e-7 < float(distance) < 2e-6 for distance in moved)
    for name, tensor in engine.module.named_parameters():
        if name.endswith("weight"):  # a bias that starts at 0 moves by any step
            assert float((tensor.detach() == frozen[name]).float().mean()) > 0.9, name


def test_partitions_that_were_put_back_train_on_bit_for_bit(world: World) -> None:
    for precision in ("fp32", "bf16"):
        straight = engine_probe.build(Network(), world, precision=precision, micro=4)
        for step in range(3):
            engine_probe.train_step(straight, world, step, micro=4)
        masters = [master.clone() for master in straight.masters()]
        moments = [{name: tensor.clone() for name, tensor in pair.items()} for pair in straight.moments()]
        resumed = engine_probe.build(Network(), world, precision=precision, micro=4)
        resumed.load_partitions(masters, moments, optimizer_steps=straight.optimizer_steps())
        for step in range(3, STEPS):
            expected = engine_probe.train_step(straight, world, step, micro=4)
            assert engine_probe.train_step(resumed, world, step, micro=4) == expected
        for one, other in zip(straight.masters(), resumed.masters(), strict=True):
            assert torch.equal(one, other)
        assert resumed.optimizer_steps() == STEPS


def test_partitions_of_a_run_that_has_not_stepped_can_be_put_back(world: World) -> None:
    straight = engine_probe.build(Network(), world, precision="fp32", micro=8)
    resumed = engine_probe.build(Network(), world, precision="fp32", micro=8)
    resumed.load_partitions(straight.masters(), straight.moments(), optimizer_steps=straight.optimizer_steps())
    expected = engine_probe.train_step(straight, world, 0, micro=8)
    assert engine_probe.train_step(resumed, world, 0, micro=8) == expected


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(world: World) -> None:
    for precision in ("fp32", "bf16"):
        engine = engine_probe.build(Network(), world, precision=precision, micro=8)
        before = [master.clone() for master in engine.masters()]
        inputs, targets = engine_probe.data(0)
        loss, _ = engine.forward(inputs, targets * float("inf"))
        engine.backward(loss)
        result = engine.step(lr=1e-2)
        assert result is not None
        assert result.skipped or not torch.isfinite(torch.tensor(result.grad_norm))
        for now, old in zip(engine.masters(), before, strict=True):
            assert torch.equal(now, old), precision
        engine_probe.train_step(engine, world, 1, micro=8)
        assert all(torch.isfinite(master).all() for master in engine.masters())
