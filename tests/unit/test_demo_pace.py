from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_sets import tiny_config

from synfundus.config.auto import assumed_micro_batch
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.stages.demo import job as demo_job
from synfundus.stages.demo.pace import measure_pace
from synfundus.stages.demo.plan import REFERENCE_PACE, describe_pace, estimate_minutes, plan_demo
from synfundus.stages.trial_step import latent_shape
from synfundus.telemetry.console import SilentConsole

BEGUN_WITH = 123.5


def _config(out: Path, *, fit: bool = True) -> RunConfig:
    document = tiny_config().model_dump()
    document["prepare"]["image_size_px"] = 64
    document["demo"].update(out=str(out), fit_to_machine=fit)
    return RunConfig.model_validate(document)


def _measure(config: RunConfig, world: LocalWorld) -> float:
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    return measure_pace(config.train, shape, world, seed=config.seed)


def _settle(config: RunConfig, measure: Callable[[], float]) -> float:
    return demo_job.settle_pace(config.demo, str(config.demo.out), measure, LocalWorld(), SilentConsole())


def _refuse_to_measure() -> float:
    raise AssertionError("measured again")


def test_the_pace_is_that_of_real_steps_and_leaves_no_trace(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    pace = _measure(_config(tmp_path), LocalWorld())
    assert math.isfinite(pace)
    assert pace > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())


def test_ranks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalWorld, "sum", lambda self, values: [value * self.size for value in values])
    monkeypatch.setattr("synfundus.stages.demo.pace._time_step", lambda *_: 0.5)
    config = _config(tmp_path)
    micro_batch = assumed_micro_batch(config.train.loop)
    assert _measure(config, LocalWorld()) == pytest.approx(micro_batch / 0.5)
    share = config.train.loop.global_batch_size // 2
    expected = 2 * min(share, micro_batch) / 0.5
    assert _measure(config, LocalWorld(rank=0, size=2)) == pytest.approx(expected)


def test_a_demo_that_goes_on_keeps_the_pace_it_began_with(tmp_path: Path) -> None:
    config = _config(tmp_path)
    pace = _settle(config, lambda: BEGUN_WITH)
    planned = plan_demo(config, pace=pace)
    demo_job._Demo(planned, str(tmp_path), pace, LocalWorld(), SilentConsole()).claim()
    assert _settle(config, _refuse_to_measure) == BEGUN_WITH


def test_without_fitting_nothing_is_measured(tmp_path: Path) -> None:
    assert _settle(_config(tmp_path, fit=False), _refuse_to_measure) == REFERENCE_PACE


def test_the_latents_measured_on_are_as_large_as_those_trained_on() -> None:
    config = load_config(preset="demo-cpu", file=None, settings=[], flags=[]).config
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    assert shape == (config.train_vae.autoencoder.latent_channels, 16, 16)


@pytest.mark.parametrize(("pace", "warned"), [(REFERENCE_PACE, False), (3 * REFERENCE_PACE, False), (1.0, True)])
def test_a_slow_machine_is_told_how_long_it_takes_and_a_way_out_that_is_true(pace: float, warned: bool) -> None:
    said, warning = describe_pace(7.0, pace)
    assert "images/s" in said
    assert "x 1.00" not in said
    assert bool(warning) == warned
    if warned:
        assert "about 10 hours" in said
        fewer = float(warning.split("--minutes ")[1].split()[0])
        assert 3 < estimate_minutes(fewer, pace) < 11
