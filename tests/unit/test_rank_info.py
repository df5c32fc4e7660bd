"""Reading one's place in the job from the environment."""

from __future__ import annotations

import pytest

from synfundus.distributed.rank_info import (
    RankInfo,
    gpu_index,
    own_cores,
    rank_info,
    require_one_device,
    require_own_gpus,
)
from synfundus.distributed.world import LocalWorld
from synfundus.errors import LaunchError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "host", "MASTER_PORT": "29400"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "gpu03",
    "MASTER_PORT": "12345",
}


def test_without_variables_the_world_is_one() -> None:
    assert rank_info({}) == RankInfo(0, 1, 0, 1, "single")


def test_torchrun_variables_are_read() -> None:
    environment = {**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert rank_info(environment) == RankInfo(5, 8, 1, 4, "torchrun")


def test_srun_variables_are_read() -> None:
    assert rank_info(SLURM) == RankInfo(5, 8, 1, 4, "slurm")


@pytest.mark.parametrize(
    ("counts", "node", "expected"), [("4(x2)", 1, 4), ("3,5", 0, 3), ("3,5", 1, 5), ("2(x3),1", 3, 1), ("8", 0, 8)]
)
def test_nodes_may_have_different_numbers_of_tasks(counts: str, node: int, expected: int) -> None:
    environment = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": str(node)}
    assert rank_info(environment).local_world_size == expected


@pytest.mark.parametrize("counts", ["", "4(x2", "four", "4(x2),", "8"])
def test_counts_of_tasks_that_cannot_be_are_refused(counts: str) -> None:
    with pytest.raises(LaunchError, match="SLURM_STEP_TASKS_PER_NODE"):
        rank_info({**SLURM, "SLURM_STEP_TASKS_PER_NODE": counts})


def test_torchrun_variables_win_over_those_of_the_step_it_runs_in() -> None:
    assert rank_info({**SLURM, **TORCHRUN}).source == "torchrun"


def test_a_batch_script_is_not_a_rank() -> None:
    batch = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert rank_info(batch).source == "single"


def test_a_shell_on_a_node_is_not_a_rank() -> None:
    """Of `srun --pty bash`, and of a salloc that opens its shell as a step, with the job's number of tasks."""
    alone = {**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    pty = {name: value for name, value in alone.items() if not name.startswith("MASTER_")}
    assert rank_info(pty).source == "single"
    interactive = {**SLURM, "SLURM_STEP_ID": "4294967290"}
    assert rank_info(interactive).source == "single"
    assert rank_info(alone).source == "slurm", "a job of one task, started by a batch script"


def test_a_step_of_several_tasks_without_an_address_is_refused() -> None:
    step = {name: value for name, value in SLURM.items() if name != "MASTER_ADDR"}
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set"):
        rank_info(step)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_variables_are_refused_by_name(missing: str) -> None:
    environment = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(LaunchError, match=missing):
        rank_info(environment)


@pytest.mark.parametrize(("name", "value"), [("RANK", "one"), ("WORLD_SIZE", ""), ("RANK", "8"), ("RANK", "-1")])
def test_variables_that_cannot_be_are_refused(name: str, value: str) -> None:
    with pytest.raises(LaunchError):
        rank_info({**TORCHRUN, name: value})


def test_a_local_world_is_alone_in_its_collectives() -> None:
    world = LocalWorld(rank=1, size=2)
    world.barrier()
    assert world.all_gather("x") == ["x"]
    assert world.sum([1, 2.5]) == [1.0, 2.5]
    assert world.any(True)
    assert not world.any(False)


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "index"),
    [(0, 1, 1, 0), (5, 8, 8, 5), (5, 8, 1, 0), (1, 2, 8, 1), (0, 1, 8, 0)],
)
def test_a_rank_takes_the_gpu_of_its_place_or_the_only_one_it_is_shown(
    local_rank: int, local_size: int, visible: int, index: int
) -> None:
    assert gpu_index(local_rank, local_size, visible=visible) == index


def test_fewer_gpus_than_ranks_are_refused_with_both_numbers() -> None:
    with pytest.raises(LaunchError, match="8 ranks of this node see 4 GPUs"):
        gpu_index(2, 8, visible=4)


@pytest.mark.parametrize(
    ("bound", "task", "expected"),
    [
        (8, 8, 8),  # bound to its own
        (64, 8, 8),  # sees those of the whole job
        (4, 8, 4),
        (64, None, 8),
        (2, None, 1),
    ],
)
def test_a_rank_computes_with_the_cores_that_are_its_own(bound: int, task: int | None, expected: int) -> None:
    assert own_cores(8, bound=bound, task=task) == expected


def test_two_ranks_on_one_gpu_are_named_with_it() -> None:
    require_own_gpus([("node1", "GPU-a"), ("node1", "GPU-b"), ("node2", "GPU-a")])
    with pytest.raises(LaunchError, match="ranks 1 and 3 use the same GPU, GPU-b") as caught:
        require_own_gpus([("node1", "GPU-a"), ("node1", "GPU-b"), ("node2", "GPU-a"), ("node1", "GPU-b")])
    assert caught.value.where == "node1"


def test_ranks_that_compute_on_something_else_are_named_with_their_nodes() -> None:
    require_one_device([("node1", "cuda"), ("node1", "cuda")])
    with pytest.raises(LaunchError, match="rank 0 computes on cuda, rank 2 on cpu") as caught:
        require_one_device([("node1", "cuda"), ("node1", "cuda"), ("node2", "cpu"), ("node2", "cpu")])
    assert caught.value.where == "node2"
