"""What a run is resumed with other values of: which hold from where, and that nothing is kept twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from synfundus.artifacts.run_changes import CHANGEABLE, CHANGES_NAME, plan_changes, record_changes, way_on
from synfundus.config.training import EmaConfig, LoopConfig, OptimConfig, changeable
from synfundus.storage.documents import read_lines

LR = "optim.lr"


def changed(images_seen: int, old: float, new: float) -> dict[str, Any]:
    return {"images_seen": images_seen, "changed": {LR: {"from": old, "to": new}}}


def test_a_row_names_the_place_and_both_values_and_nothing_else() -> None:
    begun = {LR: 1e-3, "loop.budget_images": 480}
    before, rows = plan_changes(begun, [], {LR: 5e-4, "loop.budget_images": 480, "unknown": 3}, 240)
    assert (before, rows) == (begun, [changed(240, 1e-3, 5e-4)])
    assert plan_changes(begun, [], begun, 240) == (begun, [])


def test_a_start_that_is_killed_before_its_first_checkpoint_leaves_no_second_row() -> None:
    rows = [changed(240, 1e-3, 5e-4)]
    assert plan_changes({LR: 5e-4}, rows, {LR: 5e-4}, 240) == ({LR: 1e-3}, rows)
    assert plan_changes({LR: 5e-4}, rows, {LR: 2e-4}, 240) == ({LR: 1e-3}, [changed(240, 1e-3, 2e-4)])
    assert plan_changes({LR: 5e-4}, rows, {LR: 1e-3}, 240) == ({LR: 1e-3}, []), "taken back: never trained with"


def test_a_run_that_goes_back_to_an_earlier_checkpoint_drops_what_came_after_it() -> None:
    rows = [changed(80, 1e-3, 5e-4), changed(240, 5e-4, 1e-4)]
    assert plan_changes({LR: 1e-4}, rows, {LR: 1e-4}, 160) == (
        {LR: 5e-4},
        [changed(80, 1e-3, 5e-4), changed(160, 5e-4, 1e-4)],
    )


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1.0, 2.0, 3.0])), max_size=8))
def test_the_rows_always_tell_which_value_held_where(starts: list[tuple[int, float]]) -> None:
    """Against a list of the value of each image: a start goes on from its place, what was after it is gone."""
    rows: list[Any] = []
    held = [1.0] * 20
    for place, value in starts:
        _, rows = plan_changes({LR: 1.0}, rows, {LR: value}, place)
        held[place:] = [value] * (len(held) - place)
        told = [1.0] * len(held)
        for row in rows:
            told[row["images_seen"] :] = [row["changed"][LR]["to"]] * (len(held) - row["images_seen"])
        assert told == held
        assert [row["images_seen"] for row in rows] == sorted({row["images_seen"] for row in rows})


def write_run(folder: Path, *, lr: float, budget: int) -> None:
    loop, optim, ema = LoopConfig(budget_images=budget), OptimConfig(lr=lr), EmaConfig()
    (folder / "run.json").write_text(json.dumps({"identity": {"optim": {"lr": lr}, "seed": 0}}))
    section = {name: part.model_dump(mode="json") for name, part in (("loop", loop), ("optim", optim), ("ema", ema))}
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "train": section}))


def start(folder: Path, images_seen: int, *, lr: float, budget: int, **loop: Any) -> str:
    values = changeable(LoopConfig(budget_images=budget, **loop), OptimConfig(lr=lr), EmaConfig())
    return record_changes(str(folder), section="train", wanted=values, images_seen=images_seen)[1]


def test_a_change_is_said_once_kept_and_the_config_goes_with_it(tmp_path: Path) -> None:
    write_run(tmp_path, lr=1e-5, budget=480)
    assert start(tmp_path, 0, lr=1e-5, budget=480) == ""
    assert not (tmp_path / CHANGES_NAME).exists()
    said = start(tmp_path, 240, lr=5e-6, budget=960)
    assert said == "train.optim.lr 1e-05 -> 5e-06; train.loop.budget_images 480 -> 960, from image 240 on"
    kept = (tmp_path / CHANGES_NAME).read_bytes(), (tmp_path / "config.yaml").read_bytes()
    assert start(tmp_path, 240, lr=5e-6, budget=960) == ""
    assert ((tmp_path / CHANGES_NAME).read_bytes(), (tmp_path / "config.yaml").read_bytes()) == kept
    document = yaml.safe_load(kept[1])
    assert (document["seed"], document["train"]["optim"]["lr"], document["train"]["loop"]["budget_images"]) == (
        *(0, 5e-6, 960),
    )
    assert start(tmp_path, 480, lr=5e-6, budget=960, on_spike="skip").startswith("train.loop.on_spike off -> skip")
    assert [row["images_seen"] for row in read_lines(str(tmp_path / CHANGES_NAME))] == [240, 480]


def test_what_begins_between_the_two_files_goes_on_alike(tmp_path: Path) -> None:
    write_run(tmp_path, lr=1e-3, budget=480)
    stale = (tmp_path / "config.yaml").read_bytes()
    start(tmp_path, 240, lr=5e-4, budget=960)
    rows, fresh = (tmp_path / CHANGES_NAME).read_bytes(), (tmp_path / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(stale)  # killed after the rows were written
    assert start(tmp_path, 240, lr=5e-4, budget=960) == ""
    assert ((tmp_path / CHANGES_NAME).read_bytes(), (tmp_path / "config.yaml").read_bytes()) == (rows, fresh)


def test_a_run_without_a_config_is_compared_by_what_its_identity_tells(tmp_path: Path) -> None:
    write_run(tmp_path, lr=1e-3, budget=480)
    (tmp_path / "config.yaml").unlink()
    assert start(tmp_path, 240, lr=5e-4, budget=960) == "train.optim.lr 0.001 -> 0.0005, from image 240 on"


@pytest.mark.parametrize(("key", "free"), [("optim.eps", 1), ("ema.half_life_images", 1), ("ema.sigma_rel", 0)])
def test_which_keys_of_the_identity_are_free(key: str, free: int) -> None:
    import re

    assert bool(re.fullmatch(CHANGEABLE, f"identity.{key}")) == bool(free)
    assert not re.fullmatch(CHANGEABLE, "identity.diffusion.optim.x")


def test_init_from_is_named_only_where_it_can_be_followed(tmp_path: Path) -> None:
    begun = {"format": "synfundus-run", "kind": "diffusion", "identity": {"seed": 0, "unet": {"dropout": 0.1}}}
    other_seed = {"kind": "diffusion", "identity": {"seed": 1, "unet": {"dropout": 0.1}}}
    other_network = {"kind": "diffusion", "identity": {"seed": 1, "unet": {"dropout": 0.2}}}
    assert "--init-from" not in way_on(str(tmp_path), begun, other_seed), "nothing is exported yet"
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "synfundus.json").write_text("{}")
    assert f"--init-from {tmp_path}" in way_on(str(tmp_path), begun, other_seed)
    assert "--init-from" not in way_on(str(tmp_path), begun, other_network)
