"""The account of an epoch adds up, over ranks, resumes and epoch boundaries."""

from __future__ import annotations

import pytest

from synfundus.errors import DataError
from synfundus.shards.batches import Ledger, Quarantined


def lost(position: int, kind: str = "checksum", *, epoch: int = 0, number: int = 0) -> Quarantined:
    return Quarantined(position, "train/000000.tar#1", "damaged", kind=kind, set=number, epoch=epoch)


def test_a_finished_epoch_is_one_row_and_an_unfinished_one_waits() -> None:
    ledger = Ledger([10], ["set"])
    ledger.add([{(0, 0): (4, 4)}, {(0, 0): (4, 3)}], [lost(5)])
    assert ledger.rows(images_seen=8, final=False) == []
    ledger.add([{(0, 0): (1, 1), (0, 1): (3, 3)}, {(0, 0): (1, 0), (0, 1): (3, 3)}], [lost(9, "missing")])
    assert ledger.rows(images_seen=16, final=False) == [
        {
            "images_seen": 16,
            "set": "set",
            "epoch": 0,
            "complete": True,
            "planned": 10,
            "delivered": 8,
            "quarantined": {"checksum": 1, "missing": 1},
        }
    ]
    assert [row["complete"] for row in ledger.rows(images_seen=16, final=True)] == [False]


def test_open_accounts_survive_a_checkpoint() -> None:
    first = Ledger([10, 4], ["a", "b"])
    first.add([{(0, 0): (6, 5), (1, 2): (1, 1)}], [lost(3)])
    assert first.rows(images_seen=7, final=False) == []
    second = Ledger([10, 4], ["a", "b"])
    second.restore(first.to_document())
    second.add([{(0, 0): (4, 4), (1, 2): (3, 3)}], [])
    rows = second.rows(images_seen=14, final=False)
    assert [(row["set"], row["epoch"], row["planned"], row["delivered"]) for row in rows] == [
        ("a", 0, 10, 9),
        ("b", 2, 4, 4),
    ]


@pytest.mark.parametrize("tally", [{(0, 0): (6, 5)}, {(0, 0): (11, 11)}])
def test_an_account_that_does_not_add_up_is_an_error(tally: dict[tuple[int, int], tuple[int, int]]) -> None:
    ledger = Ledger([10], ["set"])
    ledger.add([tally], [])
    with pytest.raises(DataError, match="does not add up"):
        ledger.rows(images_seen=6, final=False)
