"""A run resumed with other values: what may change goes on with moments and place, what may not is refused."""

from __future__ import annotations

import json
import re
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


def rates(run_dir: Path) -> dict[int, float]:
    return {row["images_seen"]: row["lr"] for row in rows(run_dir) if "lr" in row}


def test_a_rate_budget_guard_and_average_may_change(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    optim = {"lr": 1e-3, "schedule": "constant", "warmup_images": 8}
    start(latent_set, tmp_path / "run", world, optim=optim)
    said = start(
        latent_set,
        tmp_path / "run",
        world,
        optim={**optim, "lr": 5e-4},
        ema={"half_life_images": 100},
        loop={"budget_images": 64, "on_nonfinite": "skip"},
    )
    line = next(text for text in said if "->" in text)
    for change in (
        *("train.optim.lr 0.001 -> 0.0005", "train.loop.budget_images 48 -> 64", "train.loop.on_nonfinite stop -> skip"),
        *("train.ema.half_life_images 200.0 -> 100.0", "from image 48 on"),
    ):
        assert change in line
    assert rates(tmp_path / "run") == {8 * n: 1e-3 if n <= 6 else 5e-4 for n in range(1, 9)}
    (row,) = read_lines(str(tmp_path / "run" / "changes.jsonl"))
    assert row["images_seen"] == 48
    assert row["changed"]["optim.lr"] == {"from": 1e-3, "to": 5e-4}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"]["optim"]["lr"] == 1e-3

    again = start(latent_set, tmp_path / "run", world, optim={**optim, "lr": 5e-4}, loop={"budget_images": 64})
    assert sum("->" in text for text in again) == 1, "the guard and the average, taken back"
    assert not any("already done" in text for text in said)
    assert any("already done: 64 images are trained, the budget is 64" in text for text in again)


def test_a_longer_cosine_says_that_it_lifts_the_rate_and_wsd_does_not_lift_it(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    start(latent_set, tmp_path / "cosine", world)
    said = start(latent_set, tmp_path / "cosine", world, loop={"budget_images": 96})
    lift = next(text for text in said if "lifts the learning rate" in text)
    assert lift.startswith("warning: ")
    before, after = (rates(tmp_path / "cosine")[images] for images in (48, 56))
    assert re.search(rf"from {before:.3g} to {after:.3g}", lift)

    wsd = {"schedule": "wsd", "decay_fraction": 0.5}
    start(latent_set, tmp_path / "wsd", world, optim=wsd)
    assert rates(tmp_path / "wsd")[48] == pytest.approx(1e-5)
    said = start(latent_set, tmp_path / "other", world, optim=wsd, loop={"budget_images": 48})
    assert not any("lifts" in text for text in said)


def test_what_may_not_change_is_refused_and_its_hint_can_be_followed(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    start(latent_set, tmp_path / "run", world)
    other = {"prediction_type": "sample"}
    with pytest.raises(ConfigError, match="diffusion.prediction_type is 'v_prediction' there, 'sample' here") as refused:
        start(latent_set, tmp_path / "run", world, diffusion=other, optim={"lr": 0.5})
    assert "optim.lr" not in refused.value.message
    (folder,) = re.findall(r"--init-from (\S+)", refused.value.hint)
    section = {"latents": latent_set.url, "run_dir": str(tmp_path / "new"), "loop": SHORT, "diffusion": other}
    assert train.run(tiny_config({"train": {**section, "init_from": folder}}), world, Talk())["images_seen"] == 48
    with pytest.raises(ConfigError) as refused:
        start(latent_set, tmp_path / "run", world, unet={"cross_attention_dim": 32})
    assert "--init-from" not in refused.value.hint


def test_the_hint_of_a_run_that_is_not_finite_is_followed(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    start(latent_set, tmp_path / "run", world)
    longer = {"budget_images": 96}
    with pytest.raises(NumericalError) as ended:
        start(latent_set, tmp_path / "run", world, optim={"lr": 1e30, "warmup_images": 0}, loop=longer)
    assert "lower optim.lr" in ended.value.hint
    said = start(latent_set, tmp_path / "run", world, optim={"lr": 1e-4}, loop=longer)
    assert any("resumed at 48 images" in text for text in said)
    assert list(rates(tmp_path / "run"))[-1] == 96
    (row,) = read_lines(str(tmp_path / "run" / "changes.jsonl"))
    assert row["changed"]["optim.lr"] == {"from": 1e-3, "to": 1e-4}, "nothing was trained with 1e30 that is kept"


def test_weight_decay_may_begin_later_and_keeps_every_moment(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    """It splits the parameters into two groups: with a decay of almost nothing the same weights come out."""
    for name in ("plain", "decays"):
        start(latent_set, tmp_path / name, world, loop={"budget_images": 24})
    start(latent_set, tmp_path / "plain", world, optim={"weight_decay": 0.0})
    said = start(latent_set, tmp_path / "decays", world, optim={"weight_decay": 1e-30})
    assert any("weight_decay 0.0 -> 1e-30" in text for text in said)
    one, other = (
        safetensors.torch.load_file(
            tmp_path / name / "checkpoints" / "images-000000000048" / "unet" / "diffusion_pytorch_model.safetensors"
        )
        for name in ("plain", "decays")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    start(latent_set, tmp_path / "decays", world, optim={"weight_decay": 0.0}, loop={"budget_images": 56})


def test_a_run_of_before_resumes_with_the_same_bits_whatever_was_added_to_the_options(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    """run.json as it was written before `decay_fraction` existed."""
    for name in ("straight", "old"):
        start(latent_set, tmp_path / name, world, loop={"budget_images": 48 if name == "straight" else 24})
    run = tmp_path / "old" / "run.json"
    document = json.loads(run.read_text())
    del document["identity"]["optim"]["decay_fraction"]
    run.write_text(json.dumps(document))
    start(latent_set, tmp_path / "old", world, loop={"budget_images": 24})
    assert not (tmp_path / "old" / "changes.jsonl").exists()
    config = (tmp_path / "straight" / "config.yaml").read_bytes()
    before = state_hashes(tmp_path / "straight", "images-000000000048")
    start(latent_set, tmp_path / "straight", world)
    assert state_hashes(tmp_path / "straight", "images-000000000048") == before
    assert (tmp_path / "straight" / "config.yaml").read_bytes() == config


def test_a_budget_below_what_is_done_trains_nothing_and_says_so(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    start(latent_set, tmp_path / "run", world)
    before = state_hashes(tmp_path / "run", "images-000000000048")
    said = start(latent_set, tmp_path / "run", world, loop={"budget_images": 24})
    assert "already done: 48 images are trained, the budget is 24" in said
    assert state_hashes(tmp_path / "run", "images-000000000048") == before
    assert "trained on 48 images" in said[-1]
