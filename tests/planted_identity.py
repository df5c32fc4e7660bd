"""Photographs with a patient's identity planted in every place a file has for it, and a search that finds it.

Every carrier of every file holds a token of its own: a name nobody has, the number of the file, and the name of the
carrier. `carriers_in` finds tokens in plain bytes, in UTF-16, in base64, and inside zlib streams, zip members and the
chunks of PNG files.
"""

from __future__ import annotations

import base64
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from dicom_files import EXPLICIT, IMPLICIT, RLE, jpeg, jpeg_photograph_file, photograph_file
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

Pixels = NDArray[np.uint8]
STEM, ASCII_STEM = "Zqxmüllerin", "Zqxmuellerin"
"""A name nobody has, with a letter that encodings disagree about, and as systems without it write it."""

Token = Callable[[str], str]
"""Carrier -> the token to plant there; remembers which carriers were used."""


@dataclass(frozen=True)
class Planted:
    """A file with tokens.

    Attributes:
        suffix: End of its name.
        data: Contents.
        carriers: Where in it tokens are.
        usable: Whether `prepare` is to accept it.
    """

    suffix: str
    data: bytes
    carriers: tuple[str, ...]
    usable: bool = True


# --- the search ------------------------------------------------------------------------------------------------------


def _base64_forms(text: bytes) -> Iterator[bytes]:
    """Yield what is sure to be in base64 of any data that contain ``text``: one form for each alignment."""
    for before in range(3):
        body = base64.b64encode(b"\0" * before + text + b"\0" * (-(before + len(text)) % 3))
        yield body[(8 * before + 5) // 6 : (8 * (before + len(text))) // 6]


def _needles() -> Iterator[bytes]:
    for stem in (STEM, ASCII_STEM):
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            yield re.escape(stem.encode(encoding))
            for form in _base64_forms(stem.encode(encoding)):
                yield re.escape(form)


_NEEDLES = re.compile(b"|".join(sorted(set(_needles()))), re.IGNORECASE)
_ZLIB_STREAM = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


def _unfolded(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yield data and what is compressed or packed in them."""
    yield data
    if depth > 2:
        return
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from _unfolded(archive.read(name), depth + 1)
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                yield repr(member.get_info()).encode()
                stream = archive.extractfile(member)
                assert stream is not None
                yield from _unfolded(stream.read(), depth + 1)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        at, picture = 8, b""
        while at + 8 <= len(data):
            length, name = struct.unpack_from(">I4s", data, at)
            picture += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
            at += 12 + length
        yield zlib.decompressobj().decompress(picture)
        yield from _inflated(data)
    else:
        yield from _inflated(data)


def _inflated(data: bytes) -> Iterator[bytes]:
    for match in _ZLIB_STREAM.finditer(data):
        try:
            yield zlib.decompressobj().decompress(data[match.start() : match.start() + 2**20])
        except zlib.error:
            continue


def hits(data: bytes) -> list[bytes]:
    """Return what is found of any token in data, folded or not."""
    return [match[0] for part in _unfolded(data) for match in _NEEDLES.finditer(part)]


def has_token(data: bytes, token: str) -> bool:
    """Whether one whole token is in data, in any encoding the search knows."""
    forms = [token.encode(encoding) for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")]
    forms += [form for text in forms for form in _base64_forms(text)]
    return any(form in part for part in _unfolded(data) for form in forms)


# --- the carriers ----------------------------------------------------------------------------------------------------


def _directory(entries: list[tuple[int, int, bytes]], at: int, following: int = 0) -> bytes:
    """Return a TIFF directory that begins at ``at``, its values behind it."""
    sizes = {1: 1, 2: 1, 4: 4, 7: 1}
    values_at = at + 2 + 12 * len(entries) + 4
    table, values = struct.pack("<H", len(entries)), b""
    for tag, kind, value in sorted(entries):
        count = len(value) // sizes[kind]
        if len(value) <= 4:
            table += struct.pack("<HHI4s", tag, kind, count, value.ljust(4, b"\0"))
        else:
            table += struct.pack("<HHII", tag, kind, count, values_at + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + struct.pack("<I", following) + values


def exif_block(token: Token, thumbnail: Pixels | None = None) -> bytes:
    """Return EXIF with texts, maker note, comment, place, and an uncropped preview with texts of its own."""
    inner = [
        (0x927C, 7, b"MAKER\0" + token("exif_maker_note").encode("utf-16-le")),
        (0x9286, 7, b"UNICODE\0" + token("exif_user_comment").encode("utf-16-le")),
        (0xA420, 2, token("exif_unique_id").encode("latin-1") + b"\0"),
    ]
    place = [(0x001C, 7, b"ASCII\0\0\0" + token("exif_gps_area").encode())]
    main = [
        (0x010E, 2, token("exif_description").encode() + b"\0"),
        (0x013B, 2, token("exif_artist").encode("latin-1") + b"\0"),
        (0x9C9B, 1, token("exif_windows_title").encode("utf-16-le") + b"\0\0"),
        (0x8769, 4, b"\0\0\0\0"),
        (0x8825, 4, b"\0\0\0\0"),
    ]
    at_inner = 8 + len(_directory(main, 8))
    at_place = at_inner + len(_directory(inner, at_inner))
    at_preview = at_place + len(_directory(place, at_place))
    pointers = {0x8769: at_inner, 0x8825: at_place}
    main = [(tag, kind, struct.pack("<I", pointers[tag]) if tag in pointers else value) for tag, kind, value in main]
    block = b"II*\0\x08\0\0\0" + _directory(main, 8, following=at_preview if thumbnail is not None else 0)
    block += _directory(inner, at_inner) + _directory(place, at_place)
    if thumbnail is not None:
        picture = _commented(jpeg(thumbnail), token("exif_thumbnail"))
        entries = [
            (0x0103, 4, struct.pack("<I", 6)),
            (0x0201, 4, b"\0" * 4),
            (0x0202, 4, struct.pack("<I", len(picture))),
        ]
        entries[1] = (0x0201, 4, struct.pack("<I", at_preview + len(_directory(entries, at_preview))))
        block += _directory(entries, at_preview) + picture
    return block


def _segment(code: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(payload) + 2) + payload


def _commented(picture: bytes, text: str) -> bytes:
    return picture[:2] + _segment(0xFE, text.encode("latin-1")) + picture[2:]


def _xmp(token: Token) -> bytes:
    hidden = base64.b64encode(("xx" + token("xmp_base64")).encode()).decode()
    return (
        f"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description dc:creator='{token('xmp_creator')}'>"
        f"<xmpGImg:image>{hidden}</xmpGImg:image></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def _colour_profile(token: Token) -> bytes:
    """Return a profile whose description is a token; its size and signature are right, the rest is not colour."""
    text = token("icc_description").encode("latin-1")
    tag = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79
    body = struct.pack(">I", 1) + b"desc" + struct.pack(">II", 144, len(tag)) + tag
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 128 + len(body))
    header[8:24] = b"\x02\x10\0\0mntrRGB XYZ "
    header[36:40] = b"acsp"
    return bytes(header) + body


def _photoshop(token: Token) -> bytes:
    caption = token("iptc_caption").encode("latin-1")
    records = b"\x1c\x02\x78" + struct.pack(">H", len(caption)) + caption
    return (
        b"Photoshop 3.0\0"
        + b"8BIM\x04\x04\0\0"
        + struct.pack(">I", len(records))
        + records
        + b"\0" * (len(records) % 2)
    )


def planted_jpeg(pixels: Pixels, token: Token) -> bytes:
    """Plant in all sixteen application segments, in comments, between scans and behind the end."""
    picture = jpeg(pixels, progressive=True)
    first_table = picture.index(b"\xff\xdb")
    segments = _segment(0xE0, b"JFXX\0\x10" + _commented(jpeg(pixels[::4, ::4]), token("jfxx_thumbnail")))
    segments += _segment(0xE1, b"Exif\0\0" + exif_block(token, pixels[::4, ::4]))
    segments += _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + _xmp(token))
    segments += _segment(0xE2, b"ICC_PROFILE\0\x01\x01" + _colour_profile(token))
    segments += _segment(0xED, _photoshop(token))
    for number in (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15):
        segments += _segment(0xE0 + number, b"VENDOR\0" + token(f"app{number}").encode())
    segments += _segment(0xFE, token("comment").encode()) + _segment(0xFE, token("second_comment").encode("utf-16-be"))
    scan = picture.rindex(b"\xff\xda")
    between = _segment(0xFE, token("comment_between_scans").encode())
    planted = picture[:first_table] + segments + picture[first_table:scan] + between + picture[scan:]
    return planted + token("after_end").encode() + jpeg(pixels[::2, ::2])


def _chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def planted_png(pixels: Pixels, token: Token) -> bytes:
    """Plant in every text chunk, compressed or not, in EXIF, the colour profile, private chunks and behind the end."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    picture = stream.getvalue()
    head, rest = picture[:33], picture[33:]
    deflated = zlib.compress(token("png_itxt_compressed").encode())
    chunks = _chunk(b"tEXt", b"PatientName\0" + token("png_text").encode("latin-1"))
    chunks += _chunk(b"zTXt", b"PatientID\0\0" + zlib.compress(token("png_ztxt").encode("latin-1")))
    chunks += _chunk(b"iTXt", b"Study\0\0\0de\0\0" + token("png_itxt").encode())
    chunks += _chunk(b"iTXt", b"Note\0\1\0\0\0" + deflated)
    chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _xmp(token))
    chunks += _chunk(b"eXIf", exif_block(token, pixels[::4, ::4]))
    chunks += _chunk(b"iCCP", b"profile\0\0" + zlib.compress(_colour_profile(token)))
    chunks += _chunk(b"prVt", token("png_private").encode("utf-16-le"))
    end = rest.index(b"IEND") - 4
    late = _chunk(b"tEXt", b"Late\0" + token("png_late_text").encode("latin-1"))
    return head + chunks + rest[:end] + late + rest[end:] + token("after_end").encode()


def planted_tiff(pixels: Pixels, token: Token) -> bytes:
    """Plant in named and private tags, in the colour profile, in a second page, and behind the end."""
    tags = ImageFileDirectory_v2()
    for tag, name in ((270, "tiff_description"), (315, "tiff_artist"), (306, "tiff_date"), (65000, "tiff_private")):
        tags[tag] = token(name).encode()  # text would lose its umlaut
        tags.tagtype[tag] = 2
    tags[33723] = _photoshop(token)
    tags.tagtype[33723] = 7
    page = Image.fromarray(pixels[::2, ::2])
    second = ImageFileDirectory_v2()
    second[270] = token("tiff_second_page").encode()
    page.encoderinfo = {"tiffinfo": second}
    stream = io.BytesIO()
    Image.fromarray(pixels).save(
        stream,
        "TIFF",
        tiffinfo=tags,
        icc_profile=_colour_profile(token),
        save_all=True,
        append_images=[page],
        compression="tiff_deflate",
    )
    return stream.getvalue() + token("after_end").encode()


def planted_webp(pixels: Pixels, token: Token) -> bytes:
    """Plant in EXIF, XMP, the colour profile, an unknown chunk and behind the end."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(
        stream, "WEBP", lossless=True, exif=exif_block(token), xmp=_xmp(token), icc_profile=_colour_profile(token)
    )
    data = stream.getvalue()
    text = token("webp_unknown_chunk").encode()
    data += b"priv" + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] + token("after_end").encode()


def planted_bmp(pixels: Pixels, token: Token) -> bytes:
    """Plant between header and pixels, and behind the end."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    data = stream.getvalue()
    (at,) = struct.unpack_from("<I", data, 10)
    gap = token("bmp_gap").encode("utf-16-le")
    return data[:10] + struct.pack("<I", at + len(gap)) + data[14:at] + gap + data[at:] + token("after_end").encode()


def _named_attributes(pixels: Pixels, token: Token) -> dict[str, object]:
    referrer = Dataset()
    referrer.ReferringPhysicianName = token("dicom_nested_name")
    icon = Dataset()
    icon.PixelData = token("dicom_icon").encode() + b"\0" * (len(token("dicom_icon").encode()) % 2)
    icon["PixelData"].VR = "OB"
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": token("dicom_name"),
        "PatientID": token("dicom_id"),
        "PatientBirthDate": "19500229",
        "PatientComments": token("dicom_comments"),
        "InstitutionName": token("dicom_institution"),
        "StudyDescription": token("dicom_study"),
        "ImageComments": token("dicom_image_comments"),
        "DeviceSerialNumber": token("dicom_device"),
        "ReferencedStudySequence": Sequence([referrer]),
        "IconImageSequence": Sequence([icon]),
        "DataSetTrailingPadding": token("dicom_padding").encode() + b"\0" * (len(token("dicom_padding").encode()) % 2),
    }


