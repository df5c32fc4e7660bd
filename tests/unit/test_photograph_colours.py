"""Colours of photographs: profiles, and values of fewer bits than their file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dicom_files import photograph_file
from numpy.typing import NDArray
from photographs import retina
from PIL import Image, ImageCms
from pydicom.dataset import Dataset

from synfundus.photographs.decode import UndecodableImage, decode_flagged
from synfundus.photographs.preparation import prepare_pixels

MAX_PIXELS = 10_000_000
ORANGE, IN_ADOBE_RGB = (200, 95, 45), (177, 95, 52)
UNUSED = ("colour_profile_not_applied",)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {"quality": 98, "subsampling": 0}),
    ("PNG", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
]


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(*tags: tuple[bytes, bytes], space: bytes = b"RGB ") -> bytes:
    """Return an ICC profile of a display, version 2.4."""
    tags = ((b"desc", b"desc" + bytes(4) + struct.pack(">I", 2) + b"x" + bytes(79)), *tags)
    tags = (*tags, (b"wtpt", b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)), (b"cprt", b"text" + bytes(4) + b"CC0\0"))
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags:
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI", at + len(body), bytes(4), 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    return (
        (head.ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0")
        + struct.pack(">I", len(tags))
        + table
        + body
    )


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


# primaries of Adobe RGB (1998), section 4.3.5.3, adapted to D50
PRIMARIES = {b"r": (0.60974, 0.31111, 0.01947), b"g": (0.20528, 0.62567, 0.06087), b"b": (0.14919, 0.06322, 0.74457)}
ADOBE_RGB = profile(
    *((name + b"XYZ", b"XYZ " + bytes(4) + fixed(*xyz)) for name, xyz in PRIMARIES.items()),
    *((name + b"TRC", curve(563 / 256)) for name in PRIMARIES),
)
GREY = profile((b"kTRC", curve(1.0)), space=b"GRAY")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    return decode_flagged(data, max_pixels=MAX_PIXELS)


def is_near(pixels: NDArray[np.uint8], colour: tuple[int, int, int], by: int = 2) -> bool:
    return int(np.abs(pixels.astype(int) - colour).max()) <= by


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_profile_is_applied(kind: str, options: dict[str, Any]) -> None:
    data = saved(Image.new("RGB", (64, 48), IN_ADOBE_RGB), kind, icc_profile=ADOBE_RGB, **options)
    pixels, flags = decoded(data)
    assert (is_near(pixels, ORANGE), pixels.shape, flags) == (True, (48, 64, 3), ())


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_profile_of_srgb_changes_no_pixel(kind: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(retina()[::8, ::8])
    tagged, flags = decoded(saved(image, kind, icc_profile=SRGB, **options))
    np.testing.assert_array_equal(tagged, decoded(saved(image, kind, **options))[0])
    assert flags == ()


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("bad", [b"no profile at all" * 9, ADOBE_RGB[:200], GREY])
def test_a_profile_that_cannot_be_applied_is_named(kind: str, options: dict[str, Any], bad: bytes) -> None:
    pixels, flags = decoded(saved(Image.new("RGB", (64, 48), ORANGE), kind, icc_profile=bad, **options))
    assert (is_near(pixels, ORANGE), flags) == (True, UNUSED)


def test_a_profile_of_which_a_part_is_missing_is_named() -> None:
    data = saved(Image.new("RGB", (64, 48), ORANGE), "JPEG", quality=98, icc_profile=ADOBE_RGB + bytes(100_000))
    second = data.index(b"ICC_PROFILE\0", data.index(b"ICC_PROFILE\0") + 1)
    assert decoded(data[:second] + b"not" + data[second + 3 :])[1] == UNUSED


def test_a_grey_picture_is_converted_by_a_profile_of_grey_or_of_colours() -> None:
    """Half of the light is level 188 of sRGB."""
    image = Image.new("L", (64, 48), 128)
    assert is_near(decoded(saved(image, "PNG", icc_profile=GREY))[0], (188, 188, 188))
    pixels, flags = decoded(saved(image, "PNG", icc_profile=SRGB))
    assert (is_near(pixels, (128, 128, 128), by=0), flags) == (True, ())


def test_a_profile_is_applied_to_a_turned_and_to_a_transparent_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (64, 48), (*IN_ADOBE_RGB, 255))
    pixels, flags = decoded(saved(image, "PNG", icc_profile=ADOBE_RGB, exif=exif))
    assert (is_near(pixels, ORANGE), pixels.shape, flags) == (True, (64, 48, 3), ())


def test_the_profile_of_a_dicom_photograph_is_applied() -> None:
    flat = np.full((48, 64, 3), IN_ADOBE_RGB, dtype=np.uint8)
    update = Dataset()
    update.add_new(0x00282000, "OB", ADOBE_RGB + bytes(len(ADOBE_RGB) % 2))
    pixels, flags = decoded(photograph_file(flat, update=update))
    assert (is_near(pixels, ORANGE), flags) == (True, ())


def test_flags_of_decoding_reach_the_set() -> None:
    data = saved(Image.fromarray(retina()), "JPEG", quality=95, icc_profile=b"no profile" * 20)
    prepared = prepare_pixels(data, image_size_px=256, max_pixels=MAX_PIXELS, burned_text="flag")
    assert prepared.flags == UNUSED


def png_16(values: NDArray[np.uint16]) -> bytes:
    height, width = values.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    checked = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(checked)


def tiff_16(values: NDArray[np.uint16], *, order: str = "<", deflate: bool = False, planes: bool = False) -> bytes:
    """Return a 16-bit TIFF in strips of eight rows; Pillow writes none in colour."""
    height, width = values.shape[:2]
    parts = [values[..., at] for at in range(3)] if planes else [values]
    strips = [part[y : y + 8].astype(f"{order}u2").tobytes() for part in parts for y in range(0, height, 8)]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    samples = 3 if values.ndim == 3 else 1
    data = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 0))
    places = []
    for strip in strips:
        places.append(len(data))
        data += strip
    at = {"places": len(data), "lengths": len(data) + 4 * len(strips), "bits": len(data) + 8 * len(strips)}
    data += struct.pack(f"{order}{len(strips)}I", *places) + struct.pack(f"{order}{len(strips)}I", *map(len, strips))
    data += struct.pack(f"{order}3H", 16, 16, 16)
    tags = {256: width, 257: height, 259: 8 if deflate else 1, 262: 2 if samples == 3 else 1, 277: samples, 278: 8}
    entries = [(tag, 4, 1, value) for tag, value in {**tags, 284: 2 if planes else 1}.items()]
    entries += [(258, 3, 3, at["bits"])] if samples == 3 else [(258, 4, 1, 16)]
    entries += [(273, 4, len(strips), at["places"]), (279, 4, len(strips), at["lengths"])]
    struct.pack_into(f"{order}I", data, 4, len(data))
    data += struct.pack(f"{order}H", len(entries))
    return bytes(data) + b"".join(struct.pack(f"{order}HHII", *entry) for entry in sorted(entries)) + bytes(4)


WRITERS: dict[str, Callable[[NDArray[np.uint16]], bytes]] = {
    "PNG": png_16,
    "TIFF": tiff_16,
    "TIFF of big-endian values": lambda values: tiff_16(values, order=">"),
    "TIFF in deflate": lambda values: tiff_16(values, deflate=True),
    "big-endian TIFF in deflate": lambda values: tiff_16(values, order=">", deflate=True),
}


def fundus(bits: int, *, grey: bool) -> NDArray[np.uint16]:
    """Return the photograph in values of so many bits, the brightest one included."""
    levels = retina()[::16, ::16].astype(np.float64) * (2**bits - 1) / 255
    values: NDArray[np.uint16] = levels.round().astype(np.uint16)
    values[0, 0] = 2**bits - 1
    grey_values: NDArray[np.uint16] = values[..., 1]
    return grey_values if grey else values


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_are_scaled_and_named(writer: str, grey: bool, bits: int) -> None:
    values = fundus(bits, grey=grey)
    pixels, flags = decoded(WRITERS[writer](values))
    expected = values.astype(np.float64) * 255 / (2**bits - 1)
    assert np.abs(pixels - (expected[..., None] if grey else expected)).max() <= (0.5001 if bits < 16 else 1)
    assert flags == (() if bits == 16 else (f"values_of_{bits}_bit",))


@pytest.mark.parametrize(
    "data",
    [
        png_16(np.dstack([fundus(12, grey=False), np.full(fundus(12, grey=True).shape, 65535, np.uint16)])),
        png_16(np.dstack([fundus(12, grey=True), np.full(fundus(12, grey=True).shape, 65535, np.uint16)])),
        tiff_16(fundus(12, grey=False), planes=True),
        tiff_16(fundus(16, grey=False), planes=True),
        tiff_16(fundus(12, grey=False), planes=True, deflate=True),
    ],
)
def test_values_that_cannot_be_read_whole_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(UndecodableImage) as caught:
        decoded(data)
    assert caught.value.reason == "unsupported_mode"
