from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.photographs.ingest import (
    Photograph,
    drop_duplicates,
    is_picture_name,
    match_files,
    plan_samples,
    plan_shards,
    safe_name,
    sample_key,
    split_patients,
)
from synfundus.photographs.label_table import LabelTable, read_label_table
from synfundus.storage.tarshard import KEY_PATTERN

SCHEMA = LabelSchema((LabelSpec("dr_grade", 5),))
SECRET = bytes(range(32))


def table_of(*lines: str) -> LabelTable:
    return read_label_table("\n".join(["file,patient_id,dr_grade", *lines]).encode(), SCHEMA, None, where="t.csv")


def photograph(name: str, patient: str = "", size: int = 1) -> Photograph:
    return Photograph(name, patient, {"dr_grade": None}, size)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.png", "a.png"),
        ("./sub/a.png", "sub/a.png"),
        ("sub\\a.png", "sub/a.png"),
        ("../a.png", None),
        ("sub/../../a.png", None),
        ("/etc/passwd", None),
        ("\\\\server\\a.png", None),
        ("C:\\a.png", None),
        ("s3://bucket/a.png", None),
        ("a//b.png", None),
        ("a\0.png", None),
        ("..", None),
        ("", None),
        ("..a.png", "..a.png"),
    ],
)
def test_a_name_stays_below_the_source_folder(name: str, safe: str | None) -> None:
    assert safe_name(name) == safe


def test_rows_and_files_are_brought_together_and_nothing_is_lost() -> None:
    table = table_of("a.png,P1,1", "b.png,P1,2", "gone.png,P2,0", "../x.png,P2,0", "a.png,P9,3", "c.png,P3,77", "short")
    files = {"a.png": 10, "b.png": 20, "c.png": 5, "extra.JPG": 7, "notes.txt": 3, "labels.csv": 9}
    photographs, rejects = match_files(table, files)
    assert [(p.source, p.patient, p.size_bytes) for p in photographs] == [("a.png", "P1", 10), ("b.png", "P1", 20)]
    assert sorted((r.source, r.reason) for r in rejects) == [
        ("../x.png", "unsafe_name"),
        ("a.png (line 6)", "duplicate_row"),
        ("c.png", "unknown_label_value"),
        ("extra.JPG", "not_in_table"),
        ("gone.png", "missing_file"),
        ("line 8", "malformed_row"),
    ]
    assert len(photographs) + len(rejects) == 7 + 1
    assert [one.also_patients for one in photographs] == [("P9",), ()]
    (again,) = [reject for reject in rejects if reject.reason == "duplicate_row"]
    assert again.detail == "first in line 2; other labels; other patient"


def test_a_link_to_nothing_is_a_named_reject_with_a_row_or_without() -> None:
    table = table_of("a.png,P1,1", "gone.png,P1,2", "gone.png,P1,2")
    photographs, rejects = match_files(table, {"a.png": 10, "gone.png": -1, "more.jpg": -1, "notes.txt": -1})
    assert [one.source for one in photographs] == ["a.png"]
    assert [(one.source, one.reason) for one in rejects] == [("gone.png", "broken_link")] * 2 + [
        ("more.jpg", "broken_link")
    ]


def test_composed_and_decomposed_names_are_the_same_file() -> None:
    name = "müller.png"
    (found,), rejects = match_files(table_of(f"{name},P,1"), {unicodedata.normalize("NFD", name): 1})
    assert found.source == unicodedata.normalize("NFD", name)
    assert rejects == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PNG", True),
        ("x/y.tiff", True),
        ("a.jfif", True),
        ("a.JPE", True),
        ("a.ppm", True),
        ("a.gif", False),
        (".hidden.png", False),
        ("x/.y/z.png", False),
        ("a.csv", False),
    ],
)
def test_pictures_are_known_by_their_suffix(name: str, expected: bool) -> None:
    assert is_picture_name(name) is expected


@pytest.mark.parametrize(
    "name", ["a.jfif", "a.JPE", "x/a.heic", "a.gif", "a.jp2", "a.ppm.gz", "a.avif", "a.NEF", "a.psd"]
)
def test_a_picture_without_a_row_is_counted_whether_it_can_be_decoded_or_not(name: str) -> None:
    _, rejects = match_files(table_of("b.png,P,1"), {"b.png": 1, name: 1, "notes.txt": 1, "t.csv.gz": 1, "x/.a.gif": 1})
    assert [(reject.source, reject.reason) for reject in rejects] == [(name, "not_in_table")]


