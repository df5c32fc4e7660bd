from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import retina
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synfundus.photographs.decode import Undecodable, UndecodableImage, decode_photograph, encode_image

RETINA = np.ascontiguousarray(retina()[::16, ::16])
MAX_PIXELS = 50_000_000


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return decode_photograph(data, max_pixels=MAX_PIXELS)


def reason(data: bytes) -> Undecodable:
    with pytest.raises(UndecodableImage) as caught:
        decode(data)
    return caught.value.reason


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png_file(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "PPM"])
def test_a_lossless_file_comes_back_as_it_was(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RETINA), kind, **options)), RETINA)


def test_a_jpeg_comes_back_nearly_as_it_was() -> None:
    pixels = decode(encoded(Image.fromarray(RETINA), "JPEG", quality=95, subsampling=0))
    assert np.abs(pixels.astype(int) - RETINA).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_with_the_right_polarity(kind: str) -> None:
    inks = Image.fromarray(RETINA).convert("CMYK")
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    pixels = decode(encoded(inks, kind, **options))
    assert np.abs(pixels.astype(int) - RETINA).mean() < 3


def test_grey_16_bit_is_scaled_not_clipped() -> None:
    ramp = (np.arange(256 * 4).reshape(4, 256) % 256 * 257).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    for data in (png_file(256, 4, 16, 0, rows), encoded(Image.fromarray(ramp), "TIFF")):
        pixels = decode(data)
        np.testing.assert_array_equal(pixels[0], np.repeat(np.arange(256)[:, None], 3, axis=1))


def test_colour_16_bit_is_scaled_not_clipped() -> None:
    wide = RETINA.astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    height, width = RETINA.shape[:2]
    np.testing.assert_array_equal(decode(png_file(width, height, 16, 2, rows)), RETINA)


def test_a_palette_a_grey_and_a_two_level_picture_become_rgb() -> None:
    image = Image.fromarray(RETINA)
    np.testing.assert_array_equal(
        decode(encoded(image.quantize(16), "PNG")), np.asarray(image.quantize(16).convert("RGB"))
    )
    grey = decode(encoded(image.convert("L"), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(np.asarray(image.convert("L"))[..., None], 3, axis=2))
    assert set(np.unique(decode(encoded(image.convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_transparency_is_composited_on_black(alpha: int) -> None:
    image = Image.new("RGBA", (8, 8), (200, 100, 50, alpha))
    expected = [round(level * alpha / 255) for level in (200, 100, 50)]
    assert decode(encoded(image, "PNG"))[3, 3].tolist() == expected


def test_a_transparent_palette_entry_is_black() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 10, 10])
    assert decode(encoded(image, "PNG", transparency=1)).max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_photograph_is_turned_upright(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32))
    upright.paste((255, 255, 255), (0, 0, 24, 16))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {})))
    assert pixels.shape == (32, 48, 3)
    assert pixels[8, 12].min() > 220
    assert max(pixels[8, 36].max(), pixels[24, 12].max(), pixels[24, 36].max()) < 35


def test_broken_exif_does_not_cost_the_photograph() -> None:
    data = encoded(Image.fromarray(RETINA), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data).shape == RETINA.shape


def test_only_the_first_frame_counts() -> None:
    first, second = Image.fromarray(RETINA), Image.new("RGB", (5, 5))
    np.testing.assert_array_equal(decode(encoded(first, "TIFF", save_all=True, append_images=[second])), RETINA)


def test_a_bomb_is_refused_by_its_header_without_memory() -> None:
    bomb = png_file(30_000, 30_000, 8, 2, b"")
    tracemalloc.start()
    assert reason(bomb) == Undecodable.TOO_MANY_PIXELS
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(("side", "allowed"), [(100, True), (101, False)])
def test_the_limit_on_pixels_is_exact(side: int, allowed: bool) -> None:
    data = encoded(Image.new("RGB", (100, side)), "PNG")
    if allowed:
        assert decode_photograph(data, max_pixels=10_000).shape == (100, 100, 3)
    else:
        with pytest.raises(UndecodableImage, match="100 x 101 px is more than the allowed 10000") as caught:
            decode_photograph(data, max_pixels=10_000)
        assert caught.value.reason == "too_many_pixels"


def test_a_limit_above_what_pillow_warns_about_does_not_warn() -> None:
    data = encoded(Image.new("1", (10_000, 9_500)), "PNG")
    assert reason(data) == "too_many_pixels"
    assert decode_photograph(data, max_pixels=95_000_000).shape == (9_500, 10_000, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.7, 0.97])
