"""Two hundred ways to damage a set, each with the samples that must survive it.

Damage to bytes (a tar or an index that changed after it was written) is found by hashes. Damage written through the
product's own writer has correct hashes and is found by what the samples must be.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny_sets import Sample, encode_png, phantom_samples, write_set

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards.reader import Arrays, ShardSetReader, encode_npy
from synfundus.shards.source import DecodedSource, ImageDecoder, LatentDecoder, LatentSource, SampleSource
from synfundus.storage.manifest import SetKind, ShardEntry, ShardSet, load_shard_set, save_shard_set
from synfundus.storage.shard_index import ShardIndex
from synfundus.storage.tarshard import write_shard

SIZES = (47, 33, 20)
EDGE_PX = 24
MOMENTS_SHAPE = (8, 6, 6)
BLOCK = 512
S3_ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>'
)

Place = tuple[int, int]
"""(shard, sample)."""


@dataclass
class Original:
    """A set as it was written, and what each of its samples decodes to.

    Attributes:
        folder: Where it lies; never damaged.
        shard_set: Its manifest.
        samples: As they were given to the writer, by place.
        arrays: What a reader must deliver, by place.
        with_states: Whether its indices hold the label states.
    """

    folder: Path
    shard_set: ShardSet
    samples: dict[Place, Sample]
    arrays: dict[Place, Arrays]
    with_states: bool

    @property
    def kind(self) -> str:
        """``images`` or ``latents``."""
        return self.shard_set.kind


@dataclass
class Damaged:
    """A damaged copy.

    Attributes:
        shard_set: The copy.
        good: Places whose samples must be delivered as they were; every other one must be quarantined.
    """

    shard_set: ShardSet
    good: set[Place] = field(default_factory=set)


def source_of(shard_set: ShardSet) -> SampleSource:
    """Return what the trainer reads such a set with."""
    reader = ShardSetReader(shard_set, split="train")
    if shard_set.kind == "latents":
        return LatentSource(reader, schema=shard_set.label_schema, moments_shape=MOMENTS_SHAPE, with_flip=False)
    decoder = ImageDecoder(schema=shard_set.label_schema, image_size_px=EDGE_PX)
    return DecodedSource(reader, decode=decoder, layout=decoder.layout)


def states_of(samples: list[Sample]) -> NDArray[np.int16]:
    rows = [DEFAULT_LABEL_SCHEMA.encode(json.loads(members["json"])["labels"]) for _, members in samples]
    return np.asarray(rows, dtype=np.int16)


@lru_cache(maxsize=1)
def _drawn() -> tuple[Sample, ...]:
    return tuple(phantom_samples(sum(SIZES), image_size_px=EDGE_PX * 4))


def write_original(folder: Path, kind: SetKind, *, with_states: bool) -> Original:
    """Write a set of a hundred samples."""
    samples = list(_drawn())
    for number, (key, members) in enumerate(samples):
        with Image.open(io.BytesIO(members["png"])) as image:
            pixels = np.asarray(image.resize((EDGE_PX, EDGE_PX)), dtype=np.uint8)
        if kind == "images":
            samples[number] = (key, {"json": members["json"], "png": encode_png(pixels)})
        else:
            moments = np.random.default_rng(number).standard_normal(MOMENTS_SHAPE).astype(np.float16)
            samples[number] = (key, {"json": members["json"], "moments.npy": encode_npy(moments)})
    shard_set = write_samples(folder, samples, kind, with_states=with_states)
    places = [(shard, sample) for shard, size in enumerate(SIZES) for sample in range(size)]
    decode = (
        ImageDecoder(schema=DEFAULT_LABEL_SCHEMA, image_size_px=EDGE_PX)
        if kind == "images"
        else LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=MOMENTS_SHAPE, with_flip=False)
    )
    by_place = dict(zip(places, samples, strict=True))
    arrays = {place: decode(key, members, "original") for place, (key, members) in by_place.items()}
    return Original(folder, shard_set, by_place, arrays, with_states)


def write_samples(folder: Path, samples: list[Sample], kind: SetKind, *, with_states: bool) -> ShardSet:
    extensions = ("json", "png") if kind == "images" else ("json", "moments.npy")
    properties: dict[str, Any] = {"image_size_px": EDGE_PX} if kind == "images" else {"moments_shape": MOMENTS_SHAPE}
    written = write_set(
        folder, samples, shards={"train": SIZES}, extensions=extensions, kind=kind, properties=properties
    )
    if not with_states:
        return written
    entries = []
    first = 0
    for entry in written.shards:
        own = samples[first : first + entry.num_samples]
        files = write_shard(str(folder / entry.name), own, extensions=extensions, states=states_of(own))
        entries.append(ShardEntry.of(entry.name, "train", files))
        first += entry.num_samples
    return save_shard_set(replace(written, shards=tuple(entries)))


Damage = Callable[[Original, Path, np.random.Generator], Damaged]


def _tar(folder: Path, shard: int) -> Path:
    return folder / "train" / f"{shard:06d}.tar"


def _index(folder: Path, shard: int) -> Path:
    return folder / "train" / f"{shard:06d}.idx.npz"


def _copy(original: Original, folder: Path) -> ShardSet:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.folder, folder)
    return load_shard_set(str(folder), kind=original.shard_set.kind)


def _unchanged(original: Original, shard: int, data: bytes) -> set[Place]:
    """Return the places of a shard whose members are still the bytes they were.

    Where the index holds the label states, the trainer does not read the documents: damage to them does not reach it.
    """
    unread = {"json"} if original.with_states else set()
    before = _tar(original.folder, shard).read_bytes()
    index = ShardIndex.from_bytes(_index(original.folder, shard).read_bytes(), where="original")
    return {
        (shard, sample)
        for sample in range(len(index))
        if all(
            data[offset : offset + size] == before[offset : offset + size]
            for extension, offset, size, _ in index.members(sample)
            if extension not in unread
        )
    }


def _others(original: Original, shard: int) -> set[Place]:
    return {place for place in original.samples if place[0] != shard}


def damage_bytes(change: Callable[[bytearray, np.random.Generator], bytes | bytearray]) -> Damage:
    """Make damage out of a change of the bytes of one tar."""

    def damage(original: Original, folder: Path, random: np.random.Generator) -> Damaged:
        shard_set = _copy(original, folder)
        shard = int(random.integers(len(SIZES)))
        before = _tar(folder, shard).read_bytes()
        data = bytes(change(bytearray(before), random))
        assert data != before
        _tar(folder, shard).write_bytes(data)
        return Damaged(shard_set, _others(original, shard) | _unchanged(original, shard, data))

    return damage


def _cut_anywhere(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: int(random.integers(1, len(data)))]


def _cut_at_block(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: BLOCK * int(random.integers(0, len(data) // BLOCK))]


def _flip_bit(data: bytearray, random: np.random.Generator) -> bytearray:
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return data


def _scatter_bytes(data: bytearray, random: np.random.Generator) -> bytearray:
    for position in random.integers(len(data), size=16).tolist():
        data[position] ^= int(random.integers(1, 256))
    return data


def _zero_4k(data: bytearray, random: np.random.Generator) -> bytearray:
    while True:
        start = int(random.integers(len(data) - 4096))
        if any(data[start : start + 4096]):
            data[start : start + 4096] = bytes(4096)
            return data


def _replace_file(data: bytearray, random: np.random.Generator) -> bytes:
    return [b"", S3_ERROR, b"\0" * 1024, bytes(random.bytes(4096))][int(random.integers(4))]


def _headers(data: bytes | bytearray) -> list[int]:
    """Return the offsets of the member headers."""
    found, at = [], 0
    while data[at : at + BLOCK].strip(b"\0"):
        found.append(at)
        size = int(data[at + 124 : at + 135], 8)
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return found


def _rename(data: bytearray, header: int, name: bytes) -> None:
    """Give a member another name, with a correct header checksum."""
    block = bytearray(data[header : header + BLOCK])
    block[:100] = name.ljust(100, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[header : header + BLOCK] = block


def _member_name(data: bytes | bytearray, header: int) -> bytes:
    return bytes(data[header : header + 100]).rstrip(b"\0")


def _double_key(data: bytearray, random: np.random.Generator) -> bytearray:
    """Let a plain reader see one sample's key at another sample, too."""
    headers = _headers(data)
    first, second = (2 * int(number) for number in random.choice(len(headers) // 2, size=2, replace=False))
    for member in range(2):
        _rename(data, headers[second + member], _member_name(data, headers[first + member]))
    return data


def _part_members(data: bytearray, random: np.random.Generator) -> bytearray:
    """Put the two members of a sample apart: names are exchanged between two samples."""
    headers = _headers(data)
    first, second = (2 * int(number) + 1 for number in random.choice(len(headers) // 2, size=2, replace=False))
    one, other = (_member_name(data, headers[number]) for number in (first, second))
    _rename(data, headers[first], other)
    _rename(data, headers[second], one)
    return data


def swap_shards(original: Original, folder: Path, random: np.random.Generator) -> Damaged:
    """Exchange two shards: tars, indices, or both."""
    shard_set = _copy(original, folder)
    pairs = {0: [_tar], 1: [_index], 2: [_tar, _index]}[int(random.integers(3))]
    for path in pairs:
        one, other = path(folder, 0).read_bytes(), path(folder, 1).read_bytes()
        path(folder, 0).write_bytes(other)
        path(folder, 1).write_bytes(one)
    good = {place for place in original.samples if place[0] == 2}
    if pairs == [_tar]:
        good = good.union(*(_unchanged(original, shard, _tar(folder, shard).read_bytes()) for shard in (0, 1)))
    return Damaged(shard_set, good)


def damage_index(original: Original, folder: Path, random: np.random.Generator) -> Damaged:
    """Damage, cut, empty or remove an index, or the tar itself."""
    shard_set = _copy(original, folder)
    shard = int(random.integers(len(SIZES)))
    path, data = _index(folder, shard), bytearray(_index(folder, shard).read_bytes())
    way = int(random.integers(7))
    if way == 0:
        path.unlink()
    elif way == 1:
        _tar(folder, shard).unlink()
    elif way == 2:
        path.write_bytes(_replace_file(data, random))
    else:
        path.write_bytes([_cut_anywhere, _flip_bit, _scatter_bytes, _flip_bit][way - 3](data, random))
    return Damaged(shard_set, _others(original, shard))


def damage_sample(change: Callable[[dict[str, bytes], np.random.Generator], Mapping[str, bytes]]) -> Damage:
    """Make damage out of samples that are written wrong, with correct hashes throughout."""

    def damage(original: Original, folder: Path, random: np.random.Generator) -> Damaged:
        shard_set = _copy(original, folder)
        shard = int(random.integers(len(SIZES)))
        entry = shard_set.shards[shard]
        bad = set(random.choice(entry.num_samples, size=int(random.integers(1, 4)), replace=False).tolist())
        samples = []
        for number in range(entry.num_samples):
            key, members = original.samples[(shard, number)]
            samples.append((key, dict(change(dict(members), random)) if number in bad else members))
        announced = tuple(dict.fromkeys(name for _, members in samples for name in members))
        intact = [original.samples[(shard, number)] for number in range(entry.num_samples)]
        states = states_of(intact) if original.with_states else None
        files = write_shard(str(folder / entry.name), samples, extensions=announced, states=states)
        shards = list(shard_set.shards)
        shards[shard] = ShardEntry.of(entry.name, "train", files)
        saved = save_shard_set(replace(shard_set, shards=tuple(shards)))
        return Damaged(saved, set(original.samples) - {(shard, number) for number in bad})

    return damage


def _pick(random: np.random.Generator, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def _drop_member(members: dict[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    members.pop(_pick(random, *[name for name in members if name != "json"]))
    return members


def _wrong_labels(members: dict[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    label = _pick(random, '"2"', "2.5", "true", "-1", "5", "99999999999999999999", "[1]", "{}", "1e2", "NaN")
    members["json"] = _pick(
        random,
        b'{"labels": {"dr_grade": ' + label.encode() + b"}}",
        b'{"labels": {"is_cat": 1}}',
        b'{"labels": [1, 2]}',
        b'{"labels": {}, "labels": {}}',
        b"{}",
        b"",
        b"[]",
        b'{"labels": {}',
        b'{"labels": {}}\xff',
        b"[" * 50_000,
        b'{"labels": {"dr_grade": ' + b"9" * 5_000 + b"}}",
    )
    return members


def png(pixels: NDArray[Any], *, depth: int, colour: int, claim: tuple[int, int] | None = None) -> bytes:
    """Write a PNG of any depth and colour type by hand."""
    height, width = pixels.shape[:2] if claim is None else claim
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2" if depth == 16 else "u1"))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )


def _odd_image(members: dict[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    def saved(mode: str, form: str) -> bytes:
        stream = io.BytesIO()
        Image.new(mode, (EDGE_PX, EDGE_PX)).save(stream, form)
        return stream.getvalue()

    rgb = random.integers(0, 256, (EDGE_PX, EDGE_PX, 3))
    whole = members.pop("png")
    name, data = _pick(
        random,
        ("png", b""),
        ("jpg", saved("CMYK", "jpeg")),
        ("jpg", saved("L", "jpeg")),
        ("png", saved("L", "png")),
        ("png", saved("P", "png")),
        ("png", saved("RGBA", "png")),
        ("png", saved("I;16", "png")),
        ("png", png(rgb * 257, depth=16, colour=2)),
        ("png", png(rgb, depth=8, colour=2, claim=(60_000, 60_000))),
        ("png", png(rgb, depth=8, colour=2, claim=(12_000, 9_000))),
        ("png", saved("RGB", "gif")),
        ("png", saved("RGB", "jpeg")),
        ("jpg", whole),
        ("png", whole[: len(whole) // 2]),
        ("png", png(rgb[:-1], depth=8, colour=2)),
        ("bmp", saved("RGB", "bmp")),
    )
    members[name] = data
    return members


def _not_finite(members: dict[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    moments = random.standard_normal(MOMENTS_SHAPE).astype(np.float16)
    moments.reshape(-1)[int(random.integers(moments.size))] = _pick(random, np.nan, np.inf, -np.inf)
    members["moments.npy"] = encode_npy(moments)
    return members


def _wrong_array(members: dict[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    array = random.standard_normal(MOMENTS_SHAPE).astype(np.float16)
    whole = encode_npy(array)
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(array))
    members["moments.npy"] = _pick(
        random,
        encode_npy(array.astype(np.float32)),
        encode_npy(array.astype(">f2")),
        encode_npy(array.view(np.int16)),
        encode_npy(array[:, :, :-1]),
        encode_npy(array.transpose(1, 0, 2)),
        encode_npy(array.reshape(-1)),
        encode_npy(np.zeros((0, 6, 6), np.float16)),
        stream.getvalue(),
        whole[:-2],
        whole + b"\0\0",
        whole[10:],
        b"",
        whole.replace(b"(8, 6, 6)", b"(9999999)"),
    )
    return members


KINDS: Mapping[str, tuple[str, int, Damage]] = {
    "cut anywhere": ("both", 200, damage_bytes(_cut_anywhere)),
    "cut at a block": ("both", 200, damage_bytes(_cut_at_block)),
    "one flipped bit": ("both", 200, damage_bytes(_flip_bit)),
    "sixteen bytes": ("both", 200, damage_bytes(_scatter_bytes)),
    "4 KB zeroed": ("both", 200, damage_bytes(_zero_4k)),
    "empty or an error document": ("both", 100, damage_bytes(_replace_file)),
    "two shards swapped": ("both", 100, swap_shards),
    "a key twice": ("both", 100, damage_bytes(_double_key)),
    "members apart": ("both", 100, damage_bytes(_part_members)),
    "a member missing": ("both", 100, damage_sample(_drop_member)),
    "wrong labels": ("without states", 100, damage_sample(_wrong_labels)),
    "odd images": ("images", 100, damage_sample(_odd_image)),
    "not finite": ("latents", 100, damage_sample(_not_finite)),
    "wrong arrays": ("latents", 100, damage_sample(_wrong_array)),
    "index or files": ("both", 100, damage_index),
}
"""Kind -> (sets it is for, cases of the long campaign, damage); 2,000 in all."""
