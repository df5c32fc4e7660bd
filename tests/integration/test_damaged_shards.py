"""Two thousand damaged sets: every sample is delivered as it was or quarantined by name, and inspect finds each."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from damaged_shards import KINDS, Damaged, Original, source_of, write_original

from synfundus.labels.counts import count_labels
from synfundus.shards.batches import BatchReader
from synfundus.shards.set_survey import SetSurvey
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan

SLOWEST_CASE_S = 10.0
SHORT_CASES = 10
STRICTER = frozenset({"two shards swapped", "a key twice", "members apart"})
"""Where a plain reader of the tar sees what a reader by index does not."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    folder = tmp_path_factory.mktemp("original")
    return [
        write_original(folder / "images", "images", with_states=False),
        write_original(folder / "latents", "latents", with_states=False),
        write_original(folder / "with_states", "latents", with_states=True),
    ]


def sets_for(kind: str, originals: list[Original]) -> list[Original]:
    wanted = KINDS[kind][0]
    if wanted == "without states":  # where the index holds the states, labels are not read from the documents
        return [original for original in originals if not original.with_states]
    return [original for original in originals if wanted in ("both", original.kind)]


def read_epoch(original: Original, damaged: Damaged) -> Counter[str]:
    """Read one epoch; return how many samples were delivered and quarantined, and fail on anything silent."""
    source = source_of(damaged.shard_set)
    plan = ReadingPlan(
        shard_sizes=source.shard_sizes, identity=damaged.shard_set.identity, split="train", seed=5, num_streams=8
    )
    reader = BatchReader(MixedPlan([plan], weights=[1.0], seed=5), [source], augment=None)
    found: Counter[str] = Counter()
    try:
        for first in range(0, 100, 20):
            positions = np.arange(first, first + 20)
            batch = reader.read(positions)
            place = plan.locate(positions)
            named = {sample.position: sample for sample in batch.quarantined}
            for row, (shard, sample) in enumerate(zip(place.shard.tolist(), place.sample.tolist(), strict=True)):
                good = (shard, sample) in damaged.good
                assert batch.weights[row] == float(good), ((shard, sample), named.get(first + row))
                assert (first + row in named) is not good
                found["delivered" if good else "quarantined"] += 1
                if good:
                    for name, expected in original.arrays[(shard, sample)].items():
                        assert np.array_equal(batch.arrays[name][row], expected), ((shard, sample), name)
                else:
                    assert named[first + row].place.endswith(f"train/{shard:06d}.tar#{sample}")
                    assert named[first + row].reason
    finally:
        reader.close()
    return found


def survey(damaged: Damaged) -> SetSurvey:
    found = SetSurvey(damaged.shard_set, verify=True)
    count_labels(found.label_rows(lambda amount: None), damaged.shard_set.label_schema)
    return found


def run_case(kind: str, number: int, originals: list[Original], folder: Path) -> Counter[str]:
    """Damage a set, read it as the trainer does and as inspect does; return the account of the epoch."""
    original = sets_for(kind, originals)[number % len(sets_for(kind, originals))]
    random = np.random.default_rng([number, *kind.encode()])
    damaged = KINDS[kind][2](original, folder / "copy", random)
    began = time.monotonic()
    account = read_epoch(original, damaged)
    inspected = survey(damaged)
    assert inspected.problems, "inspect --verify saw nothing"
    stricter = kind in STRICTER or original.with_states  # it reads the documents, too
    assert inspected.good == account["delivered"] or stricter, (inspected.good, inspected.problems[:5])
    assert inspected.good <= account["delivered"]
    assert time.monotonic() - began < SLOWEST_CASE_S
    assert account.total() == 100
    return account


def test_the_undamaged_sets_are_delivered_whole(originals: list[Original]) -> None:
    for original in originals:
        whole = Damaged(original.shard_set, set(original.samples))
        assert read_epoch(original, whole) == {"delivered": 100}
        assert not survey(whole).problems


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_is_silent(kind: str, originals: list[Original], tmp_path: Path) -> None:
    accounts = [run_case(kind, number, originals, tmp_path) for number in range(SHORT_CASES)]
    assert any(account["delivered"] for account in accounts), "good samples of a damaged set are used"


def test_the_kinds_make_two_thousand() -> None:
    assert sum(cases for _, cases, _ in KINDS.values()) == 2000


def test_the_campaign_itself_can_fail(
    originals: list[Original], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checksums switched off, flipped bits come through, and the campaign says so."""

    class EqualToAll(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = int.__hash__

    monkeypatch.setattr("synfundus.storage.tarshard.crc32", lambda data, value=0: EqualToAll())

    def campaign() -> None:
        for number in range(20):
            run_case("one flipped bit", number, originals, tmp_path)

    with pytest.raises(AssertionError):
        campaign()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_damaged_sets(originals: list[Original], tmp_path: Path) -> None:
    passed: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    failures: list[str] = []
    for kind, (_, cases, _) in KINDS.items():
        for number in range(cases):
            try:
                samples += run_case(kind, number, originals, tmp_path)
                passed[kind] += 1
            except Exception as error:  # noqa: BLE001 - every kind of failure is counted
                failures.append(f"{kind} {number}: {type(error).__name__}: {error}")
    print_figures(passed, samples)
    assert failures == []


def print_figures(passed: Mapping[str, int], samples: Mapping[str, int]) -> None:
    row = {"name": "damaged sets", "passed": sum(passed.values()), "of": 2000, "kinds": dict(passed), **samples}
    print(json.dumps(row))
