"""What each set's table becomes: labels that are known, labels that are not, and rows that are refused."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, DISEASES
from synfundus.photographs.importers import IMPORTERS, read_with_importer
from synfundus.photographs.importers.odir import eye_labels, keywords
from synfundus.photographs.label_table import LabelTable

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "importers"
NORMAL = dict.fromkeys(DISEASES, 0)


def read(name: str, table: str | None, files: Collection[str] = ()) -> LabelTable:
    data = None if table is None else (FIXTURES / table).read_bytes()
    return read_with_importer(name, data, DEFAULT_LABEL_SCHEMA, files=files, where=table or "folder")


def known(table: LabelTable) -> dict[str, dict[str, int]]:
    """Return the labels that are not unknown, by file."""
    return {row.file: {n: v for n, v in row.labels.items() if v is not None} for row in table.rows}


def refused(table: LabelTable) -> list[tuple[int, str, str]]:
    return [(reject.line, reject.file, reject.reason) for reject in table.rejected]


def test_eyepacs_takes_patient_and_side_from_the_name() -> None:
    table = read("eyepacs", "eyepacs.csv")
    assert [(row.file, row.patient) for row in table.rows] == [
        ("7001_left.jpeg", "7001"),
        ("7001_right.jpeg", "7001"),
        ("7002_left.jpeg", "7002"),
    ]
    grades = {"7001_left.jpeg": 0, "7001_right.jpeg": 2, "7002_left.jpeg": 4}
    assert known(table) == {name: {"dr_grade": grade} for name, grade in grades.items()}
    assert refused(table) == [
        (5, "7003_middle.jpeg", "unknown_label_value"),
        (6, "7004_right.jpeg", "unknown_label_value"),
    ]
    assert table.mapping.source == "EyePACS"
    (warning,) = table.warnings
    assert "the eye side is unknown; --set prepare.name_sides=true" in warning


def test_the_sides_in_the_names_of_eyepacs_are_taken_at_their_word_only_if_asked() -> None:
    data = (FIXTURES / "eyepacs.csv").read_bytes()
    asked = read_with_importer("eyepacs", data, DEFAULT_LABEL_SCHEMA, files=(), where="t.csv", name_sides=True)
    assert {row.file: row.labels["eye_side"] for row in asked.rows} == {
        "7001_left.jpeg": 1,
        "7001_right.jpeg": 0,
        "7002_left.jpeg": 1,
    }
    assert refused(asked) == refused(read("eyepacs", "eyepacs.csv"))
    assert asked.warnings == ()


def test_aptos_knows_the_grade_alone() -> None:
    table = read("aptos2019", "aptos2019.csv")
    assert known(table) == {
        "aa00000000f1.png": {"dr_grade": 0},
        "aa00000000f2.png": {"dr_grade": 3},
        "aa00000000f3.png": {},
    }
    assert refused(table) == [(5, "aa00000000f4.png", "unknown_label_value")]
    assert any("does not identify patients" in warning for warning in table.warnings)


def test_messidor2_ungradable_is_unreadable_and_its_grades_are_not_believed() -> None:
    table = read("messidor2", "messidor2.csv")
    assert known(table) == {
        "20990101_00001_0100_PP.png": {"dr_grade": 0, "is_dme": 0, "is_fundus": 1},
        "20990101_00002_0100_PP.png": {"dr_grade": 3, "is_dme": 1, "is_fundus": 1},
        "IM990003.jpg": {"is_fundus": 0},
        "IM990004.jpg": {"is_fundus": 0},
    }
    assert refused(table) == [(6, "IM990005.jpg", "unknown_label_value")]
    assert known(read("messidor2", "messidor2_kaggle.csv")) == {
        "20990101_00001_0100_PP.png": {"dr_grade": 4, "is_dme": 1, "is_fundus": 1},
        "IM990003.jpg": {"is_fundus": 0},
    }


def test_airogs_knows_glaucoma_and_that_its_photographs_were_gradable() -> None:
    table = read("airogs", "airogs.csv")
    assert known(table) == {
        "TRAIN900001.jpg": {"is_gc": 1, "is_fundus": 1},
        "TRAIN900002.jpg": {"is_gc": 0, "is_fundus": 1},
    }
    assert refused(table) == [(4, "TRAIN900003.jpg", "unknown_label_value")]
    assert any("same screening programme" in warning for warning in table.warnings)


def test_ddr_grade_5_is_ungradable_and_its_lines_have_no_header() -> None:
    table = read("ddr", "ddr.txt")
    assert known(table) == {
        "999-0001-000.jpg": {"dr_grade": 0, "is_fundus": 1},
        "999-0001-001.jpg": {"dr_grade": 4, "is_fundus": 1},
        "999-0002-000.jpg": {"is_fundus": 0},
    }
    assert refused(table) == [(4, "999-0003-000.jpg", "unknown_label_value"), (5, "", "malformed_row")]
    assert known(read("ddr", "ddr_kaggle.csv")) == {
        "999-0001-000.jpg": {"dr_grade": 0, "is_fundus": 1},
        "999-0001-001.jpg": {"is_fundus": 0},
    }


def test_idrid_header_ends_in_a_blank_and_risk_1_is_unknown() -> None:
    assert b"Risk of macular edema ," in (FIXTURES / "idrid.csv").read_bytes()
    table = read("idrid", "idrid.csv")
    assert known(table) == {
        "IDRiD_901.jpg": {"dr_grade": 0, "is_dme": 0},
        "IDRiD_902.jpg": {"dr_grade": 3, "is_dme": 1},
        "IDRiD_903.jpg": {"dr_grade": 1},
    }
    assert refused(table) == [(5, "IDRiD_904.jpg", "unknown_label_value")]


def test_rfmid_codes_mean_what_they_say_and_no_more() -> None:
    table = read("rfmid", "rfmid.csv")
    absent = {"dr_grade": 0, "is_amd": 0, "is_em": 0, "is_rvo": 0, "is_aon": 0, "is_dm": 0, "is_pm": 0}

    def but(*unknown: str, **found: int) -> dict[str, int]:
        return {name: value for name, value in (absent | found).items() if name not in unknown}

    assert known(table) == {
        "1.png": NORMAL,
        "2.png": but(is_amd=1),
        "3.png": but(is_rvo=1),
        "4.png": but("dr_grade", is_rvo=1),
        "5.png": but("is_dm", "is_pm", is_em=1),
        "6.png": but(is_aon=1),
        "7.png": but("is_aon"),  # a cupped disc: neither glaucoma nor its absence
        "8.png": but(),  # HR is hemorrhagic retinopathy
        "9.png": but("is_aon"),
    }
    assert refused(table) == [(11, "10.png", "unknown_label_value")]


def test_rfmid_without_its_rare_codes_does_not_know_the_optic_nerve_to_be_normal() -> None:
    data = (FIXTURES / "rfmid.csv").read_bytes().replace(b",TD,", b",OTHER,")
    table = read_with_importer("rfmid", data, DEFAULT_LABEL_SCHEMA, files=(), where="t")
    assert table.rows[0].labels["is_aon"] is None
    assert table.rows[5].labels["is_aon"] == 1


@pytest.mark.parametrize("version", ["brset_1_0_0.csv", "brset_1_0_2.csv"])
def test_brset_of_both_generations_reads_the_same(version: str) -> None:
    table = read("brset", version)
    absent = {"is_amd": 0, "is_dme": 0, "is_htr": 0, "is_rvo": 0, "is_dm": 0, "is_pm": 0, "is_fundus": 1}
    unoccluded = {name: value for name, value in absent.items() if name not in ("is_rvo", "is_dme")}
    not_myopic = {name: value for name, value in absent.items() if name not in ("is_dm", "is_pm")}
    inadequate = {name: value for name, value in absent.items() if name != "is_fundus"}
    assert known(table) == {
        "img90001.jpg": {**absent, "dr_grade": 0, "eye_side": 0},  # the cup is a sign, not glaucoma
        "img90002.jpg": {**inadequate, "dr_grade": 2, "is_dme": 1, "eye_side": 1},
        "img90003.jpg": {**unoccluded, "dr_grade": 0, "is_amd": 1, "eye_side": 0},
        "img90004.jpg": {**not_myopic, "dr_grade": 0, "is_htr": 1, "eye_side": 1},
    }
    assert [row.patient for row in table.rows] == ["9001", "9001", "9002", "9003"]
    assert refused(table) == [(6, "img90005.jpg", "unknown_label_value")]
    assert any("exam_eye" in warning for warning in table.warnings) == (version == "brset_1_0_0.csv")


def test_brset_is_known_by_the_columns_that_count() -> None:
    data = (FIXTURES / "brset_1_0_0.csv").read_bytes()
    for spelling in (b"iluminaton", b"ilumination", b"lighting"):
        other = data.replace(b"Illuminaton", spelling).replace(b"drusens", b"drusen_")
        rows = read_with_importer("brset", other, DEFAULT_LABEL_SCHEMA, files=(), where="t.csv").rows
        assert [row.labels for row in rows] == [row.labels for row in read("brset", "brset_1_0_0.csv").rows]


def test_mbrset_reads_words_and_missing_grades() -> None:
    table = read("mbrset", "mbrset.csv")
    assert known(table) == {
        "901.1.jpg": {"dr_grade": 2, "is_dme": 1, "is_fundus": 1, "eye_side": 0},
        "901.2.jpg": {"is_fundus": 0, "eye_side": 1},
        "902.1.jpg": {"dr_grade": 0, "is_dme": 0, "is_fundus": 1, "eye_side": 0},
    }
    assert [row.patient for row in table.rows] == ["901", "901", "902"]
    assert refused(table) == [(5, "903.1.jpg", "unknown_label_value")]


def test_refuge_and_palm_read_the_class_from_the_name() -> None:
    files = ["T/g0001.jpg", "T/n0002.jpg", "V0003.jpg", "T/x0004.jpg", "masks/g0001.bmp", "index.json", "note.jpg"]
    table = read("refuge", None, files)
    assert known(table) == {"T/g0001.jpg": {"is_gc": 1}, "T/n0002.jpg": {"is_gc": 0}, "V0003.jpg": {}}
    assert refused(table) == [(3, "T/x0004.jpg", "unknown_label_value"), (5, "note.jpg", "unknown_label_value")]
    palm = read("palm", None, ["P0001.jpg", "H0002.jpg", "N0003.JPG", "T0004.jpg", "g0001.jpg"])
    assert known(palm) == {
        "P0001.jpg": {"is_pm": 1},
        "H0002.jpg": {"is_pm": 0},
        "N0003.JPG": {"is_pm": 0},
        "T0004.jpg": {},
    }
    assert [reject.file for reject in palm.rejected] == ["g0001.jpg"]


def test_refuge_does_not_take_an_annotated_copy_for_the_photograph() -> None:
    files = ["Training400/g0001.jpg", "Illustration/g0001.jpg", "Training400/n0002.jpg"]
    table = read("refuge", None, files)
    assert list(known(table)) == ["Training400/n0002.jpg"]
    assert refused(table) == [
        (1, "Illustration/g0001.jpg", "ambiguous_file"),
        (2, "Training400/g0001.jpg", "ambiguous_file"),
    ]


def test_synfundus_1m_finds_its_images_by_number_and_by_name() -> None:
    table = read("synfundus1m", "synfundus1m_gen_cond.csv", {"Part0/0.png", "Part1/50000.png"})
    assert [row.file for row in table.rows] == [
        "Part0/0.png",
        "Part0/49999.png",
        "Part1/50000.png",
        "Part19/1000001.png",
    ]
    assert [row.labels["dr_grade"] for row in table.rows] == [0, 4, 0, 0]
    assert [row.labels["eye_side"] for row in table.rows] == [0, 0, 1, 0]
    assert [row.labels["is_gc"] for row in table.rows] == [0, 0, 0, 1]
    assert all(value is not None for row in table.rows for value in row.labels.values())
    assert refused(table) == [(6, "Part0/7.png", "unknown_label_value")]
    named = read("synfundus1m", "synfundus1m_annotation.csv", {"Part3/150001.png", "Part3/150002.png"})
    assert [row.file for row in named.rows] == ["Part3/150001.png", "Part3/150002.png"]
    assert {name for name, value in named.rows[0].labels.items() if value is None} == {
        "is_macular_readable",
        "eye_side",
    }


def test_odir_labels_each_eye_from_its_own_keywords() -> None:
    table = read("odir5k", "odir5k.csv")
    eyes = known(table)
    absent = {"dr_grade": 0, "is_amd": 0, "is_gc": 0, "is_htr": 0, "is_pm": 0}
    left, right = {"eye_side": 1}, {"eye_side": 0}
    normal = {**NORMAL, "is_fundus": 1}
    assert eyes["9001_left.jpg"] == {**absent, **left}
    assert eyes["9001_right.jpg"] == {**normal, **right}
    assert eyes["9002_left.jpg"] == {"dr_grade": 2, "is_htr": 1, "is_amd": 0, "is_gc": 0, "is_pm": 0, **left}
    assert eyes["9002_right.jpg"] == {**normal, **right}  # D and H are of the other eye
    assert eyes["9003_left.jpg"] == {"dr_grade": 0, "is_amd": 1, "is_gc": 1, "is_htr": 0, "is_pm": 0, **left}
    assert eyes["9003_right.jpg"] == {"dr_grade": 0, "is_htr": 0, "is_pm": 0, "is_em": 1, **right}  # G and A: unknown
    assert eyes["9004_left.jpg"] == {"dr_grade": 0, "is_amd": 0, "is_htr": 0, **left}  # suspected is unknown
    assert eyes["9004_right.jpg"] == {"dr_grade": 0, "is_amd": 0, "is_htr": 0, "is_pm": 1, **right}
    assert eyes["9005_left.jpg"] == {"is_fundus": 0, **left}
    assert eyes["9005_right.jpg"] == {"is_fundus": 0, **right}
    assert eyes["9006_left.jpg"] == {"is_amd": 0, "is_gc": 0, "is_htr": 0, "is_pm": 0, **left}  # no grade is given
    assert eyes["9006_right.jpg"] == {"is_amd": 0, "is_htr": 0, "is_pm": 0, "is_optic_disc_readable": 0, **right}
    assert eyes["9007_left.jpg"]["dr_grade"] == 4
    assert eyes["9007_right.jpg"] == {"is_amd": 0, "is_gc": 0, "is_htr": 0, "is_pm": 0, "is_rvo": 1, **right}
    assert eyes["9008_right.jpg"] == right  # no keywords
    assert refused(table) == [(10, f"9009_{side}.jpg", "unknown_label_value") for side in ("left", "right")]
    assert all(row.patient == row.file.split("_")[0] for row in table.rows)
    assert len(table.rows) + len(table.rejected) == 2 * 9


def test_odir_with_a_row_for_each_photograph_labels_that_photograph_alone() -> None:
    table = read("odir5k", "odir5k_full_df.csv")
    both = known(read("odir5k", "odir5k.csv"))
    assert known(table) == {name: both[name] for name in ("9002_left.jpg", "9002_right.jpg")}
    assert refused(table) == [(4, "9999_left.jpg", "unknown_label_value")]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("normal fundus", ("normal fundus",)),
        ("a，b", ("a", "b")),
        ("a,b", ("a", "b")),
        ("Lens Dust ，  drusen ， ", ("lens dust", "drusen")),
        ("moderate non proliferative retinopathy", ("moderate nonproliferative retinopathy",)),
        ("mild non-proliferative retinopathy", ("mild nonproliferative retinopathy",)),
        ("", ()),
        ("，", ()),
    ],
)
def test_odir_keywords_are_split_at_full_width_and_ascii_commas(cell: str, words: tuple[str, ...]) -> None:
    assert keywords(cell) == words


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ("suspected moderate non proliferative retinopathy", "dr_grade"),
        ("laser spot", "dr_grade"),
        ("fundus laser photocoagulation spots", "dr_grade"),
        ("suspected macular degeneration", "is_amd"),
        ("suspicious glaucoma", "is_gc"),
        ("myopia retinopathy", "is_pm"),
        ("suspected hypertensive retinopathy", "is_htr"),
        ("normal fundus，suspected glaucoma", "is_gc"),
        ("normal fundus，optic disk photographically invisible", "is_gc"),
    ],
)
def test_odir_doubt_is_neither_yes_nor_no(cell: str, label: str) -> None:
    assert eye_labels(cell, dict.fromkeys("DAGHM", "0"))[label] == ""


def test_every_set_has_a_fixture_and_knows_labels_of_the_default_schema() -> None:
    tables = {path.name.split(".")[0].split("_")[0] for path in FIXTURES.iterdir() if path.suffix in (".csv", ".txt")}
    assert tables == {name for name, importer in IMPORTERS.items() if importer.has_table}
    for importer in IMPORTERS.values():
        assert {*importer.labels, *importer.constants} <= set(DEFAULT_LABEL_SCHEMA.names)
        assert set(importer.columns) >= importer.optional
