"""Latents read straight into a batch: the same arrays as through the decoder, the same refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_sets import flip_byte

from synfundus.errors import CorruptShard
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards.reader import Arrays, ShardSetReader, encode_npy
from synfundus.shards.source import LatentSource, all_finite, allocate, npy_header
from synfundus.storage.manifest import ShardEntry, ShardSet, load_shard_set, save_shard_set
from synfundus.storage.tarshard import write_shard

SHAPE = (4, 3, 2)
SCHEMA = DEFAULT_LABEL_SCHEMA
COUNT = 7


def moments_of(number: int) -> NDArray[np.float16]:
    return np.random.default_rng(number).standard_normal(SHAPE).astype(np.float16)


def write(
    folder: Path, *, in_index: bool = True, states: NDArray[np.int16] | None = None, first: bytes | None = None
) -> ShardSet:
    """Write a set of one shard; ``first`` replaces the moments of its first sample."""
    samples = []
    rows = np.zeros((COUNT, len(SCHEMA.labels)), dtype=np.int16)
    for number in range(COUNT):
        labels = {"dr_grade": number % 5, "eye_side": None if number % 3 == 0 else number % 2}
        rows[number] = SCHEMA.encode(labels)
        members = {"json": json.dumps({"labels": labels}).encode(), "moments.npy": encode_npy(moments_of(number))}
        members["flip.npy"] = encode_npy(moments_of(number)[:, :, ::-1])
        if first is not None and number == 0:
            members["moments.npy"] = first
        samples.append((f"k{number}", members))
    stored = states if states is not None else rows if in_index else None
    files = write_shard(
        str(folder / "train" / "000000.tar"), samples, extensions=("json", "moments.npy", "flip.npy"), states=stored
    )
    entry = ShardEntry.of("train/000000.tar", "train", files)
    save_shard_set(ShardSet(str(folder), "latents", SCHEMA, (entry,), properties={"moments_shape": list(SHAPE)}))
    return load_shard_set(str(folder), kind="latents")


def read(shard_set: ShardSet, samples: range, *, with_flip: bool = True) -> Arrays:
    source = LatentSource(
        ShardSetReader(shard_set, split="train"), schema=SCHEMA, moments_shape=SHAPE, with_flip=with_flip
    )
    arrays = allocate(source.layout, len(samples))
    try:
        for row, sample in enumerate(samples):
            source.fill(arrays, row, 0, sample)
    finally:
        source.close()
    return arrays


@pytest.mark.parametrize("with_flip", [True, False])
def test_both_ways_of_reading_give_the_same(tmp_path: Path, with_flip: bool) -> None:
    straight = read(write(tmp_path / "a"), range(COUNT), with_flip=with_flip)
    parsed = read(write(tmp_path / "b", in_index=False), range(COUNT), with_flip=with_flip)
    assert set(straight) == set(parsed) == {"moments", "states"} | ({"flip"} if with_flip else set())
    for name, array in straight.items():
        assert array.dtype == parsed[name].dtype
        assert np.array_equal(array, parsed[name])
    assert np.array_equal(straight["moments"][3], moments_of(3))


def test_labels_come_from_the_index_where_it_has_them(tmp_path: Path) -> None:
    states = np.ones((COUNT, len(SCHEMA.labels)), dtype=np.int16)
    assert (read(write(tmp_path, states=states), range(COUNT))["states"] == 1).all()


def test_states_the_schema_does_not_have_are_refused(tmp_path: Path) -> None:
    for at, value in enumerate((-1, 7)):
        states = np.zeros((COUNT, len(SCHEMA.labels)), dtype=np.int16)
        states[2, 0] = value
        with pytest.raises(CorruptShard, match="do not fit the schema"):
            read(write(tmp_path / str(at), states=states), range(1))


@pytest.mark.parametrize("position", ["header", "first", "last"])
def test_a_flipped_byte_is_found(tmp_path: Path, position: str) -> None:
    shard_set = write(tmp_path)
    reader = ShardSetReader(shard_set, split="train")
    index = reader.shard(0).index
    place = index.member(4, index.extensions.index("moments.npy"))
    at = {"header": 20, "first": len(npy_header(SHAPE)), "last": place.size - 1}[position]
    flip_byte(tmp_path / "train" / "000000.tar", place.offset + at)
    assert read(shard_set, range(4))["moments"].shape == (4, *SHAPE)
    with pytest.raises(CorruptShard, match="sample k4: a member does not match") as caught:
        read(shard_set, range(4, 5))
    assert caught.value.reason == "checksum"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(SHAPE, np.nan, dtype=np.float16), "not finite"),
        (np.full(SHAPE, -np.inf, dtype=np.float16), "not finite"),
        (np.zeros((4, 2, 3), dtype=np.float16), "expected"),
        (np.zeros(SHAPE, dtype=np.float32), "expected"),
        (np.asfortranarray(moments_of(0)), "Fortran"),
    ],
)
def test_moments_of_another_kind_are_refused_by_name(tmp_path: Path, array: NDArray[np.float16], message: str) -> None:
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    shard_set = write(tmp_path, first=stream.getvalue())
    with pytest.raises(CorruptShard, match=message):
        read(shard_set, range(1))
    read(shard_set, range(1, COUNT))


def test_the_header_is_what_numpy_writes() -> None:
    for shape in [(8, 64, 64), (1,), (4, 3, 2), (32, 128, 96)]:
        data = encode_npy(np.zeros(shape, dtype=np.float16))
        assert data == npy_header(shape) + bytes(2 * math.prod(shape))


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_finiteness_is_what_numpy_says(bits: list[int]) -> None:
    array = np.array(bits, dtype=np.uint16).view(np.float16)
    assert all_finite(array) == bool(np.isfinite(array).all())
