"""Files made to cost memory or time: refused by their header, or decoded without paying for what is beside the pixels.

Every file is decoded in one process of its own whose peak memory is read afterwards. Time is the processor's and is
compared with an honest photograph's in the same process, so that a busy or a slow machine does not matter: a file is
no attack when it costs what any photograph may.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dicom_files import EXPLICIT, RLE, dicom_file, jpeg, jpeg_photograph_file, photograph_dataset, photograph_file
from PIL import Image
from pydicom.encaps import encapsulate

MAX_RATIO, MAX_MIB = 2.0, 200.0  # of 3 million honest pixels: a few hundredths of a second
PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)

CHILD = """
import json, resource, sys, time
from pathlib import Path
from synfundus.photographs.decode import UndecodableImage, decode_photograph
folder = Path(sys.argv[1])
def outcome(data):
    try:
        return "x".join(map(str, decode_photograph(data, max_pixels=120_000_000).shape))
    except UndecodableImage as error:
        return error.reason.value
for path in sorted(folder.glob("warm-*")):
    assert outcome(path.read_bytes()) == "64x64x3", path
def peaks():
    # Resident and reserved. Where there is no /proc, what the system says, which begins with the parent's peak.
    if not Path("/proc/self/status").exists():
        return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
    lines = Path("/proc/self/status").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmPeak"))]
base = peaks()
def milliseconds(data):
    times = []
    for _ in range(3):
        began = time.process_time()
        what = outcome(data)
        times.append(1e3 * (time.process_time() - began))
    return what, min(times)
for path in sorted(folder.glob("bomb-*")):
    what, spent = milliseconds(path.read_bytes())
    grown = max(after - before for before, after in zip(base, peaks(), strict=True)) / 1024
    print(json.dumps({"file": path.name[5:], "outcome": what, "ms": spent, "mib": grown}))
what, spent = milliseconds((folder / "honest").read_bytes())
assert what == "1500x2000x3", what
print(json.dumps({"file": "honest", "ms": spent}))
"""


@dataclass(frozen=True)
class Bomb:
    """A hostile file and what is to become of it."""

    data: bytes
    outcome: str


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, inner: bytes, rows: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS) if rows is None else rows
    body = chunk(b"IHDR", header) + inner + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def resized_jpeg(width: int, height: int) -> bytes:
    data = bytearray(jpeg(PIXELS))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(number: int) -> bytes:
    data = encoded(Image.new("L", (4_000, 4_000), 99), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def hidden_scans(number: int) -> bytes:
    """Hide an end marker in a comment between the scans: who counts up to it sees two."""
    data = many_scans(number)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    return data[:second] + b"\xff\xfe\0\4\xff\xd9" + data[second:]


def tiff(tags: list[tuple[int, int, int, int]], behind: bytes = b"") -> bytes:
    """Return a TIFF of the tags (number, type, count, value or place)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + behind


def tiff_picture(width: int, height: int, *more: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: height, 279: width * height}
    numbers = [(tag, 4, 1, value) for tag, value in tags.items()]
    return [*numbers, (273, 4, 1, 8), *more]