def test_a_cut_file_is_named(kind: str, part: float) -> None:
    data = encoded(Image.fromarray(RETINA), kind)
    cut = data[: max(12, int(len(data) * part))]
    assert reason(cut) in {Undecodable.TRUNCATED, Undecodable.DAMAGED}
    if kind in {"JPEG", "PNG", "WEBP"}:
        assert reason(cut) == Undecodable.TRUNCATED


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty_file"),
        (b"patient,grade\n1,2\n", "not_an_image"),
        ("Ünïcode text".encode(), "not_an_image"),
        (b"\0" * 4096, "not_an_image"),
        (b"GIF89a" + b"\0" * 40, "unsupported_format"),
        (b"%PDF-1.7 ...", "unsupported_format"),
        (b"\0" * 128 + b"DICM" + b"\0" * 100, "unsupported_transfer_syntax"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 100, "unsupported_format"),
        (b"\x1f\x8b\x08" + b"\0" * 40, "unsupported_format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "git_lfs_pointer"),
        (b"P6\n9999 9999\n255\n" + b"\0" * 40, "too_many_pixels"),
        (b"P3\n2 1\n255\n1 2 3 4 5 6\n", "unsupported_mode"),
        (b"P4\n8 1\n\0", "unsupported_mode"),
        (b"P5\n2 1\n4095\n" + b"\0" * 4, "unsupported_mode"),
        (b"P6\n20 20\n255\n" + b"\0" * 40, "truncated"),
        (b"P6 and so on: a text", "damaged"),
        (encoded(Image.fromarray(np.ones((9, 9), dtype=np.float32)), "TIFF"), "unsupported_mode"),
        (encoded(Image.fromarray(np.ones((9, 9), dtype=np.int32)), "TIFF"), "unsupported_mode"),
        (png_file(40, 40, 8, 2, b"")[:-12].replace(b"IDAT", b"IDAT\0\0") + png_chunk(b"IEND", b""), "damaged"),
        (png_file(40, 40, 8, 2, b"\x09" * 4840), "damaged"),
    ],
)
def test_what_is_not_a_photograph_is_named(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_grey_pgm_with_a_comment_is_read() -> None:
    assert decode(b"P5 # by a scanner\n2 1 255\n\x07\xff").tolist() == [[[7] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((kind, size) for kind in ("tiff_adobe_deflate", "jpeg", "PNG") for size in (64, 512)),
        ("packbits", 512),  # 64 may lie within 128 bytes that are stored as they are
    ],
)
def test_zeros_within_a_compressed_picture_are_found(kind: str, size: int) -> None:
    image, options = Image.fromarray(retina()[::4, ::4]), {} if kind == "PNG" else {"compression": kind}
    data = encoded(image, "PNG" if kind == "PNG" else "TIFF", **options)
    for part in (0.2, 0.4, 0.6, 0.8):
        at = int(part * len(data))
        assert reason(data[:at] + bytes(size) + data[at + size :]) in {Undecodable.DAMAGED, Undecodable.TRUNCATED}


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"strip_size": 2000}])
def test_a_sound_picture_in_packbits_is_accepted(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(RETINA[:81, :67]).convert(mode), "TIFF", compression="packbits", **options)
    assert decode(data).shape[:2] == (81, 67)


@pytest.mark.parametrize(("factors"), [0x31, 0x21, 0x13, 0x41])
def test_a_jpeg_of_odd_sampling_factors_is_accepted(factors: int) -> None:
    data = bytearray(encoded(Image.fromarray(RETINA).convert("L"), "JPEG"))
    data[data.index(b"\xff\xc0") + 11] = factors
    assert decode(bytes(data)).shape == RETINA.shape


@pytest.mark.parametrize("edge", [1, 7, 8, 9])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_tiny_jpeg_is_accepted(edge: int, mode: str) -> None:
    for progressive in (False, True):
        data = encoded(Image.new(mode, (edge, edge)), "JPEG", progressive=progressive)
        assert decode(data).shape == decode(data[:-2]).shape == (edge, edge, 3)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "TIFF", "packbits", "WEBP", "BMP", "PPM"]),
    st.integers(0, 2**31),
    st.integers(1, 24),
    st.booleans(),
)
def test_flipped_bytes_give_a_picture_or_a_named_reason(kind: str, seed: int, count: int, at_the_end: bool) -> None:
    """The tags of a TIFF are at its end."""
    rng = np.random.default_rng(seed)
    options = {"compression": kind} if kind == "packbits" else {}
    data = bytearray(encoded(Image.fromarray(RETINA[:40, :40]), "TIFF" if options else kind, **options))
    start = max(0, len(data) - 400) if at_the_end else 0
    for position in start + rng.integers(0, min(len(data), 400), count):
        data[position] = int(rng.integers(256))
    outcome: object = None
    try:
        outcome = decode_photograph(bytes(data), max_pixels=1_000_000).ndim
    except UndecodableImage as error:
        outcome = error.reason
    assert outcome == 3 or outcome in set(Undecodable)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_encoding_is_lossless_repeatable_and_bare(image_format: Literal["png", "webp"]) -> None:
    data = encode_image(RETINA, image_format)
    assert data == encode_image(RETINA.copy(), image_format)
    np.testing.assert_array_equal(decode(data), RETINA)
    with Image.open(io.BytesIO(data)) as image:
        assert {key for key in image.info if key not in {"loop", "background", "timestamp", "duration"}} == set()


def test_metadata_does_not_survive_decoding_and_encoding() -> None:
    info = PngInfo()
    info.add_text("PatientName", "DOE^JANE")
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    data = encoded(Image.fromarray(RETINA), "PNG", pnginfo=info, exif=exif)
    assert b"DOE^JANE" in data
    assert b"DOE^JANE" not in encode_image(decode(data), "png")


def test_a_rejection_can_cross_a_process_boundary() -> None:
    original = UndecodableImage(Undecodable.TRUNCATED, "cut after 7 bytes")
    copy = pickle.loads(pickle.dumps(original))
    assert (copy.reason, str(copy)) == (Undecodable.TRUNCATED, "cut after 7 bytes")
