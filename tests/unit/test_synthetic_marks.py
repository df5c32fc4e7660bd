"""Marks of generated images: found in every format that carries one, and in no photograph or drawing."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import BIG_ENDIAN, EXPLICIT, IMPLICIT, dicom_file, photograph_dataset
from PIL import Image, PngImagePlugin

from synfundus.artifacts.samples.description import image_marks
from synfundus.photographs.decoding.synthetic_marks import is_marked_synthetic
from synfundus.pictures.sheets import encode_png

PIXELS = np.random.Generator(np.random.Philox(0)).integers(0, 255, (24, 24, 3), dtype=np.uint8)
XMP = '<rdf:Description Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{}"/>'
GENERATED = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
OTHERS = ("algorithmicMedia", "digitalCapture", "compositeCapture")


def saved(kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind, **options)
    return stream.getvalue()


def with_xmp(kind: str, source_type: str) -> bytes:
    text = XMP.format(source_type)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        return saved(kind, pnginfo=info)
    if kind == "TIFF":
        return saved(kind, tiffinfo={700: text.encode()}, compression="tiff_lzw")
    return saved(kind, xmp=text.encode())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_source_type_is_found_in_xmp_of_every_format_and_others_are_no_mark(kind: str) -> None:
    assert all(is_marked_synthetic(with_xmp(kind, name)) for name in GENERATED)
    assert not any(is_marked_synthetic(with_xmp(kind, name)) for name in OTHERS)
    assert not is_marked_synthetic(saved(kind))


def test_images_of_sample_are_marked_twice_and_phantoms_are_not() -> None:
    marks = image_marks(model="m" * 64, seed=0, index=1, labels={"is_gc": 1})
    ours = encode_png(PIXELS, text=marks, compress_level=1)
    assert is_marked_synthetic(ours)
    assert is_marked_synthetic(ours.replace(b"trainedAlgorithmicMedia", b"digitalCapture-cut-here")), (
        "by its text alone"
    )
    assert is_marked_synthetic(ours.replace(b"synthetic\0yes", b"synthetic\0no!")), "by its XMP alone"
    assert not is_marked_synthetic(encode_png(PIXELS, text={"synthetic": "drawn"}, compress_level=1))


@pytest.mark.parametrize("text", ["plain", "hexadecimal"])
def test_compressed_texts_of_a_png_are_opened(text: str) -> None:
    packet = XMP.format(GENERATED[0])
    info = PngImagePlugin.PngInfo()
    if text == "plain":
        info.add_itxt("XML:com.adobe.xmp", packet, zip=True)
    else:  # as ImageMagick keeps profiles
        digits = packet.encode().hex()
        lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        info.add_text("Raw profile type xmp", f"\nxmp\n{len(packet):8}\n{lines}\n", zip=True)
    data = saved("PNG", pnginfo=info)
    assert GENERATED[0].encode() not in data
    assert is_marked_synthetic(data)


def test_a_compressed_text_costs_a_bounded_number_of_bytes_and_a_damaged_one_nothing() -> None:
    bomb = zlib.compress(bytes(2**26), 9)
    chunks = b"".join(len(chunk).to_bytes(4, "big") + b"zTXt" + chunk + bytes(4) for chunk in [b"a\0\0" + bomb] * 200)
    assert not is_marked_synthetic(b"\x89PNG\r\n\x1a\n" + chunks)
    assert not is_marked_synthetic(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x05zTXta\0\0zz" + b"\xff" * 9)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_synthetic_data_of_a_dicom_file_is_found_in_every_native_syntax(syntax: str) -> None:
    found = {
        said: is_marked_synthetic(dicom_file(photograph_dataset(PIXELS, SyntheticData=said), syntax))
        for said in ("YES", "NO")
    }
    assert found == {"YES": True, "NO": False}
    assert not is_marked_synthetic(dicom_file(photograph_dataset(PIXELS), syntax))


def test_a_real_photograph_is_not_marked() -> None:
    files = [path for path in Path(__file__).parents[1].joinpath("fixtures/photographs").rglob("*.*") if path.is_file()]
    assert files
    assert not any(is_marked_synthetic(path.read_bytes()) for path in files)
