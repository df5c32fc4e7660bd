"""Tars, indices, members and configs made to harm whoever reads them, and a process that reads them all.

``python hostile_inputs.py FOLDER`` reads what `write_all` wrote below FOLDER the way `inspect --verify`, the loader and
the command line would, and prints one JSON line an attack: how it ended, how long it took, the peak memory so far.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_sets import Sample, phantom_samples, write_set

from synfundus.storage.manifest import ShardSet, save_shard_set

BLOCK = 512
NUM_SAMPLES = 4
GIB = 2**30


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo harmed > {self._canary}",)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def pickled_array(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def torch_pickle(canary: Path) -> bytes:
    """Return what torch.save writes: a zip with a pickle inside."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def header(name: bytes, size: bytes, kind: bytes, link: bytes = b"") -> bytes:
    """Return a tar header with a correct checksum, whatever it says."""
    block = bytearray(BLOCK)
    block[:100] = name[:100].ljust(100, b"\0")
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size.ljust(12, b"\0")[:12]
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link.ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def member(name: bytes, data: bytes, kind: bytes = b"0", link: bytes = b"") -> bytes:
    return header(name, octal(len(data)), kind, link) + data + b"\0" * (-len(data) % BLOCK)


def pax(**records: str) -> bytes:
    lines = b""
    for name, value in records.items():
        text = f" {name}={value}\n".encode()
        size = len(text) + len(str(len(text)))
        size += len(str(size)) - len(str(len(text)))
        lines += str(size).encode() + text
    return member(b"PaxHeaders/x", lines, b"x")


def sparse_10_gb() -> bytes:
    info = bytearray(header(b"big.png", octal(512), b"S"))
    info[386:410] = octal(0) + octal(512)
    info[483:495] = b"\x80" + struct.pack(">Q", 10 * GIB).rjust(11, b"\0")
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info) + bytes(BLOCK)


TARS: Mapping[str, Callable[[Path], bytes]] = {
    "parent folder": lambda home: member(b"../escaped.png", b"x"),
    "absolute name": lambda home: member(str(home / "escaped.png").encode(), b"x"),
    "symbolic link": lambda home: member(b"link.png", b"", b"2", b"/etc/passwd") + member(b"link.png", b"x"),
    "hard link": lambda home: member(b"hard.png", b"", b"1", b"/etc/passwd"),
    "character device": lambda home: member(b"zero.png", b"", b"3"),
    "block device": lambda home: member(b"disk.png", b"", b"4"),
    "named pipe": lambda home: member(b"pipe.png", b"", b"6"),
    "folder": lambda home: member(b"folder/", b"", b"5"),
    "sparse file of 10 GB": lambda home: sparse_10_gb(),
    "member of 10 GB that is not there": lambda home: header(b"big.png", octal(8 * GIB - 1), b"0"),
    "size in base 256": lambda home: header(b"big.png", b"\x80" + struct.pack(">Q", 2**62).rjust(11, b"\0"), b"0"),
    "negative size": lambda home: header(b"n.png", b"\xff" * 12, b"0"),
    "negative octal size": lambda home: header(b"n.png", b"-0000000512\0", b"0"),
    "a hundred thousand tiny members": lambda home: b"".join(
        member(b"t%06d.png" % number, b"") for number in range(100_000)
    ),
    "a hundred thousand members of one sample": lambda home: b"".join(
        member(b"t.m%06d" % number, b"") for number in range(100_000)
    ),
    "PAX header of 8 GB": lambda home: header(b"PaxHeaders/x", octal(8 * GIB - 1), b"x"),
    "PAX header of 32 MB": lambda home: pax(comment="x" * 2**25) + member(b"a.png", b"x"),
    "ten thousand PAX headers": lambda home: pax(comment="x") * 10_000 + member(b"a.png", b"x"),
    "PAX size": lambda home: pax(size=str(2**62)) + member(b"a.png", b"x"),
    "PAX path": lambda home: pax(path="../escaped.png") + member(b"a.png", b"x"),
    "global PAX header": lambda home: member(b"g", b"20 path=../escaped\n", b"g") + member(b"a.png", b"x"),
    "long name of 32 MB": lambda home: member(b"././@LongLink", b"x" * 2**25, b"L") + member(b"a.png", b"x"),
    "long names without end": lambda home: member(b"././@LongLink", b"a.png\0", b"L") * 10_000,
    "long link name": lambda home: member(b"././@LongLink", b"/etc/passwd\0", b"K") + member(b"a.png", b"", b"2"),
    "duplicate names": lambda home: member(b"twin.png", b"1") * 2 + member(b"twin.json", b"{}") * 2,
    "names that are not text": lambda home: member(b"\xff\xfe\x1b[2J.png", b"x"),
    "unknown type": lambda home: member(b"a.png", b"x", b"Z"),
}
"""Name -> members put before the samples of a tar whose index and manifest are correct."""


