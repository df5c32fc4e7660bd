from __future__ import annotations

import builtins
import logging
import struct
import time
import warnings
from typing import Any

import numpy as np
import pytest
from dicom_files import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    JPEG_BASELINE,
    OPHTHALMIC_8,
    OPHTHALMIC_16,
    RLE,
    dicom_file,
    jpeg,
    jpeg_photograph_file,
    photograph_dataset,
    photograph_file,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from photographs import retina
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import UID

from synfundus.photographs.decode import Undecodable, UndecodableImage, decode_photograph
from synfundus.photographs.dicom import dicom_eye_side

RETINA = np.ascontiguousarray(retina()[::18, ::17])
GREY = np.ascontiguousarray(RETINA[..., 1])
ROWS, COLUMNS = RETINA.shape[:2]
MAX_PIXELS = 1_000_000


def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return decode_photograph(data, max_pixels=MAX_PIXELS)


def reason(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(UndecodableImage) as caught:
        decode_photograph(data, max_pixels=max_pixels)
    return caught.value.reason.value


def rgb(grey: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN, RLE])
def test_colour_comes_back_as_it_was(syntax: str) -> None:
    np.testing.assert_array_equal(decode(photograph_file(RETINA, syntax=syntax)), RETINA)


def test_colour_by_plane_comes_back_as_it_was() -> None:
    planes = photograph_dataset(RETINA)
    planes.PlanarConfiguration = 1
    planes.PixelData = np.ascontiguousarray(RETINA.transpose(2, 0, 1)).tobytes() + b"\0" * (RETINA.size % 2)
    np.testing.assert_array_equal(decode(dicom_file(planes)), RETINA)


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN, RLE])
def test_16_bit_is_scaled_not_clipped(syntax: str) -> None:
    np.testing.assert_array_equal(decode(photograph_file(RETINA.astype(np.uint16) * 257, syntax=syntax)), RETINA)


def test_unused_bits_are_not_part_of_the_value() -> None:
    wide = ((GREY.astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16)
    data = photograph_file(wide | 0xF000, colour="MONOCHROME2", BitsStored=12, HighBit=11)
    assert np.abs(decode(data).astype(int) - rgb(GREY)).max() <= 1


def test_values_in_the_upper_bits_are_refused() -> None:
    wide = GREY.astype(np.uint16) << 4
    with pytest.raises(UndecodableImage) as caught:
        decode(photograph_file(wide, colour="MONOCHROME2", BitsStored=12, HighBit=15))
    assert caught.value.reason is Undecodable.UNSUPPORTED_MODE


@pytest.mark.parametrize(("colour", "expected"), [("MONOCHROME2", GREY), ("MONOCHROME1", 255 - GREY)])
@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_grey_has_the_right_polarity(colour: str, expected: np.ndarray[Any, Any], syntax: str) -> None:
    np.testing.assert_array_equal(decode(photograph_file(GREY, syntax=syntax, colour=colour)), rgb(expected))


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_luminance_and_chrominance_become_rgb(syntax: str) -> None:
    data = photograph_file(convert_color_space(RETINA, "RGB", "YBR_FULL"), syntax=syntax, colour="YBR_FULL")
    assert np.abs(decode(data).astype(int) - RETINA).max() <= 3


def test_halved_chrominance_becomes_rgb() -> None:
    even = np.repeat(RETINA[:, ::2], 2, axis=1)
    ybr = convert_color_space(even, "RGB", "YBR_FULL")
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    dataset = photograph_dataset(even, colour="YBR_FULL_422")
    dataset.PixelData = pairs.tobytes()
    assert np.abs(decode(dicom_file(dataset)).astype(int) - even).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(bits: int) -> None:
    image = Image.fromarray(RETINA).quantize(64)
    indices = np.asarray(image)
    palette = np.zeros((256, 3), dtype=np.uint16 if bits == 16 else np.uint8)
    flat = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
    palette[: len(flat)] = flat
    names = ("Red", "Green", "Blue")
    scaled = palette * 257 if bits == 16 else palette
    attributes: dict[str, Any] = {}
    for channel, name in enumerate(names):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        attributes[f"{name}PaletteColorLookupTableData"] = scaled[:, channel].tobytes()
    data = photograph_file(indices, colour="PALETTE COLOR", **attributes)
    np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("colour", "options"),
    [("YBR_FULL_422", {}), ("YBR_FULL", {}), ("RGB", {"keep_rgb": True}), ("RGB", {})],
)
def test_a_jpeg_frame_comes_back_nearly_as_it_was(colour: str, options: dict[str, Any]) -> None:
    """The last pair is a wrong header that real devices write; the frame's own marker says what it is."""
    data = jpeg_photograph_file([jpeg(RETINA, **options)], rows=ROWS, columns=COLUMNS, colour=colour)
    assert np.abs(decode(data).astype(int) - RETINA).mean() < 3


