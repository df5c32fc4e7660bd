"""A run resumed with other values: what may change goes on with moments and place, what may not is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_runs import Talk, rows, state_hashes
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.errors import ConfigError, NumericalError
from synfundus.stages.train import job as train
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet

SHORT = {"budget_images": 48, "checkpoint_every_images": 24, "validate_every_images": 0, "validation_images": 4}


def start(latents: ShardSet, run_dir: Path, world: World, **sections: Mapping[str, Any]) -> list[str]:
    loop = {**SHORT, **sections.pop("loop", {})}
    section = {"latents": latents.url, "run_dir": str(run_dir), "loop": loop, **sections}
    talk = Talk()
    train.run(tiny_config({"train": section}), world, talk)
    return talk.lines


@pytest.fixture(scope="module")
def begun(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 48 images, to be copied."""
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    start(latent_set, run_dir, world)
    return run_dir


@pytest.fixture
def run_dir(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def rates(run_dir: Path) -> dict[int, float]:
    return {row["images_seen"]: row["lr"] for row in rows(run_dir) if "lr" in row}


def test_a_rate_budget_guard_and_average_may_change(latent_set: ShardSet, world: World, run_dir: Path) -> None:
    optim, longer = {"lr": 2e-3, "schedule": "constant"}, {"budget_images": 64, "on_nonfinite": "skip"}
    said = start(latent_set, run_dir, world, optim=optim, ema={"half_life_images": 100}, loop=longer)
    line = next(text for text in said if "->" in text)
    for change in (
        *("train.optim.lr 0.001 -> 0.002", "train.loop.budget_images 48 -> 64", "train.loop.on_nonfinite stop -> skip"),
        *("train.ema.half_life_images 200.0 -> 100.0", "from image 48 on"),
    ):
        assert change in line
    assert [rates(run_dir)[images] for images in (56, 64)] == [2e-3, 2e-3]
    assert rates(run_dir)[48] == pytest.approx(1e-5)
    lift = next(text for text in said if "lifts the learning rate" in text)
    assert lift.startswith("warning: ")
    assert "200-fold, from 1e-05 to 0.002" in lift
    (row,) = read_lines(str(run_dir / "changes.jsonl"))
    assert row["images_seen"] == 48
    assert row["changed"]["optim.lr"] == {"from": 1e-3, "to": 2e-3}
    assert json.loads((run_dir / "run.json").read_text())["identity"]["optim"]["lr"] == 1e-3
    assert not any("already done" in text for text in said)


def test_a_longer_cosine_says_that_it_lifts_the_rate(latent_set: ShardSet, world: World, run_dir: Path) -> None:
    said = start(latent_set, run_dir, world, loop={"budget_images": 96})
    after = rates(run_dir)[56]
    assert any(f"fold, from 1e-05 to {after:.3g}" in text for text in said)


def test_what_may_not_change_is_refused_and_its_hint_can_be_followed(
    latent_set: ShardSet, world: World, run_dir: Path
) -> None:
    other = {"prediction_type": "sample"}
    with pytest.raises(ConfigError, match="prediction_type is 'v_prediction' there, 'sample' here") as refused:
        start(latent_set, run_dir, world, diffusion=other, optim={"lr": 0.5})
    assert "optim.lr" not in refused.value.message
    (folder,) = re.findall(r"--init-from (\S+)", refused.value.hint)
    section = {"latents": latent_set.url, "run_dir": f"{run_dir}-new", "loop": SHORT, "diffusion": other}
    assert train.run(tiny_config({"train": {**section, "init_from": folder}}), world, Talk())["images_seen"] == 48
    with pytest.raises(ConfigError) as refused:
        start(latent_set, run_dir, world, unet={"cross_attention_dim": 32})
    assert "--init-from" not in refused.value.hint


def test_the_hint_of_a_run_that_is_not_finite_is_followed(latent_set: ShardSet, world: World, run_dir: Path) -> None:
    """Both parts of it: the checkpoint at 56 images holds what the rate of 1e30 made of the weights."""
    longer = {"budget_images": 64, "checkpoint_every_images": 8}
    with pytest.raises(NumericalError) as ended:
        start(latent_set, run_dir, world, optim={"lr": 1e30, "warmup_images": 0, "schedule": "constant"}, loop=longer)
    assert "lower lr" in ended.value.hint
    with pytest.raises(NumericalError) as ended:
        start(latent_set, run_dir, world, optim={"lr": 1e-4}, loop=longer)
    assert "move it away from checkpoints/" in ended.value.hint
    (run_dir / "checkpoints" / "images-000000000056").rename(run_dir / "spoilt")
    said = start(latent_set, run_dir, world, optim={"lr": 1e-4}, loop=longer)
    assert any("resumed at 48 images" in text for text in said)
    assert list(rates(run_dir))[-1] == 64
    (row,) = read_lines(str(run_dir / "changes.jsonl"))
    assert row["images_seen"] == 48
    assert row["changed"]["optim.lr"] == {"from": 1e-3, "to": 1e-4}, "nothing was kept that was trained with 1e30"


def test_weight_decay_may_begin_later_and_keeps_every_moment(latent_set: ShardSet, world: World, run_dir: Path) -> None:
    """It splits the parameters into two groups: with next to no decay the same weights come out, but for rounding."""
    plain = Path(shutil.copytree(run_dir, f"{run_dir}-plain"))
    start(latent_set, plain, world, loop={"budget_images": 56})
    said = start(latent_set, run_dir, world, optim={"weight_decay": 1e-30}, loop={"budget_images": 56})
    assert any("weight_decay 0.0 -> 1e-30" in text for text in said)
    one, other, before = (
        safetensors.torch.load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (
            *(path / "checkpoints" / "images-000000000056" for path in (plain, run_dir)),
            run_dir / "checkpoints" / "images-000000000048",
        )
    )
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(before[name], one[name]) for name in one)


def test_a_run_of_before_goes_on_as_it_was_whatever_was_added_to_the_options(
    latent_set: ShardSet, world: World, run_dir: Path
) -> None:
    """run.json and config.yaml as they were written before `decay_fraction` existed."""
    document = json.loads((run_dir / "run.json").read_text())
    del document["identity"]["optim"]["decay_fraction"]
    (run_dir / "run.json").write_text(json.dumps(document))
    config = (run_dir / "config.yaml").read_text().replace("    decay_fraction: 0.2\n", "")
    (run_dir / "config.yaml").write_text(config)
    before = state_hashes(run_dir, "images-000000000048")
    said = start(latent_set, run_dir, world)
    assert "already done: 48 images are trained, the budget is 48" in said
    assert state_hashes(run_dir, "images-000000000048") == before
    assert not (run_dir / "changes.jsonl").exists()
    assert not any("->" in text for text in said)


def test_a_budget_below_what_is_done_trains_nothing_and_says_so(
    latent_set: ShardSet, world: World, run_dir: Path
) -> None:
    before = state_hashes(run_dir, "images-000000000048")
    said = start(latent_set, run_dir, world, loop={"budget_images": 24})
    assert "already done: 48 images are trained, the budget is 24" in said
    assert state_hashes(run_dir, "images-000000000048") == before
    assert "trained on 48 images" in said[-1]