@lru_cache(maxsize=1)
def samples() -> list[Sample]:
    return phantom_samples(NUM_SAMPLES, image_size_px=64)


def write_sound_set(folder: Path) -> ShardSet:
    return write_set(folder, samples(), shards={"train": (NUM_SAMPLES,)})


def write_hostile_tar(folder: Path, name: str, home: Path) -> None:
    """Write a set whose only shard begins with hostile members; its index and hashes fit."""
    written = write_sound_set(folder)
    tar, index = folder / "train" / "000000.tar", folder / "train" / "000000.idx.npz"
    hostile = TARS[name](home)
    tar.write_bytes(hostile + tar.read_bytes())
    with np.load(index) as arrays:
        moved = {key: arrays[key] for key in arrays}
    moved["offsets"] = moved["offsets"] + len(hostile)
    np.savez(index, **moved)
    publish(written, folder)


def publish(written: ShardSet, folder: Path) -> None:
    """Write the manifest anew, with the hashes of what lies there."""
    tar, index = folder / "train" / "000000.tar", folder / "train" / "000000.idx.npz"
    entry = replace(
        written.shards[0],
        bytes=tar.stat().st_size,
        sha256=hashlib.sha256(tar.read_bytes()).hexdigest(),
        index_sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
    )
    save_shard_set(replace(written, shards=(entry,)))


def npy(header_text: str, data: bytes = b"") -> bytes:
    text = header_text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _index(arrays: Mapping[str, Any], **changes: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{**arrays, **changes})
    return stream.getvalue()


def _zip(entries: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


INDICES: Mapping[str, Callable[[Mapping[str, Any], Path], bytes]] = {
    "pickle": lambda arrays, canary: pickled(canary),
    "torch file": lambda arrays, canary: torch_pickle(canary),
    "array of objects": lambda arrays, canary: pickled_array(canary),
    "objects inside": lambda arrays, canary: _zip({"keys.npy": pickled_array(canary)}),
    "pickle inside": lambda arrays, canary: _zip({"keys.npy": pickled(canary)}),
    "keys of objects": lambda arrays, canary: _index(arrays, keys=np.array([Payload(canary)] * 4, dtype=object)),
    "zip bomb": lambda arrays, canary: _zip(
        {"keys.npy": npy("{'descr': '|S1', 'fortran_order': False, 'shape': (1000000000,), }") + bytes(10**8)},
        compression=zipfile.ZIP_DEFLATED,
    ),
    "array that is not there": lambda arrays, canary: _zip(
        {"keys.npy": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }")}
    ),
    "array of 20 GB that is not there": lambda arrays, canary: _zip(
        {"keys.npy": npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2500000000,), }")}
    ),
    "places beyond the file": lambda arrays, canary: _index(arrays, offsets=arrays["offsets"] + 2**59),
    "negative places": lambda arrays, canary: _index(arrays, offsets=-arrays["offsets"] - 7),
    "sizes of 10 GB": lambda arrays, canary: _index(arrays, sizes=np.full_like(arrays["sizes"], 10 * GIB)),
    "sizes of 1 GB": lambda arrays, canary: _index(arrays, sizes=np.full_like(arrays["sizes"], GIB)),
    "negative sizes": lambda arrays, canary: _index(arrays, sizes=-arrays["sizes"]),
    "samples that span the file": lambda arrays, canary: _index(arrays, offsets=np.array([[512, 2**58]] * NUM_SAMPLES)),
    "samples without members": lambda arrays, canary: _index(arrays, offsets=np.full_like(arrays["offsets"], -1)),
    "a key twice": lambda arrays, canary: _index(arrays, keys=np.array([arrays["keys"][0]] * NUM_SAMPLES)),
    "keys that are paths": lambda arrays, canary: _index(arrays, keys=np.array([b"../../etc/passwd"] * NUM_SAMPLES)),
    "not a number": lambda arrays, canary: _index(arrays, offsets=np.full(arrays["offsets"].shape, np.nan)),
    "extensions that are paths": lambda arrays, canary: _index(arrays, extensions=np.array(["json", "../png"])),
}
"""Name -> index of an otherwise sound set whose manifest records its hash."""


def write_hostile_index(folder: Path, name: str, canary: Path) -> None:
    written = write_sound_set(folder)
    index = folder / "train" / "000000.idx.npz"
    with np.load(index) as arrays:
        sound = {key: arrays[key] for key in arrays}
    index.write_bytes(INDICES[name](sound, canary))
    publish(written, folder)