@pytest.mark.parametrize(("colour", "expected"), [("MONOCHROME2", GREY), ("MONOCHROME1", 255 - GREY)])
def test_a_grey_jpeg_frame_has_the_right_polarity(colour: str, expected: np.ndarray[Any, Any]) -> None:
    data = jpeg_photograph_file([jpeg(GREY)], rows=ROWS, columns=COLUMNS, colour=colour)
    assert np.abs(decode(data).astype(int) - rgb(expected)).mean() < 3


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_only_the_first_frame_counts(syntax: str) -> None:
    frames = np.stack([RETINA, 255 - RETINA])
    np.testing.assert_array_equal(decode(photograph_file(frames, syntax=syntax)), RETINA)


@pytest.mark.parametrize("fragments", [1, 3])
def test_the_first_jpeg_frame_counts_in_any_number_of_fragments(fragments: int) -> None:
    frames = [jpeg(RETINA), jpeg(255 - RETINA)]
    dataset = photograph_dataset(np.zeros((1, 1, 3), dtype=np.uint8), colour="YBR_FULL_422")
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = ROWS, COLUMNS, 2
    for offsets in (True, False):
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=offsets)
        dataset["PixelData"].is_undefined_length = True
        assert np.abs(decode(dicom_file(dataset, JPEG_BASELINE)).astype(int) - RETINA).mean() < 3


def changed(**attributes: Any) -> bytes:
    return photograph_file(RETINA, **attributes)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (changed(SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.2")), "unsupported_dicom_class"),  # computed tomography
        (changed(SOPClassUID=UID("1.2.840.10008.5.1.4.1.1.77.1.5.4")), "unsupported_dicom_class"),  # tomography, eye
        (changed(SOPClassUID=UID("1.2.826.0.1.3680043.8.498.1")), "unsupported_dicom_class"),
        (changed(PhotometricInterpretation="YBR_RCT"), "unsupported_mode"),
        (changed(PhotometricInterpretation="HSV"), "unsupported_mode"),
        (changed(PhotometricInterpretation="MONOCHROME2"), "unsupported_mode"),
        (changed(PixelRepresentation=1), "unsupported_mode"),
        (changed(BitsAllocated=32, BitsStored=32), "unsupported_mode"),
        (changed(BitsStored=9), "unsupported_mode"),
        (changed(BitsStored=0), "unsupported_mode"),
        (changed(Rows=0), "damaged"),
        (changed(Rows=ROWS + 1), "damaged"),
        (changed(Rows=60_000, Columns=60_000), "too_many_pixels"),
        (changed(NumberOfFrames=2), "damaged"),
        (changed(NumberOfFrames=2**31 - 1), "damaged"),
        (changed()[:-100], "truncated"),
        (changed()[:400], "truncated"),
        (changed()[:140], "unsupported_transfer_syntax"),
        (b"\0" * 128 + b"DICM", "unsupported_transfer_syntax"),
        (jpeg_photograph_file([jpeg(RETINA)], rows=ROWS, columns=COLUMNS - 1, colour="YBR_FULL_422"), "damaged"),
        (jpeg_photograph_file([jpeg(GREY)], rows=ROWS, columns=COLUMNS, colour="YBR_FULL_422"), "damaged"),
        (jpeg_photograph_file([jpeg(RETINA)[:900]], rows=ROWS, columns=COLUMNS, colour="YBR_FULL_422"), "truncated"),
        (jpeg_photograph_file([b"\x89PNG not a JPEG"], rows=ROWS, columns=COLUMNS, colour="RGB"), "damaged"),
    ],
)
def test_what_cannot_be_used_is_named(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"]
)
def test_a_foreign_transfer_syntax_is_named_before_anything_is_inflated(syntax: str) -> None:
    data = photograph_file(RETINA).replace(EXPLICIT.encode() + b"\0", (syntax + "\0" * (len(syntax) % 2)).encode())
    # The length of the UID's element has to follow.
    at = data.index(b"UI", data.index(b"\x02\0\x10\0")) + 2
    data = data[:at] + struct.pack("<H", len(syntax) + len(syntax) % 2) + data[at + 2 :]
    assert reason(data) == "unsupported_transfer_syntax"


def test_the_size_is_judged_before_the_pixels() -> None:
    data = jpeg_photograph_file([b"nothing that could be decoded"], rows=65_000, columns=65_000, colour="RGB")
    assert reason(data) == "too_many_pixels"
    frame = jpeg(np.zeros((2_000, 2_000, 3), dtype=np.uint8))
    assert reason(jpeg_photograph_file([frame], rows=100, columns=100, colour="YBR_FULL_422")) == "too_many_pixels"


