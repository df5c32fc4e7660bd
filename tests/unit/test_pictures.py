import io

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFont import load_default

from synfundus.errors import DataError
from synfundus.labels.schema import DISEASES, label_caption
from synfundus.pictures.sheets import (
    PictureRow,
    PictureSection,
    contact_sheet,
    encode_png,
    titled_rows,
    wrap_caption,
    wrap_text,
)

TILE_PX = 32


def _flat(value: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((TILE_PX, TILE_PX, 3), value, dtype=np.uint8)


def _count(sheet: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], value: int) -> int:
    return int((sheet == value).all(axis=2).sum())


def test_every_image_of_a_contact_sheet_is_there_unscaled() -> None:
    values = [101, 111, 121, 131, 141]
    sheet = contact_sheet([_flat(v) for v in values], captions=[""] * 5, columns=2, tile_px=TILE_PX, title="")
    assert [_count(sheet, value) for value in values] == [TILE_PX**2] * 5


def test_contact_sheet_reads_row_by_row() -> None:
    sheet = contact_sheet([_flat(101), _flat(111), _flat(121)], captions=[""] * 3, columns=2, tile_px=TILE_PX, title="")
    places = {v: np.argwhere((sheet == v).all(axis=2))[0].tolist() for v in (101, 111, 121)}
    assert places[101][0] == places[111][0] < places[121][0]
    assert places[101][1] == places[121][1] < places[111][1]


def test_captions_make_room_below_their_row_and_are_written() -> None:
    images = [_flat(101), _flat(111)]
    plain = contact_sheet(images, captions=["", ""], columns=2, tile_px=TILE_PX, title="")
    captioned = contact_sheet(images, captions=["DR 4", "DR 1"], columns=2, tile_px=TILE_PX, title="")
    assert captioned.shape[0] > plain.shape[0]
    assert captioned.shape[1] == plain.shape[1]
    assert int(captioned.max()) > 150, "no ink"


def test_images_of_other_sizes_are_fitted_into_the_tile_whole() -> None:
    wide = np.full((20, 80, 3), 200, dtype=np.uint8)
    sheet = contact_sheet([wide], captions=[""], columns=1, tile_px=40, title="")
    rows, columns = np.nonzero((sheet == 200).all(axis=2))
    assert [int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1] == [10, 40]


@pytest.mark.parametrize(
    ("images", "captions"),
    [([], []), ([_flat(1)], []), ([np.zeros((4, 4), dtype=np.uint8)], [""]), ([np.zeros((4, 4, 3))], [""])],
)
def test_what_is_no_set_of_captioned_rgb_images_is_refused(images: list[object], captions: list[str]) -> None:
    with pytest.raises(DataError):
        contact_sheet(images, captions=captions, columns=2, tile_px=8, title="")  # type: ignore[arg-type]


def test_wrapping_keeps_every_word_and_cuts_words_wider_than_a_line() -> None:
    text = "pathologic myopia, epiretinal membrane Donaudampfschifffahrtsgesellschaft"
    lines = wrap_text(text, size_px=11, width_px=80)
    assert len(lines) > 2
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_wrapping_nothing_gives_no_lines() -> None:
    assert wrap_text("", size_px=11, width_px=80) == []


def test_groups_line_up_over_the_rows_of_a_section() -> None:
    rows = [PictureRow("a", [[_flat(101)], [_flat(111)]]), PictureRow("b", [[_flat(121), _flat(131)], [_flat(141)]])]
    sheet = titled_rows([PictureSection("t", "s", ("x", "y"), rows)], tile_px=TILE_PX, title_width_px=50)
    left = {v: int(np.argwhere((sheet == v).all(axis=2))[:, 1].min()) for v in (101, 111, 121, 131, 141)}
    assert left[101] == left[121]
    assert left[111] == left[141] > left[131]


def test_a_picture_without_rows_is_refused() -> None:
    with pytest.raises(DataError):
        titled_rows([PictureSection("t", "", (), [])], tile_px=8, title_width_px=8)