MANIFESTS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "shard in a parent folder": lambda it: it["shards"][0].update(name="../../outside/000000.tar"),
    "shard with an absolute name": lambda it: it["shards"][0].update(name="/etc/000000.tar"),
    "shard behind a pipe": lambda it: it["shards"][0].update(name="pipe:touch escaped"),
    "samples without number": lambda it: it["shards"][0].update(num_samples=10**15),
    "negative samples": lambda it: it["shards"][0].update(num_samples=-4),
    "samples as text": lambda it: it["shards"][0].update(num_samples="4"),
    "bytes without number": lambda it: it["shards"][0].update(bytes=10**30),
    "shards as text": lambda it: it.update(shards="x"),
    "rejects as a number": lambda it: it.update(rejects=7),
    "properties as a list": lambda it: it.update(properties=[1]),
    "a size without number": lambda it: it["properties"].update(image_size_px=10**12),
    "a size as text": lambda it: it["properties"].update(image_size_px="wide"),
    "values without number": lambda it: it["label_schema"][0].update(num_values=10**12),
    "another kind": lambda it: it.update(kind=["images"]),
}
"""Name -> change of a manifest's document."""

DOCUMENTS: Mapping[str, bytes] = {
    "deep": b"[" * 200_000,
    "wide": b"[" + b"1," * 2_000_000 + b"1]",
    "long number": b'{"format": ' + b"9" * 1_000_000 + b"}",
    "not a document": b"\x80\x04\x95",
    "two bytes a letter": '{"a": 1}'.encode("utf-16"),
}
"""Name -> bytes in the place of a manifest."""


def png_claiming(width: int, height: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *extra, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def png_bomb(edge: int) -> bytes:
    """Return a PNG of a black square; a row of zeros packs to almost nothing."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(3 * edge + 1)) for _ in range(min(edge, 300))) + packer.flush()
    return png_claiming(edge, edge, rows)


def jpeg_of(edge: int) -> bytes:
    """Return a JPEG whose header claims a square of this edge."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "jpeg")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", edge, edge)
    return bytes(data)


def jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 4096 px that asks for a pass over the whole image again and again."""
    stream = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(stream, "jpeg", progressive=True, quality=30)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


MEMBERS: Mapping[str, tuple[str, Callable[[Path], bytes]]] = {
    "pickle as npy": ("moments.npy", pickled),
    "objects as npy": ("moments.npy", pickled_array),
    "torch file as npy": ("moments.npy", torch_pickle),
    "pickle as png": ("png", pickled),
    "pickle as json": ("json", pickled),
    "pickle as pkl": ("pkl", pickled),
    "pickle as pyd": ("pyd", pickled),
    "pickle as pickle": ("pickle", pickled),
    "pickle as joblib": ("joblib", pickled),
    "torch file as pth": ("pth", torch_pickle),
    "array that is not there": (
        "npy", lambda canary: npy("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,), }")
    ),
    "array of nothing": (
        "npy", lambda canary: npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 999999999999, 99999999999), }")
    ),
    "array with fields": (
        "npy", lambda canary: npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }")
    ),
    "header that is code": ("npy", lambda canary: npy("__import__('os').system('echo 1 > escaped')")),
    "header without end": ("npy", lambda canary: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(1000)),
    "png of 13000 px": ("png", lambda canary: png_bomb(13_000)),
    "png of 30000 px": ("png", lambda canary: png_bomb(30_000)),
    "png of 9000 px": ("png", lambda canary: png_bomb(9_000)),
    "png text bomb": (
        "png",
        lambda canary: png_claiming(16, 16, b"", *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))] * 4),
    ),
    "jpeg of 65500 px": ("jpg", lambda canary: jpeg_of(65_500)),
    "jpeg of 9000 px": ("jpg", lambda canary: jpeg_of(9_000)),
    "jpeg of 2000 scans": ("jpg", lambda canary: jpeg_of_scans(2_000)),
    "deep json": ("json", lambda canary: b"[" * 500_000 + b"]" * 500_000),
    "nested json": ("json", lambda canary: b'{"labels": ' + b"[" * 400 + b"]" * 400 + b"}"),
    "long json": ("json", lambda canary: b'{"labels": {' + b'"a": 1, ' * 2_000_000 + b'"b": 1}}'),
    "long number in json": ("json", lambda canary: b'{"labels": ' + b"9" * 900_000 + b"}"),
}  # fmt: skip
"""Name -> (extension, member)."""


def laughs(text: bytes = b"ha") -> bytes:
    lines = [b"a0: &a0 [" + b", ".join([text] * 10) + b"]"]
    lines += [b"a%d: &a%d [" % (n, n) + b", ".join([b"*a%d" % (n - 1)] * 10) + b"]" for n in range(1, 12)]
    return b"\n".join(lines)


CONFIGS: Mapping[str, bytes] = {
    "billion laughs": laughs(),
    "merge keys": b"a: &a {b: 1}\nc: {<<: [" + b"*a, " * 50_000 + b"*a]}\n",
    "python object": b"seed: !!python/object/apply:os.system ['echo 1 > escaped']\n",
    "python name": b"seed: !!python/name:os.system\n",
    "deep": b"a: " + b"[" * 100_000,
    "deep mapping": b"".join(b" " * n + b"a:\n" for n in range(600)),
    "wide": b"a: [" + b"1, " * 60_000 + b"1]",
    "long": b"seed: " + b"9" * 2**27,
    "set": b"seed: !!set {a, b}\n",
    "binary": b"seed: !!binary |\n  R0lGODlhDAAMAIQAAP\n",
}
"""Name -> what ``--config`` reads."""


def write_all(home: Path, canary: Path) -> None:
    """Write every attack below a folder."""
    for name in TARS:
        write_hostile_tar(home / "tars" / name, name, home)
    for name in INDICES:
        write_hostile_index(home / "indices" / name, name, canary)
    for name in (*MANIFESTS, *DOCUMENTS):
        folder = home / "manifests" / name
        write_sound_set(folder)
        path = folder / "manifest.json"
        if name in MANIFESTS:
            document = json.loads(path.read_text())
            MANIFESTS[name](document)
            path.write_text(json.dumps(document))
        else:
            path.write_bytes(DOCUMENTS[name])
    for folder_name, files in (
        ("members", {name: build(canary) for name, (_, build) in MEMBERS.items()}),
        ("configs", CONFIGS),
    ):
        (home / folder_name).mkdir(parents=True)
        for name, data in files.items():
            (home / folder_name / name).write_bytes(data)


def _read_set(folder: Path) -> str:
    """Read a set as the loader and as inspect do; say how it ended."""
    from synfundus.errors import CorruptShard
    from synfundus.labels.counts import count_labels
    from synfundus.shards.reader import ShardSetReader
    from synfundus.shards.set_survey import SetSurvey
    from synfundus.shards.source import ImageDecoder
    from synfundus.storage.manifest import open_set

    shard_set = open_set(str(folder))
    decode = ImageDecoder(schema=shard_set.label_schema, image_size_px=64)
    reader = ShardSetReader(shard_set, split="train")
    delivered = 0
    for sample in range(NUM_SAMPLES):
        try:
            decode(*reader.read(0, sample), "place")
            delivered += 1
        except CorruptShard:
            continue
    reader.close()
    survey = SetSurvey(shard_set, verify=True)
    count_labels(survey.label_rows(lambda amount: None), shard_set.label_schema)
    reasons = "; ".join(problem.reason for problem in survey.problems[:3])
    return f"delivered {delivered}, {len(survey.problems)} problems: {reasons}"


def _decode(path: Path) -> str:
    from synfundus.shards.members import check_kind, decode_image, decode_json, decode_npy

    extension, data, where = MEMBERS[path.name][0], path.read_bytes(), path.name
    check_kind(extension, where=where)
    if extension.endswith("npy"):
        decode_npy(data, where=where)
    elif extension == "json":
        decode_json(data, where=where)
    else:
        decode_image(data, where=where, extension=extension)
    return "decoded"


def _configure(path: Path) -> str:
    from synfundus.config.loader import load_config

    load_config(preset=None, file=str(path), settings=[], flags=[])
    return "accepted"


def main(home: Path) -> None:
    """Read every attack; one JSON line each."""
    from synfundus.errors import SynfundusError

    readers = {
        "tars": _read_set,
        "indices": _read_set,
        "manifests": _read_set,
        "members": _decode,
        "configs": _configure,
    }
    for group, read in readers.items():
        for path in sorted((home / group).iterdir()):
            began, before = time.monotonic(), _memory("VmRSS")
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            try:
                outcome = read(path)
            except SynfundusError as error:
                outcome = f"refused: {type(error).__name__}: {error.message[:200]}"
            except BaseException as error:  # noqa: BLE001 - anything else is what the test is about
                outcome = f"TRACEBACK {type(error).__name__}: {str(error)[:200]}"
            row = {"group": group, "name": path.name, "outcome": outcome, "seconds": time.monotonic() - began}
            print(json.dumps({**row, "peak_mib": _memory("VmHWM"), "base_mib": before}), flush=True)


def _memory(name: str) -> float:
    """Return a figure of this process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