def test_the_first_of_identical_files_and_of_identical_images_stays() -> None:
    samples = plan_samples([photograph(name, f"P{name}") for name in "abcdef"], SECRET)
    files = {"a": "x", "b": "y", "c": "x", "d": "z", "e": "x", "f": "v"}
    images = {"a": "1", "b": "2", "c": "1", "d": "2", "e": "1", "f": "3"}
    contents = {sample.key: (files[sample.source], images[sample.source]) for sample in samples}
    kept, rejects, pairs = drop_duplicates(samples, contents)
    assert [sample.source for sample in kept] == ["a", "b", "f"]
    assert [(r.source, r.patient, r.reason, r.detail) for r in rejects] == [
        ("c", "Pc", "duplicate_of", "same file as a; other patient"),
        ("d", "Pd", "duplicate_of", "same pixels as b; other patient"),
        ("e", "Pe", "duplicate_of", "same file as a; other patient"),
    ]
    assert [(first.source, second.source) for first, second in pairs] == [("a", "c"), ("b", "d"), ("a", "e")]


@given(st.integers(1, 300), st.lists(st.sampled_from(["train", "val", "test"]), max_size=300))
def test_patients_whose_split_is_given_keep_it_and_the_others_make_up_for_them(number: int, wanted: list[str]) -> None:
    groups = [f"P{index}" for index in range(number)]
    given_splits = dict(zip(groups, wanted, strict=False))
    splits = split_patients(groups, (0.6, 0.2, 0.2), 3, given=given_splits)
    assert set(splits) == set(groups)
    assert all(splits[group] == split for group, split in given_splits.items())
    counts, given_counts = Counter(splits.values()), Counter(given_splits.values())
    for split, fraction in zip(("train", "val", "test"), (0.6, 0.2, 0.2), strict=True):
        over = any(given_counts[name] > number * share for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)))
        assert over or abs(counts[split] - number * fraction) < 2


def test_a_duplicate_with_other_labels_says_so() -> None:
    first, second = photograph("a"), Photograph("b", "", {"dr_grade": 2}, 1)
    samples = plan_samples([first, second], SECRET)
    _, (reject,), _ = drop_duplicates(samples, {sample.key: ("x", "y") for sample in samples})
    assert reject.detail == "same file as a; other labels"


@given(
    st.integers(1, 400),
    st.sampled_from([(0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33), (0.9, 0.05, 0.05)]),
    st.integers(0, 5),
)
def test_patients_are_cut_by_exact_fractions(number: int, fractions: tuple[float, float, float], seed: int) -> None:
    splits = split_patients([f"P{i}" for i in range(number)], fractions, seed)
    counts = Counter(splits.values())
    assert len(splits) == number
    for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
        assert abs(counts[split] - number * fraction) < 2
        if fraction == 0:
            assert counts[split] == 0
        elif number >= 3:
            assert counts[split] > 0
    if number >= 100:
        assert all(abs(counts[s] - number * f) < 1 for s, f in zip(("train", "val", "test"), fractions, strict=True))


def test_the_split_depends_on_seed_and_patients_alone() -> None:
    groups = [f"P{i}" for i in range(200)]
    split = split_patients(groups, (0.8, 0.1, 0.1), 1)
    assert split == split_patients([*reversed(groups), "P5"], (0.8, 0.1, 0.1), 1)
    assert split != split_patients(groups, (0.8, 0.1, 0.1), 2)


def test_a_patient_never_meets_a_photograph_of_the_same_name() -> None:
    first, second = plan_samples([photograph("P1"), photograph("x.png", "P1")], SECRET)
    assert first.patient_group != second.patient_group


def test_keys_are_well_formed_hard_to_guess_and_repeatable() -> None:
    keys = {sample_key(SECRET, f"IMG_{i}.png") for i in range(2000)}
    assert len(keys) == 2000
    assert all(KEY_PATTERN.match(key) and len(key) == 26 for key in keys)
    assert sample_key(SECRET, "IMG_1.png") in keys
    assert sample_key(bytes(32), "IMG_1.png") not in keys


@given(st.integers(0, 97), st.integers(1, 20))
def test_shards_hold_every_photograph_once_in_the_order_of_keys(number: int, max_samples: int) -> None:
    samples = plan_samples([photograph(f"{i}.png", f"P{i // 3}") for i in range(number)], SECRET)
    split_of_patient = split_patients((sample.patient_group for sample in samples), (0.8, 0.1, 0.1), 0)
    splits = {sample.key: split_of_patient[sample.patient_group] for sample in samples}
    shards = plan_shards(samples, splits, max_samples=max_samples)
    assert sorted(s.source for shard in shards for s in shard.samples) == sorted(s.source for s in samples)
    by_patient: dict[str, set[str]] = {}
    for shard in shards:
        assert 0 < len(shard.samples) <= max_samples
        for sample in shard.samples:
            by_patient.setdefault(sample.patient, set()).add(shard.split)
    assert all(len(found) == 1 for found in by_patient.values())
    for split in ("train", "val", "test"):
        keys = [s.key for shard in shards if shard.split == split for s in shard.samples]
        assert keys == sorted(keys)
        sizes = [len(shard.samples) for shard in shards if shard.split == split]
        assert not sizes or max(sizes) - min(sizes) <= 1