def planted_dicom(pixels: Pixels, token: Token, *, syntax: str) -> bytes:
    """Plant in names, comments, sequences, the icon, private elements, an overlay, the preamble and behind the end."""
    attributes = _named_attributes(pixels, token)
    extra = Dataset()
    extra.add_new(0x00110010, "LO", "VENDOR 1.0")
    extra.add_new(0x00111001, "UN", token("dicom_private").encode("utf-16-le"))
    extra.add_new(0x60000022, "LO", token("dicom_overlay_label"))
    overlay = token("dicom_overlay").encode()
    extra.add_new(0x60003000, "OW", overlay + b"\0" * (len(overlay) % 2))
    for name, value in attributes.items():
        setattr(extra, name, value)
    if syntax == "jpeg":
        frame = _commented(jpeg(pixels), token("dicom_frame_comment"))
        data = jpeg_photograph_file(
            [frame], rows=pixels.shape[0], columns=pixels.shape[1], colour="YBR_FULL_422", update=extra
        )
    else:
        data = photograph_file(pixels, syntax=syntax, update=extra)
    preamble = token("dicom_preamble").encode()[:128].ljust(128, b"\0")
    return preamble + data[128:] + token("after_end").encode()


def planted_files() -> list[Callable[[Pixels, Token], tuple[str, bytes, bool]]]:
    """Return what makes a file of each kind: (suffix, contents, whether it is usable)."""
    return [
        lambda pixels, token: (".jpg", planted_jpeg(pixels, token), True),
        lambda pixels, token: (".png", planted_png(pixels, token), True),
        lambda pixels, token: (".tif", planted_tiff(pixels, token), True),
        lambda pixels, token: (".webp", planted_webp(pixels, token), True),
        lambda pixels, token: (".bmp", planted_bmp(pixels, token), True),
        lambda pixels, token: (".dcm", planted_dicom(pixels, token, syntax=EXPLICIT), True),
        lambda pixels, token: (".dcm", planted_dicom(pixels, token, syntax=IMPLICIT), True),
        lambda pixels, token: (".dcm", planted_dicom(pixels, token, syntax=RLE), True),
        lambda pixels, token: (".dcm", planted_dicom(pixels, token, syntax="jpeg"), True),
        lambda pixels, token: (".jpg", _cut(planted_jpeg(pixels, token)), False),
        lambda pixels, token: (".png", planted_png(pixels * 0, token), False),
        lambda pixels, token: (".dcm", _no_photograph(planted_dicom(pixels, token, syntax=EXPLICIT)), False),
    ]


def _cut(data: bytes) -> bytes:
    """Cut a planted JPEG in its last scan."""
    behind = data.rindex(b"\xff\xd8\xff")
    return data[: data.rindex(b"\xff\xda", 0, behind) + 40]


def _no_photograph(data: bytes) -> bytes:
    return data.replace(b"1.2.840.10008.5.1.4.1.1.77.1.5.1", b"1.2.840.10008.5.1.4.1.1.77.1.5.4")


def plant(pixels: Pixels, number: int) -> Planted:
    """Return the ``number``-th planted file; kinds take turns."""
    kinds = planted_files()
    carriers: list[str] = []

    def token(carrier: str) -> str:
        if carrier not in carriers:
            carriers.append(carrier)
        return token_of(number, carrier)

    suffix, data, usable = kinds[number % len(kinds)](pixels, token)
    if suffix == ".jpg" and not usable:
        carriers.remove("after_end")
    return Planted(suffix, data, tuple(carriers), usable)


def token_of(number: int, carrier: str) -> str:
    """Return what is planted in a carrier of a file."""
    return f"{STEM}{number:04d}{carrier}"