def test_png_round_trips_with_its_text_and_the_same_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = encode_png(pixels, text={"synthetic": "yes", "seed": "3"}, compress_level=6)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        info = {name: value for name, value in image.info.items() if "xmp" not in name}
        assert info == {"synthetic": "yes", "seed": "3"}
        assert np.array_equal(np.asarray(image), pixels)
    assert data == encode_png(pixels, text={"synthetic": "yes", "seed": "3"}, compress_level=6)


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("yes", "/trainedAlgorithmicMedia"),
        ("in part", "/compositeWithTrainedAlgorithmicMedia"),
        ("drawn", "/algorithmicMedia"),
        ("", ""),
    ],
)
def test_what_is_synthetic_says_so_in_xmp_and_nothing_else_does(mark: str, kind: str) -> None:
    text = {"synthetic": mark} if mark else {"Source": "a camera"}
    with Image.open(io.BytesIO(encode_png(np.zeros((4, 4, 3), dtype=np.uint8), text=text, compress_level=6))) as image:
        image.load()
        assert kind in image.info.get("XML:com.adobe.xmp", "")
        assert ("XML:com.adobe.xmp" in image.info) == bool(mark)


def test_caption_names_what_is_present_and_leaves_out_what_is_absent_or_unknown() -> None:
    labels = {"dr_grade": 2, "is_gc": 1, "is_pm": 0, "is_amd": None, "is_fundus": 0, "eye_side": 1, "stage": 3}
    assert label_caption(labels) == "left, DR 2, glaucoma, unreadable, stage=3"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"is_gc": None}, "no labels"),
        ({"is_gc": 0}, "no glaucoma"),
        ({"eye_side": 0, "is_gc": 0, "is_dme": 0}, "right, no macular edema, no glaucoma"),
        (dict.fromkeys(["is_gc", "is_amd", "is_pm"], 0), "3 findings absent"),
        ({"is_fundus": 0, "is_gc": 0}, "no glaucoma, unreadable"),
        ({"dr_grade": 0, "is_gc": 0}, "DR 0"),
        (dict.fromkeys(DISEASES, 0), "no findings"),
        (dict.fromkeys(DISEASES[1:], 0), "10 findings absent"),
        ({"is_fundus": 1}, "readable"),
        ({"stage": 0}, "stage=0"),
    ],
)
def test_caption_says_no_findings_only_where_all_are_known_to_be_absent(
    labels: dict[str, int | None], expected: str
) -> None:
    assert label_caption(labels) == expected


@pytest.mark.parametrize("width_px", [64, 96, 110, 192])
def test_a_caption_breaks_between_findings_or_words_and_marks_what_it_cuts(width_px: int) -> None:
    findings = ["left eye", "DR 2", "degenerative myopia", "macular edema", "age-related macular degeneration"]
    text = ", ".join(findings)
    lines = wrap_caption(text, width_px=width_px)
    font = load_default(11)
    assert all(font.getlength(line) <= width_px for line in lines)
    assert not any(line.endswith((",", " ")) for line in lines)
    words = set(text.replace(",", "").split())
    for word in " ".join(lines).replace(",", "").split():
        assert word in words or (word.endswith("…") and any(one.startswith(word[:-1]) for one in words))
    whole = " ".join(lines).replace(",", "") == text.replace(",", "")
    assert whole != any(line.endswith("…") for line in lines), "what is cut has a mark, and nothing else"


def test_a_small_tile_gets_a_column_as_wide_as_its_words() -> None:
    captions = ["degenerative myopia", "DR 2"]
    sheet = contact_sheet([_flat(90)] * 2, captions=captions, columns=2, tile_px=32, title="")
    assert sheet.shape[1] > contact_sheet([_flat(90)] * 2, captions=["", ""], columns=2, tile_px=32, title="").shape[1]
    assert wrap_caption("degenerative myopia", width_px=80) == ["degenerative", "myopia"]
