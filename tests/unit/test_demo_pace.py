from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import Talk
from tiny_sets import encode_png, tiny_config

from synfundus.config.auto import assumed_micro_batch
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import SynfundusError
from synfundus.stages.demo import job as demo_job
from synfundus.stages.demo.pace import measure_pace
from synfundus.stages.demo.plan import REFERENCE_PACE, USEFUL_MINUTES, describe_pace, plan_demo
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


@pytest.mark.parametrize(
    ("pace", "minutes", "warned"),
    [
        (REFERENCE_PACE, 7.0, ""),
        (3 * REFERENCE_PACE, 7.0, ""),
        (REFERENCE_PACE / 3, 7.0, "give --minutes 2 and another --out for about 6 minutes"),
        (1.0, 7.0, "The smallest useful demo here is --minutes 2, about 3 hours: use a faster machine"),
        (0.7, 3.0, "The smallest useful demo here is --minutes 2, about 4 hours"),
        (REFERENCE_PACE, 0.05, "hardly more than noise"),
        (1.0, 0.05, "the smallest useful demo here is --minutes 2, about 3 hours"),
        (4 * REFERENCE_PACE, 0.5, ""),
        (4 * REFERENCE_PACE, 0.4, "the smallest useful demo here is --minutes 0.5, about 30 seconds"),
    ],
)
def test_a_slow_machine_is_told_how_long_it_takes_and_a_way_out_that_is_true(
    pace: float, minutes: float, warned: str
) -> None:
    said, warning = describe_pace(minutes, pace)
    assert "images/s" in said
    assert "x 1.00" not in said
    assert warned in warning
    assert bool(warning) == bool(warned)


@pytest.mark.parametrize("pace", [0.1, 0.7, 1.0, 9.0, 27.0, 50.0, 82.0, 200.0, 400.0])
@pytest.mark.parametrize("minutes", [0.05, 0.5, 1.0, 2.0, 3.0, 4.0, 7.0, 60.0])
def test_whoever_does_what_is_advised_is_not_told_to_do_it_again(minutes: float, pace: float) -> None:
    said, warning = describe_pace(minutes, pace)
    assert " 0 " not in said + warning
    if "--minutes " in (advice := warning.removeprefix(f"--minutes {minutes:g} ")):
        advised = float(advice.split("--minutes ")[1].split()[0].rstrip(","))
        assert advised >= min(minutes, USEFUL_MINUTES / 4)
        assert "hardly more than noise" not in describe_pace(advised, pace)[1]
        assert f"give --minutes {advised:g} " not in describe_pace(advised, pace)[1]


def test_a_table_without_files_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(encode_png(np.zeros((64, 64, 3), dtype=np.uint8)))
    (tmp_path / "labels.csv").write_text("dr_grade\n1\n")
    document = _config(tmp_path / "out").model_dump()
    document["demo"].update(source=str(tmp_path / "photographs"), labels=str(tmp_path / "labels.csv"))
    monkeypatch.setattr(demo_job, "measure_pace", lambda *_, **__: _refuse_to_measure())
    with pytest.raises(SynfundusError, match="file"):
        demo_job.run(RunConfig.model_validate(document), LocalWorld(), SilentConsole())
    assert not (tmp_path / "out").exists()


def test_it_says_that_it_measures(tmp_path: Path) -> None:
    config, talk = _config(tmp_path), Talk()
    demo_job.settle_pace(config.demo, str(tmp_path), lambda: REFERENCE_PACE, LocalWorld(), talk)
    assert talk.lines[0].startswith("measuring how fast this machine is")
