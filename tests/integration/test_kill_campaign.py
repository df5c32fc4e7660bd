"""The long campaign of `make soak`: a run killed at many points always ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rank_processes import run_cli, run_cli_killed_at
from test_training_resume import STEPS, assert_same_run, settings, train_here
from tiny_sets import write_config

from synfundus.distributed.world import World
from synfundus.seeding import keyed_generator
from synfundus.storage.manifest import ShardSet

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_killed_at_twenty_random_steps_end_with_the_same_bits(
    latent_set: ShardSet, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = tmp_path / "straight"
    train_here(latent_set, straight, world)
    points = sorted(keyed_generator(0, "kill-campaign").permutation(STEPS - 1)[:KILLS] + 1)
    failures: list[str] = []
    for point in points:
        run_dir = tmp_path / f"killed-{point}"
        command = ("train", "--config", str(write_config(tmp_path / "run.yaml", settings(latent_set, run_dir))))
        run_cli_killed_at(f"step:{point}", *command)
        run_cli(*command).check()
        try:
            assert_same_run(straight, run_dir)
        except AssertionError as error:
            failures.append(f"step {point}: {error}")
    with capsys.disabled():
        line = {"name": "sigkill_resume", "passed": KILLS - len(failures), "of": KILLS}
        print(f"\n{json.dumps(line)}")
    assert not failures
