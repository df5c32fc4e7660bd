"""The DeepSpeed dictionary: knobs from the file, numbers from the run, never both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.config.assets import find_asset, list_assets, read_ds_file
from synfundus.distributed.ds_config import OWNED_KEYS, BatchPlan, build_ds_config, check_ds_file, plan_batch
from synfundus.errors import ConfigError

ZERO: dict[str, Any] = {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 500, "allgather_bucket_size": 5000}
GOOD: dict[str, Any] = {"zero_optimization": ZERO}
BATCH = BatchPlan(global_batch_size=32, micro_batch_size=4, gradient_accumulation_steps=2, world_size=4)


@given(share=st.integers(1, 200), world=st.integers(1, 64), most=st.integers(1, 300))
def test_the_global_batch_is_spread_without_rest_and_the_micro_batch_is_the_largest_that_fits(
    share: int, world: int, most: int
) -> None:
    plan = plan_batch(global_batch_size=share * world, max_micro_batch_size=most, world_size=world)
    assert plan.micro_batch_size * plan.gradient_accumulation_steps * world == share * world
    assert plan.micro_batch_size <= most
    assert not [size for size in range(plan.micro_batch_size + 1, min(share, most) + 1) if share % size == 0]


@pytest.mark.parametrize(("batch", "world", "nearest"), [(10, 4, "8 or 12"), (3, 8, "8"), (257, 256, "256 or 512")])
def test_a_batch_the_ranks_cannot_share_is_refused_with_the_nearest(batch: int, world: int, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{batch} is not a multiple of {world} ranks") as caught:
        plan_batch(global_batch_size=batch, max_micro_batch_size=8, world_size=world)
    assert nearest in caught.value.hint


@pytest.mark.parametrize("key", sorted(OWNED_KEYS))
def test_what_synfundus_derives_must_not_stand_in_the_file(key: str) -> None:
    with pytest.raises(ConfigError, match=f"must not set {key}") as caught:
        check_ds_file(GOOD | {key: 1}, where="x.json")
    assert caught.value.where == "x.json"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "is a JSON object"),
        (GOOD | {"zero_optimisation": {}}, "unknown keys in a DeepSpeed config: zero_optimisation"),
        ({}, "stage must be 2"),
        ({"zero_optimization": {"stage": 3}}, "stage must be 2"),
        ({"zero_optimization": 2}, "stage must be 2"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
            'zero_optimization.reduce_bucket_size is "auto"',
        ),
        ({"zero_optimization": ZERO | {"overlap_comm": True}}, "overlap_comm must be false: it has corrupted"),
        ({"zero_optimization": ZERO | {"overlap_comm": None}}, "overlap_comm must be false"),
        ({"zero_optimization": ZERO | {"round_robin_gradients": True}}, "round_robin_gradients must be false"),
        ({"zero_optimization": ZERO | {"offload_param": {}}}, "unknown keys in zero_optimization: offload_param"),
        ({"zero_optimization": {"stage": 2}}, "reduce_bucket_size is None"),
        ({"zero_optimization": ZERO | {"allgather_bucket_size": 0}}, "allgather_bucket_size is 0"),
        ({"zero_optimization": ZERO | {"allgather_bucket_size": 5}}, "allgather_bucket_size is 5; .* even number"),
        ({"zero_optimization": ZERO | {"allgather_bucket_size": 1}}, "allgather_bucket_size is 1; .* even number"),
        ({"zero_optimization": ZERO | {"reduce_bucket_size": True}}, "reduce_bucket_size is True"),
        ({"zero_optimization": ZERO | {"reduce_bucket_size": 2.5}}, "reduce_bucket_size is 2.5"),
        ({"zero_optimization": ZERO | {"reduce_bucket_size": float("inf")}}, "reduce_bucket_size is inf"),
        ({"zero_optimization": ZERO | {"offload_optimizer": "cpu"}}, "offload_optimizer is 'cpu'"),
        ({"zero_optimization": ZERO | {"offload_optimizer": {"device": "nvme"}}}, "offload_optimizer is"),
        (GOOD | {"data_types": {"grad_accum_dtype": "bf16"}}, "gradients are accumulated in fp32"),
        (GOOD | {"data_types": 3}, "gradients are accumulated in fp32"),
    ],
)
def test_other_files_are_refused_with_their_reason(document: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_ds_file(document, where="x.json")


def test_a_bucket_may_be_written_as_deepspeed_writes_it() -> None:
    check_ds_file({"zero_optimization": ZERO | {"reduce_bucket_size": 5e8}}, where="x.json")


@pytest.mark.parametrize("name", list_assets("ds_configs"))
def test_every_shipped_file_is_accepted(name: str) -> None:
    document = json.loads(find_asset("ds_configs", name).read_text())
    assert check_ds_file(document, where=name)["zero_optimization"]["overlap_comm"] is False


def test_the_numbers_come_from_the_run_and_the_file_is_left_alone() -> None:
    document = GOOD | {"comment": "why"}
    config = build_ds_config(document, batch=BATCH, precision="fp32", max_grad_norm=0.5)
    assert config["train_batch_size"] == 32
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == GOOD["zero_optimization"]
    assert "comment" not in config
    assert "bf16" not in config
    assert document == GOOD | {"comment": "why"}


def test_bf16_accumulates_gradients_in_fp32() -> None:
    config = build_ds_config(GOOD, batch=BATCH, precision="bf16", max_grad_norm=1.0)
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_a_name_that_begins_like_a_home_folder_is_a_file_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("home/zero.json", "here/~/zero.json", "here/~root"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    assert find_asset("ds_configs", "~/zero.json") == tmp_path / "home" / "zero.json"
    assert find_asset("ds_configs", "./~/zero.json") == tmp_path / "here" / "~" / "zero.json"
    assert find_asset("ds_configs", "./~root") == tmp_path / "here" / "~root"


def test_a_key_that_stands_twice_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "twice.json"
    file.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5, "reduce_bucket_size": 7}}')
    with pytest.raises(ConfigError, match="the key 'reduce_bucket_size' stands twice"):
        read_ds_file(str(file), device="cpu")


@pytest.mark.parametrize("stage", [0, 1, 3, True, "2", None])
def test_only_the_second_stage_of_zero_is_accepted(stage: object) -> None:
    with pytest.raises(ConfigError, match="stage must be 2"):
        check_ds_file({"zero_optimization": ZERO | {"stage": stage}}, where="x.json")
