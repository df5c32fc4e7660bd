"""Inputs = samples + rejects: a set that does not add up is not published."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from synfundus.errors import DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages.prepare import job
from synfundus.stages.prepare.places import PreparePaths
from synfundus.storage.manifest import ShardEntry, is_complete
from synfundus.telemetry.console import SilentConsole

ENTRY = ShardEntry("train/000000.tar", "train", 2, 10, "0" * 64, "0" * 64)
REJECT = {"key": "k", "stage": "table", "reason": "missing_file"}


def rank_of(folder: Path, *, inputs: int) -> Any:
    paths = PreparePaths(str(folder / "photos"), None, str(folder / "set"), str(folder / "crosswalk"))
    rank = cast(Any, job._Rank0(cast(Any, None), 0, paths, SilentConsole()))
    rank._plan = SimpleNamespace(num_inputs=inputs, rejects=[SimpleNamespace(reason="missing_file")])
    rank._plan.schema = DEFAULT_LABEL_SCHEMA
    rank._decision = SimpleNamespace(kept=["a", "b"], duplicates=[], properties={})
    return rank


@pytest.mark.parametrize("inputs", [2, 4])
def test_a_set_that_does_not_add_up_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: int
) -> None:
    monkeypatch.setattr(job, "finished_entries", lambda paths, tasks: (ENTRY,))
    monkeypatch.setattr(job, "write_crosswalk", lambda paths, plan, decision: [REJECT])
    monkeypatch.setattr(job, "report", lambda *_: None)
    with pytest.raises(DataError, match=rf"2 samples \+ 1 rejects is not {inputs} inputs"):
        rank_of(tmp_path, inputs=inputs).publish()
    assert not is_complete(str(tmp_path / "set"))
    rank_of(tmp_path, inputs=3).publish()
    assert is_complete(str(tmp_path / "set"))


@pytest.mark.parametrize("inputs", [2, 4])
def test_no_shard_is_written_where_a_photograph_is_in_no_count(tmp_path: Path, inputs: int) -> None:
    rank = rank_of(tmp_path, inputs=inputs)
    with pytest.raises(DataError, match=rf"2 samples \+ 1 rejects is not {inputs} inputs"):
        rank._check(rank._decision, SimpleNamespace(unusable=[]))
    sound = rank_of(tmp_path, inputs=4)
    sound._check(sound._decision, SimpleNamespace(unusable=[SimpleNamespace(reason="damaged")]))