def test_a_frame_above_what_pillow_decodes_is_named_whatever_is_allowed() -> None:
    frame = bytearray(jpeg(RETINA))
    at = frame.index(b"\xff\xc0") + 5
    frame[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    data = jpeg_photograph_file([bytes(frame)], rows=20_000, columns=20_000, colour="YBR_FULL_422")
    assert reason(data, max_pixels=10**9) == "too_many_pixels"


def test_more_run_length_data_than_any_encoder_makes_are_not_unpacked() -> None:
    segment = b"\x81\xff" * 2**20
    header = struct.pack("<16L", 3, 64, 66, 68, *[0] * 12)
    dataset = photograph_dataset(RETINA[:10, :10])
    dataset.PixelData = encapsulate([header + b"\0\0\0\0" + segment])
    dataset["PixelData"].is_undefined_length = True
    began = time.thread_time()
    assert reason(dicom_file(dataset, RLE)) == "damaged"
    assert time.thread_time() - began < 0.5


def test_a_flood_of_elements_and_of_nested_sequences_ends_soon() -> None:
    head = photograph_file(RETINA)
    at = head.index(b"\x08\0\x16\0UI")
    private = b"".join(struct.pack("<HH2sH", 0x0009, 0x1000 + i % 0xE000, b"UN", 0) + b"\0" * 4 for i in range(300_000))
    nested = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    for flood in (private, nested * 50_000):
        began = time.thread_time()
        assert reason(head[:at] + flood + head[at:]) in {"damaged", "truncated"}
        assert time.thread_time() - began < 1.0


def test_without_pydicom_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photograph_file(RETINA)
    import_module = builtins.__import__

    def no_pydicom(name: str, *rest: Any) -> Any:
        if name.startswith("pydicom"):
            raise ImportError(name)
        return import_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_pydicom)
    with pytest.raises(UndecodableImage, match=r"pip install 'synfundus\[dicom\]'") as caught:
        decode(data)
    assert caught.value.reason == Undecodable.DICOM_SUPPORT_MISSING
    assert dicom_eye_side(data) is None


@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"ImageLaterality": "R"}, 0),
        ({"ImageLaterality": "L"}, 1),
        ({"Laterality": "L"}, 1),
        ({"ImageLaterality": "R", "Laterality": "L"}, 0),
        ({"ImageLaterality": "", "Laterality": "L"}, 1),
        ({"ImageLaterality": "B"}, None),
        ({}, None),
    ],
)
def test_the_side_is_what_the_header_says(attributes: dict[str, Any], side: int | None) -> None:
    assert dicom_eye_side(photograph_file(RETINA, **attributes)) == side


@pytest.mark.parametrize("data", [b"", b"x" * 200, jpeg(RETINA), b"\0" * 128 + b"DICM"])
def test_what_is_no_dicom_file_has_no_side(data: bytes) -> None:
    assert dicom_eye_side(data) is None


def test_no_value_of_the_header_reaches_a_message_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "DOE^JANE"
    inner = Dataset()
    inner.PatientName = secret
    named: dict[str, Any] = {"PatientName": secret, "PatientID": secret}
    whole = photograph_file(RETINA, **named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom sees what is wrong with them
        broken_files = (
            photograph_file(RETINA, **named, PhotometricInterpretation=secret),
            whole.replace(OPHTHALMIC_8.encode(), secret.ljust(len(OPHTHALMIC_8)).encode()),
            whole.replace(b"\x28\0\x10\0US\x02\0", b"\x28\0\x10\0IS\x08\0" + secret.encode()),
            photograph_file(RETINA, **named, RequestAttributesSequence=Sequence([inner]), Rows=0),
            photograph_file(RETINA, **named, BitsStored=9),
        )
    for broken in broken_files:
        with pytest.raises(UndecodableImage) as caught:
            decode(broken)
        assert secret not in f"{caught.value}{caught.value.__cause__}"
    assert secret not in caplog.text


@settings(max_examples=150, deadline=None)
@example(RLE, 2, 2, False)  # a number whose length is none of its kind
@given(
    st.sampled_from([EXPLICIT, IMPLICIT, RLE, JPEG_BASELINE]),
    st.integers(0, 2**31),
    st.integers(1, 24),
    st.booleans(),
)
def test_flipped_bytes_give_a_picture_or_a_named_reason(syntax: str, seed: int, count: int, cut: bool) -> None:
    rng = np.random.default_rng(seed)
    small = RETINA[:20, :20]
    whole = (
        jpeg_photograph_file([jpeg(small)], rows=20, columns=20, colour="YBR_FULL")
        if syntax == JPEG_BASELINE
        else photograph_file(small, syntax=syntax)
    )
    data = bytearray(whole)
    for position in rng.integers(132, len(data), count):
        data[position] = int(rng.integers(256))
    if cut:
        del data[int(rng.integers(132, len(data))) :]
    try:
        outcome: object = decode_photograph(bytes(data), max_pixels=100_000).ndim
    except UndecodableImage as error:
        outcome = error.reason
    assert outcome == 3 or outcome in set(Undecodable)


def test_the_classes_of_the_standard_are_what_the_table_says() -> None:
    from synfundus.photographs import dicom

    assert {uid: UID(uid).name for uid in dicom._CLASSES} == dicom._CLASSES
    assert UID(OPHTHALMIC_16).name == "Ophthalmic Photography 16 Bit Image Storage"
