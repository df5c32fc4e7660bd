"""Members become arrays by an explicit table; nothing that could run code is ever decoded."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sets import encode_png, flip_byte, moments_of, numbered_samples, write_numbered_set, write_set

from synfundus.errors import CorruptShard, StorageError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards import reader as reader_module
from synfundus.shards.reader import ShardSetReader, decode_image, decode_json, decode_npy, encode_npy
from synfundus.shards.source import ImageDecoder, LatentDecoder
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set

PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))


def test_arrays_come_back_and_the_same_array_has_the_same_bytes() -> None:
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert np.array_equal(decode_npy(encode_npy(array), where="x"), array)
    assert encode_npy(array) == encode_npy(np.asfortranarray(array))


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    stream = io.BytesIO()
    np.save(stream, np.array([Evil(str(trap))], dtype=object), allow_pickle=True)
    for data in (stream.getvalue(), pickle.dumps(Evil(str(trap)))):
        with pytest.raises(CorruptShard, match="not a readable array"):
            decode_npy(data, where="x")
    assert not trap.exists()


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", encode_npy(np.zeros((8, 8)))[:-10], b"x" * 200])
def test_damaged_arrays_are_corrupt_shards(data: bytes) -> None:
    with pytest.raises(CorruptShard, match="not a readable array"):
        decode_npy(data, where="x")


def test_rgb_images_of_the_allowed_formats_are_decoded_and_others_refused() -> None:
    assert np.array_equal(decode_image(encode_png(PIXELS), where="x"), PIXELS)
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "webp", lossless=True)
    assert np.array_equal(decode_image(stream.getvalue(), where="x"), PIXELS)
    grey = io.BytesIO()
    Image.fromarray(PIXELS[:, :, 0]).save(grey, "png")
    with pytest.raises(CorruptShard, match="not an 8-bit RGB image"):
        decode_image(grey.getvalue(), where="x")


def test_other_formats_and_damaged_images_are_refused() -> None:
    tiff = io.BytesIO()
    Image.fromarray(PIXELS).save(tiff, "tiff")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for data in (tiff.getvalue(), b"", b"no image", encode_png(noise)[:3000]):
        with pytest.raises(CorruptShard, match="not a readable image") as caught:
            decode_image(data, where="set/train/000000.tar#3")
        assert caught.value.where == "set/train/000000.tar#3"


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"3", b"\xff"])
def test_a_sample_document_must_be_a_json_object(data: bytes) -> None:
    with pytest.raises(CorruptShard):
        decode_json(data, where="x")


def latent_members(**changes: bytes | None) -> dict[str, bytes]:
    members: dict[str, bytes | None] = {
        "moments.npy": encode_npy(moments_of(3)),
        "json": json.dumps({"labels": {"dr_grade": 2, "eye_side": None}}).encode(),
    }
    members.update({name.replace("__", "."): data for name, data in changes.items()})
    return {name: data for name, data in members.items() if data is not None}


def test_a_latent_sample_is_moments_and_states() -> None:
    decode = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=False)
    arrays = decode("k", latent_members(), "x")
    assert set(arrays) == {"moments", "states"}
    assert np.array_equal(arrays["moments"], moments_of(3))
    assert arrays["states"].tolist() == [3, *[0] * 15]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (latent_members(json=None), "lacks its member .json"),
        (latent_members(moments__npy=None), "lacks its member .moments.npy"),
        (latent_members(json=b"{}"), "lacks its labels"),
        (latent_members(json=b'{"labels": {"dr_grade": 9}}'), "labels do not fit"),
        (latent_members(json=b'{"labels": {"dr_grade": "2"}}'), "labels do not fit"),
        (latent_members(moments__npy=encode_npy(np.zeros((4, 2, 3), np.float16))), r"shape \(4, 2, 3\)"),
        (latent_members(moments__npy=encode_npy(np.zeros((4, 2, 2), np.float32))), "float32"),
        (latent_members(moments__npy=encode_npy(np.full((4, 2, 2), np.inf, np.float16))), "not finite"),
    ],
)
def test_a_latent_sample_that_does_not_fit_is_named(members: dict[str, bytes], words: str) -> None:
    decode = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=False)
    with pytest.raises(CorruptShard, match=words) as caught:
        decode("k", members, "place")
    assert caught.value.where == "place"


def test_a_label_the_schema_lacks_makes_a_corrupt_sample() -> None:
    decode = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=False)
    with pytest.raises(CorruptShard, match="labels do not fit"):
        decode("k", latent_members(json=b'{"labels": {"is_cat": 1}}'), "place")


def test_mirrored_moments_are_needed_only_where_they_are_asked_for() -> None:
    decode = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=True)
    flipped = latent_members(flip__npy=encode_npy(-moments_of(3)))
    assert np.array_equal(decode("k", flipped, "x")["flip"], -moments_of(3))
    with pytest.raises(CorruptShard, match=r"lacks its member \.flip\.npy"):
        decode("k", latent_members(), "x")


def test_an_image_sample_is_pixels_and_states() -> None:
    decode = ImageDecoder(schema=DEFAULT_LABEL_SCHEMA, image_size_px=4)
    members = {"png": encode_png(PIXELS), "json": b'{"labels": {"eye_side": 1}}'}
    arrays = decode("k", members, "x")
    assert np.array_equal(arrays["pixels"], PIXELS)
    assert arrays["states"][-1] == 2
    with pytest.raises(CorruptShard, match=r"image of \(4, 4, 3\), expected 8 px"):
        ImageDecoder(schema=DEFAULT_LABEL_SCHEMA, image_size_px=8)("k", members, "x")
    with pytest.raises(CorruptShard, match=r"needs an image and a \.json"):
        decode("k", {"pkl": b"", "json": b"{}"}, "x")


def test_samples_are_found_by_shard_and_number(tmp_path: Path) -> None:
    shard_set = write_numbered_set(tmp_path, [3, 0, 4])
    reader = ShardSetReader(shard_set, split="train")
    assert reader.shard_sizes == [3, 0, 4]
    for shard, sample, number in ((2, 3, 6), (0, 0, 0), (2, 0, 3)):
        key, members = reader.read(shard, sample)
        assert key == reader.key(shard, sample) == f"s{number:05d}"
        assert np.array_equal(decode_npy(members["moments.npy"], where="x"), moments_of(number))
    assert reader.sample_name(2, 1) == f"{tmp_path}/train/000002.tar#1"
    reader.close()


def test_a_shard_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    shard_set = write_numbered_set(tmp_path, [3, 4])
    for name in ("000000.tar", "000000.idx.npz"):
        (tmp_path / "train" / name).write_bytes((tmp_path / "train" / name.replace("0.", "1.", 1)).read_bytes())
    with pytest.raises(CorruptShard, match="does not match the manifest"):
        ShardSetReader(shard_set, split="train").read(0, 0)


def test_an_index_with_another_number_of_samples_is_refused(tmp_path: Path) -> None:
    write_numbered_set(tmp_path, [3])
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"num_samples": 3', '"num_samples": 4'))
    shard_set = load_shard_set(str(tmp_path), kind="latents")
    with pytest.raises(CorruptShard, match="index lists 3 samples, the manifest 4"):
        ShardSetReader(shard_set, split="train").read(0, 0)


def test_the_number_of_remembered_samples_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_INDEXED_SAMPLES", 4)
    reader = ShardSetReader(write_numbered_set(tmp_path, [2] * 5 + [9]), split="train")
    for shard in (0, 1, 2, 3, 0, 5, 4, 0):
        assert reader.read(shard, 0)[0] == f"s{2 * shard:05d}"
        assert len(reader._open) <= 2
    assert list(reader._open) == [4, 0]
    reader.close()
    assert not reader._open


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_an_index_that_is_read_wrong_once_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = write_numbered_set(tmp_path, [2, 2])
    faults: Iterator[bytes | OSError] = iter([b"not an index", OSError(errno.EIO, "Input/output error")])
    read_bytes = filesystem.read_bytes

    def read(url: str) -> bytes:
        fault = next(faults, None)
        if isinstance(fault, OSError):
            raise StorageError("cannot read", where=url) from fault
        return fault or read_bytes(url)

    monkeypatch.setattr(filesystem, "read_bytes", read)
    reader = ShardSetReader(shard_set, split="train")
    assert [reader.read(shard, 0)[0] for shard in (0, 1)] == ["s00000", "s00002"]
    assert next(faults, None) is None


def test_threads_that_want_the_same_shard_open_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_set = write_numbered_set(tmp_path, [2, 0, 2])
    opened: list[str] = []
    read_bytes = filesystem.read_bytes

    def read(url: str) -> bytes:
        opened.append(url)
        time.sleep(0.05)
        return read_bytes(url)

    monkeypatch.setattr(filesystem, "read_bytes", read)
    reader = ShardSetReader(shard_set, split="train")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(reader.shard, [0, 1, 2] * 8))
    assert len(set(map(id, found))) == len(opened) == 3


def test_a_shard_that_is_lost_is_looked_at_again_later_and_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardSetReader(write_numbered_set(tmp_path, [2, 2]), split="train")
    clock, index, away = Clock(), tmp_path / "train" / "000000.idx.npz", tmp_path / "away"
    monkeypatch.setattr(reader_module, "time", clock)
    index.rename(away)

    def is_lost() -> bool:
        try:
            reader.read(0, 0)
        except CorruptShard as error:
            return error.reason == "missing"
        return False

    assert is_lost()
    away.rename(index)
    assert is_lost(), "not again at once"
    clock.now_s += 31
    assert not is_lost()
    reader.close()
    index.rename(away)
    looked = []
    for second in range(0, 3000, 5):
        clock.now_s += 5
        before = reader._lost.get(0)
        assert is_lost()
        if reader._lost[0] is not before:
            looked.append(second)
    pauses = [later - earlier for earlier, later in pairwise(looked)]
    assert pauses == [30, 60, 120, 240, 480, 960]


@pytest.mark.parametrize("suffix", ["tar", "idx.npz"])
def test_a_place_of_a_disk_that_cannot_be_read_is_damage_of_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    shard_set = write_numbered_set(tmp_path, [2, 2])

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    reader = ShardSetReader(shard_set, split="train")
    assert reader.read(1, 0)[0] == "s00002"
    if suffix == "tar":
        monkeypatch.setattr(os, "pread", fail)
    else:
        monkeypatch.setattr(filesystem._filesystem("file"), "cat_file", fail)
    with pytest.raises(CorruptShard, match=r"unreadable.*Input/output error") as caught:
        reader.read(0, 0)
    assert caught.value.reason == "unreadable"
    assert caught.value.where.endswith(f"train/000000.{suffix}")


def test_shards_opened_ahead_are_open_and_a_damaged_one_is_left_to_who_reads_it(tmp_path: Path) -> None:
    shard_set = write_numbered_set(tmp_path, [2] * 9)
    flip_byte(tmp_path / "train" / "000004.idx.npz", 40)
    reader = ShardSetReader(shard_set, split="train")
    reader.open_ahead(range(1, 9))
    assert sorted(reader._open) == [1, 2, 3, 5, 6, 7, 8]
    opened = {number: reader.shard(number) for number in list(reader._open)}
    reader.open_ahead(range(9))
    assert all(reader.shard(number) is before for number, before in opened.items())
    with pytest.raises(CorruptShard, match="does not match the manifest"):
        reader.read(4, 0)
    assert reader.read(5, 1)[0] == load_shard(shard_set, 5)[1]
    reader.close()


def load_shard(shard_set: ShardSet, number: int) -> tuple[str, ...]:
    return ShardSetReader(shard_set, split="train").shard(number).index.keys


def test_a_flipped_byte_is_found_by_the_reader(tmp_path: Path) -> None:
    shard_set = write_set(
        tmp_path, numbered_samples(2), shards={"train": (2,)}, extensions=("json", "moments.npy"), kind="latents"
    )
    tar = tmp_path / "train" / "000000.tar"
    reader = ShardSetReader(shard_set, split="train")
    flip_byte(tar, reader.shard(0).index.span(1)[0])
    assert reader.read(0, 0)[0] == "s00000"
    with pytest.raises(CorruptShard, match=r"sample s00001: member \.json"):
        reader.read(0, 1)
    reader.close()
