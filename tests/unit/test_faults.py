"""What becomes of a job whose rank failed: decided from the reports its ranks left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synfundus.launch.faults import decide, main


@pytest.mark.parametrize(
    ("before", "earlier", "again", "reason"),
    [
        ([], 0, True, "a rank failed on b: again without this node"),
        (["b"], 1, True, "a rank failed on b: again without this node"),
        (["a"], 1, False, "on b and, since the last checkpoint, on a: it is not the node"),
        (["b", "a", "c"], 3, False, "on a, c: it is not the node"),
        ([], 3, True, "again"),
        ([], 4, False, "after 4 earlier faults (SYNFUNDUS_MAX_FAULTS is 4)"),
    ],
)
def test_a_fault_is_a_matter_of_its_node_until_another_node_has_it_too(
    before: list[str], earlier: int, again: bool, reason: str
) -> None:
    decision = decide("b", before=before, earlier=earlier, most=4)
    assert decision.again is again
    assert reason in decision.reason


def report(folder: Path, name: str, text: str, *, at: int) -> None:
    (folder / name).write_text(text)
    os.utime(folder / name, ns=(at, at))


def test_the_node_of_the_first_report_is_left_out_with_those_left_out_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, "node1.cluster.0", "Fatal Python error: Aborted\n", at=2000)
    report(tmp_path, "node2.cluster.5", "CUDA error: uncorrectable ECC error\n", at=1000)
    report(tmp_path, "node3.cluster.8", "", at=10)
    assert main("node9,node8", tmp_path, 4) == 0
    said = capsys.readouterr()
    assert said.out == "node9,node8,node2.cluster\n"
    assert "uncorrectable ECC" in said.err
    assert "a rank failed on node2.cluster: again without this node" in said.err
    assert (tmp_path / "history").read_text() == (tmp_path / "all").read_text() == "node2.cluster\n"


def test_the_second_node_ends_it_unless_a_checkpoint_came_between(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for node, code in (("node1", 0), ("node2", 1)):
        report(tmp_path, f"{node}.0", "Aborted\n", at=1)
        assert main("(null)", tmp_path, 4) == code
        (tmp_path / f"{node}.0").unlink()
    assert capsys.readouterr().out == "node1\n"
    (tmp_path / "history").unlink()  # as a checkpoint does
    report(tmp_path, "node3.0", "Aborted\n", at=1)
    assert main("node1", tmp_path, 4) == 0
    assert capsys.readouterr().out == "node1,node3\n"
    (tmp_path / "history").unlink()
    assert main("node1", tmp_path, 3) == 1, "three faults before"


def test_without_a_report_the_job_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, "node1.0", "", at=1)
    assert main("(null)", tmp_path, 4) == 1
    assert not tmp_path.exists(), "nothing is left beside the log"
    assert main("(null)", tmp_path, 4) == 1
    assert capsys.readouterr() == ("", "")
