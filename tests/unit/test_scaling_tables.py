"""The paper plan: its tables are those of the document, its failures those of the closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scaling_tables
from benchmarks.failures import LLAMA_3, Costs, simulate, useful_share, young_interval_h
from benchmarks.rounding import gradients, relative_error, ring_mean, tree_mean
from synfundus.distributed.world import LocalWorld
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards.shard_plan import NUM_STREAMS, ReadingPlan, rank_positions
from synfundus.stages.plan import job as plan
from synfundus.storage.manifest import MANIFEST_NAME, ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.telemetry.console import SilentConsole

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
COSTS = Costs(stall_h=5 / 60, restart_h=10 / 60)


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """The tables as the document has them."""
    return scaling_tables.tables_in(DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", scaling_tables.TABLES)
def test_a_table_of_the_document_is_what_the_script_prints_now(name: str, written: dict[str, str]) -> None:
    assert written[name] == scaling_tables.TABLES[name](), "run: python -m benchmarks.scaling_tables docs/scaling.md"


def test_the_document_has_no_other_table_and_filling_it_changes_nothing_else() -> None:
    text = "before\n<!-- table: assumed -->\nold\n<!-- end -->\nafter\n"
    filled = scaling_tables.filled(text)
    assert filled.startswith("before\n<!-- table: assumed -->\n| assumed |")
    assert filled.endswith("|\n<!-- end -->\nafter\n")
    assert scaling_tables.filled(filled) == filled
    assert set(scaling_tables.tables_in(DOCUMENT.read_text(encoding="utf-8"))) == set(scaling_tables.TABLES)


def test_the_tables_say_what_the_verb_says(written: dict[str, str]) -> None:
    launch = ("launch.nodes=8", "launch.procs_per_node=8", "train.loop.global_batch_size=256")
    said = plan.run(scaling_tables.preset("fundus256", *launch), LocalWorld(), SilentConsole())
    summary = scaling_tables.planned("fundus256", gpus=64, batch=256)
    for key in ("images_per_s", "hours", "traffic_bytes", "checkpoint_bytes", "cost", "network_s"):
        assert summary[key] == said[key]
    row = next(row for row in written["runs"].splitlines() if row.startswith("| fundus256 | 64 | 256 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-3:] == [
        scaling_tables.number(said["hours"]),
        f"{said['gpu_hours']:,.0f}",
        f"{said['cost']:,.0f}",
    ]


@pytest.mark.parametrize("gpus", [8, 24, 64, 256, 768, 1024])
def test_as_many_nodes_fetch_a_shard_as_the_order_sends_there(gpus: int) -> None:
    batch, per_node = 256 * gpus, scaling_tables.GPUS_A_NODE
    order = ReadingPlan(shard_sizes=[100] * NUM_STREAMS, identity="x", split="train", seed=0)
    fetched = 0
    for node in range(gpus // per_node):
        ranks = range(node * per_node, (node + 1) * per_node)
        parts = [
            rank_positions(images_seen=0, global_batch_size=batch, rank=rank, world_size=gpus)[: 256 * 100 // gpus + 1]
            for rank in ranks
        ]
        positions = np.concatenate(parts)
        fetched += len(np.unique(order.locate(positions[positions < order.num_samples]).shard))
    assert fetched / NUM_STREAMS == scaling_tables.copies(gpus)


def test_a_manifest_grows_by_what_the_table_counts(tmp_path: Path) -> None:
    def size(count: int) -> int:
        entries = [
            ShardEntry(shard_name("train", number), "train", 10_000, 10**9, "0" * 64, "0" * 64)
            for number in range(count)
        ]
        save_shard_set(ShardSet(str(tmp_path), "images", DEFAULT_LABEL_SCHEMA, tuple(entries), {}, {}))
        return (tmp_path / MANIFEST_NAME).stat().st_size

    assert size(70) - size(20) == scaling_tables.manifest_bytes(70) - scaling_tables.manifest_bytes(20)


def test_the_rate_of_a_record_is_its_failures_by_its_gpu_days() -> None:
    assert LLAMA_3.mean_time_h(LLAMA_3.gpus) * LLAMA_3.failures == pytest.approx(24 * LLAMA_3.days)
    assert LLAMA_3.mean_time_h(8) == pytest.approx(2 * LLAMA_3.mean_time_h(16))


@pytest.mark.parametrize(("mean_h", "best_min"), [(24.0, 117), (6.0, 57), (0.25, 9.1)])
def test_the_best_interval_is_the_published_one(mean_h: float, best_min: float) -> None:
    """Daly 2006, figures 3 to 5: 5 minutes for a save, 10 for a restart."""
    intervals = np.linspace(0.5, 240, 20_000) / 60
    shares = [useful_share(interval, mean_h, COSTS) for interval in intervals]
    assert 60 * intervals[int(np.argmax(shares))] == pytest.approx(best_min, rel=0.01)


def test_youngs_interval_is_the_best_one_where_saving_is_short() -> None:
    costs = Costs(stall_h=1 / 3600, restart_h=0.1)
    young = young_interval_h(50.0, costs.stall_h)
    best = max(useful_share(young * factor, 50.0, costs) for factor in np.linspace(0.5, 2, 301))
    assert best - useful_share(young, 50.0, costs) < 1e-6


@pytest.mark.parametrize("mean_h", [0.5, 3.0, 24.0])
@pytest.mark.parametrize("interval_h", [0.2, 1.0, 2.0])
def test_simulated_failures_cost_what_the_closed_form_says(mean_h: float, interval_h: float) -> None:
    shares = [
        4000
        * interval_h
        / simulate(work_h=4000 * interval_h, interval_h=interval_h, mean_time_h=mean_h, costs=COSTS, seed=seed).wall_h
        for seed in range(4)
    ]
    assert np.mean(shares) == pytest.approx(useful_share(interval_h, mean_h, COSTS), rel=0.03)


def test_every_hour_of_a_simulated_run_is_accounted_for_and_failures_come_at_their_rate() -> None:
    costs = Costs(stall_h=0.02, restart_h=0.3, behind_h=0.4)
    met = simulate(work_h=5000, interval_h=1.0, mean_time_h=4.0, costs=costs, seed=1)
    assert met.wall_h == pytest.approx(5000 + met.stalled_h + met.lost_h + met.restarting_h)
    assert met.failures == pytest.approx(met.wall_h / 4.0, rel=0.05)
    assert met == simulate(work_h=5000, interval_h=1.0, mean_time_h=4.0, costs=costs, seed=1)


def test_a_run_without_failures_loses_nothing_but_its_saves() -> None:
    met = simulate(work_h=100, interval_h=1.0, mean_time_h=1e12, costs=Costs(0.01, 0.1, 0.5), seed=0)
    assert (met.failures, met.lost_h, met.restarting_h) == (0, 0.0, 0.0)
    assert met.wall_h == pytest.approx(101.0)


def test_a_save_still_being_written_does_not_count() -> None:
    """With rare failures a failure takes back half a stretch on average, and a whole one if the last is not written."""
    interval, behind, mean = 1.0, 0.5, 40.0
    for costs in (Costs(0.0, 0.0), Costs(0.0, 0.0, behind_h=behind)):
        met = [simulate(work_h=200_000, interval_h=interval, mean_time_h=mean, costs=costs, seed=s) for s in range(3)]
        lost = sum(one.lost_h for one in met) / sum(one.failures for one in met)
        assert lost == pytest.approx(interval / 2 + costs.behind_h * interval, rel=0.05)


def test_a_ring_in_bf16_stops_adding_when_the_sum_is_256_times_what_comes() -> None:
    for ranks, mean in ((8, 1.0), (256, 1.0), (1024, 0.25)):
        assert (ring_mean(torch.ones(ranks, 3, dtype=torch.bfloat16)) == mean).all()
        assert (tree_mean(torch.ones(ranks, 3, dtype=torch.bfloat16)) == 1.0).all()


def test_added_exactly_nothing_is_lost_and_a_ring_loses_more_with_every_rank() -> None:
    errors = []
    for ranks in (8, 64, 1024):
        gradient = gradients(ranks, spread=10.0)
        assert relative_error(ring_mean(gradient.double()), gradient) < 1e-12
        errors.append(relative_error(ring_mean(gradient), gradient))
        assert relative_error(tree_mean(gradient), gradient) < 0.01
    assert errors == sorted(errors)