def overlapping_exif(values_bytes: int, tags: int) -> bytes:
    """Return EXIF whose tags all have the same bytes as their value."""
    at = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 0x4000 + i, 7, values_bytes, at) for i in range(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + entries + b"\0" * 4 + b"\0" * values_bytes


def jpeg_with(*segments: bytes) -> bytes:
    data = jpeg(PIXELS)
    return data[:2] + b"".join(segments) + data[2:]


def app1(payload: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload


def webp_canvas(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def webp_lossless(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.fromarray(PIXELS), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, i, axis=0)) for i in range(100)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def run_length_bomb() -> bytes:
    dataset = photograph_dataset(PIXELS)
    header = struct.pack("<16L", 3, 64, 66, 68, *[0] * 12)
    dataset.PixelData = encapsulate([header + b"\0\0\0\0" + b"\x81\xff" * 2**21])
    dataset["PixelData"].is_undefined_length = True
    return dicom_file(dataset, RLE)


def deflated_dicom() -> bytes:
    head = photograph_file(PIXELS)
    meta_end = head.index(b"\x08\0\x16\0UI")
    meta = head[:meta_end].replace(EXPLICIT.encode() + b"\0", b"1.2.840.10008.1.2.1.99")
    at = meta.index(b"UI", meta.index(b"\x02\0\x10\0")) + 2
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return meta[:at] + struct.pack("<H", 22) + meta[at + 2 :] + packer.compress(b"\0" * 2**26) + packer.flush()


def flooded_dicom(element: bytes, number: int) -> bytes:
    head = photograph_file(PIXELS)
    at = head.index(b"\x08\0\x16\0UI")
    return head[:at] + element * number + head[at:]


def bombs() -> dict[str, Bomb]:
    text = zlib.compress(b"\0" * 2**26)
    exif = overlapping_exif(60_000, 400)
    wide_exif = overlapping_exif(2**20, 4000)
    nested = struct.pack("<HH2sHLHHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    too_many, small = "too_many_pixels", "64x64x3"
    found = {
        "png-13000": Bomb(png(13_000, 13_000, b"", b""), too_many),
        "png-30000": Bomb(png(30_000, 30_000, b"", b""), too_many),
        "png-largest": Bomb(png(2**31 - 1, 2**31 - 1, b"", b""), too_many),
        "jpeg-65500": Bomb(resized_jpeg(65_500, 65_500), too_many),
        "webp-canvas": Bomb(webp_canvas(16_384, 16_384), too_many),
        "webp-lossless": Bomb(webp_lossless(16_383, 16_383), too_many),
        "bmp-30000": Bomb(bmp(30_000, 30_000), too_many),
        "bmp-upside-down": Bomb(bmp(30_000, -30_000), too_many),
        "tiff-40000": Bomb(tiff(tiff_picture(40_000, 40_000)), too_many),
        "dicom-65000": Bomb(jpeg_photograph_file([jpeg(PIXELS)], rows=65_000, columns=65_000, colour="RGB"), too_many),
        "dicom-large-frame": Bomb(
            jpeg_photograph_file([resized_jpeg(65_000, 65_000)], rows=64, columns=64, colour="YBR_FULL"), too_many
        ),
        "png-ztxt": Bomb(png(64, 64, chunk(b"zTXt", b"k\0\0" + text) * 20), small),
        "png-itxt": Bomb(png(64, 64, chunk(b"iTXt", b"k\0\1\0\0\0" + text) * 20), small),
        "png-iccp": Bomb(png(64, 64, chunk(b"iCCP", b"k\0\0" + text)), small),
        "png-more-pixels-than-said": Bomb(png(64, 64, b"", b"\0" * 2**26), small),
        "png-chunks": Bomb(png(64, 64, chunk(b"tEXt", b"k\0v") * 200_000), "damaged"),
        "png-animated": Bomb(animation("PNG"), small),
        "webp-animated": Bomb(animation("WEBP"), small),
        "tiff-pages": Bomb(animation("TIFF"), small),
        "jpeg-scans": Bomb(many_scans(5_000), "too_many_scans"),
        "jpeg-hidden-scans": Bomb(hidden_scans(5_000), "too_many_scans"),
        "jpeg-segments": Bomb(jpeg_with(b"\xff\xe5\0\2" * 500_000), "damaged"),
        "jpeg-exif": Bomb(jpeg_with(app1(b"Exif\0\0" + exif)), small),
        "jpeg-exif-in-parts": Bomb(jpeg_with(*[app1(b"Exif\0\0" + exif)] * 50), small),
        "png-exif": Bomb(png(64, 64, chunk(b"eXIf", wide_exif)), small),
        "webp-exif": Bomb(encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=b"Exif\0\0" + wide_exif), small),
        "tiff-overlapping": Bomb(
            tiff(tiff_picture(64, 64, *[(50_000 + i, 7, 2**20, 8) for i in range(4000)]), b"\0" * 2**21), "damaged"
        ),
        "tiff-numbers": Bomb(tiff(tiff_picture(64, 64, (50_000, 4, 2**21, 8)), b"\0" * 2**24), "damaged"),
        "tiff-nested-overlapping": Bomb(
            tiff(tiff_picture(64, 64, (0x8769, 4, 1, 8 + 2 + 12 * 10 + 4)), wide_exif[8:]), "damaged"
        ),
        "tiff-tile": Bomb(
            tiff(tiff_picture(64, 64, (322, 4, 1, 65_520), (323, 4, 1, 65_520), (324, 4, 1, 8), (325, 4, 1, 99))),
            "damaged",
        ),
        "dicom-deflated": Bomb(deflated_dicom(), "unsupported_transfer_syntax"),
        "dicom-run-length": Bomb(run_length_bomb(), "damaged"),
        "dicom-elements": Bomb(flooded_dicom(struct.pack("<HH2sHL", 0x0009, 0x1000, b"UN", 0, 0), 300_000), "damaged"),
        "dicom-nested": Bomb(flooded_dicom(nested, 100_000), "damaged"),
        "gif": Bomb(b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0" * 100, "unsupported_format"),
    }
    return found


def measured(folder: Path) -> dict[str, dict[str, object]]:
    """Decode a folder's files and an honest photograph in a process of their own; a row for each by its name."""
    photograph = Image.fromarray(PIXELS).resize((2000, 1500), Image.Resampling.BICUBIC)
    (folder / "honest").write_bytes(encoded(photograph, "JPEG", quality=90))
    command = [sys.executable, "-c", CHILD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def planned() -> dict[str, Bomb]:
    return bombs()


@pytest.fixture(scope="module")
def rows(planned: dict[str, Bomb], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("bombs")
    for kind in ("PNG", "WEBP", "TIFF", "BMP"):
        (folder / f"warm-{kind}").write_bytes(encoded(Image.fromarray(PIXELS), kind))
    (folder / "warm-jpeg").write_bytes(jpeg(PIXELS))
    for number, syntax in enumerate((EXPLICIT, RLE)):
        (folder / f"warm-dicom{number}").write_bytes(photograph_file(PIXELS, syntax=syntax))
    (folder / "warm-dicom-jpeg").write_bytes(
        jpeg_photograph_file([jpeg(PIXELS)], rows=64, columns=64, colour="YBR_FULL")
    )
    for name, bomb in planned.items():
        (folder / f"bomb-{name}").write_bytes(bomb.data)
    return measured(folder)


@pytest.fixture(scope="module")
def outcomes(rows: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: row for name, row in rows.items() if name != "honest"}


def test_every_bomb_ends_as_it_should(planned: dict[str, Bomb], outcomes: dict[str, dict[str, object]]) -> None:
    ended = {name: row["outcome"] for name, row in outcomes.items()}
    assert ended == {name: bomb.outcome for name, bomb in planned.items()}


def test_none_takes_longer_than_an_honest_photograph_may(rows: dict[str, dict[str, object]]) -> None:
    spent = {name: float(str(row["ms"])) for name, row in rows.items()}
    assert {name: ms for name, ms in spent.items() if ms > MAX_RATIO * spent["honest"]} == {}


def test_none_takes_memory(outcomes: dict[str, dict[str, object]]) -> None:
    """The peak of one process that decoded them all, so no single one was above it."""
    assert max(float(str(row["mib"])) for row in outcomes.values()) < MAX_MIB


def test_the_measurement_sees_a_bomb_that_goes_off(tmp_path: Path) -> None:
    (tmp_path / "warm-png").write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    (tmp_path / "bomb-allowed").write_bytes(encoded(Image.new("RGB", (7_500, 6_000)), "PNG"))
    rows = measured(tmp_path)
    spent = {name: float(str(row["ms"])) for name, row in rows.items()}
    assert rows["allowed"]["outcome"] == "6000x7500x3"
    assert spent["allowed"] > MAX_RATIO * spent["honest"]
    assert float(str(rows["allowed"]["mib"])) > MAX_MIB
