"""What `prepare` says about tables that do not fit: which rows, why, for example which one, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from phantom_clinic import picture
from tiny_runs import Talk

from synfundus.config.photographs import PrepareConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.ingest import Reject
from synfundus.photographs.label_table import read_label_table
from synfundus.stages import Summary
from synfundus.stages.prepare import job as prepare
from synfundus.stages.prepare.plan import InputPlan, describe_inputs, plan_inputs
from synfundus.stages.prepare.table_notes import early_warnings

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "importers"


def _section(folder: Path, **options: Any) -> PrepareConfig:
    return PrepareConfig.model_validate({"source": str(folder), "labels": str(folder / "labels.csv"), **options})


def _plan(folder: Path, table: str | bytes, files: list[str], **options: Any) -> InputPlan:
    """Plan the inputs of a folder with empty files."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "labels.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    if "mapping" in options:
        (folder / "map.yaml").write_text(options["mapping"])
        options["mapping"] = str(folder / "map.yaml")
    section = _section(folder, **options)
    secret = bytes(32)
    return plan_inputs(
        section, source=str(folder), compared_with=(), open_secret=lambda: secret, withdrawn=dict, seed=0
    )


def _prepare(folder: Path, out: Path, **options: Any) -> tuple[Summary, list[str]]:
    config = _section(folder, out=str(out), image_size_px=64, workers=0, splits=(1.0, 0.0, 0.0), **options)
    console = Talk()
    return prepare.run(RunConfig(prepare=config), LocalWorld(), console), console.lines


def test_a_folder_that_is_a_link_is_part_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "disk" / name).touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train").symlink_to(tmp_path / "disk")
    plan = _plan(tmp_path / "in", "file,dr_grade\ntrain/a.png,1\nc.png,1\n", ["c.png"])
    assert sorted(sample.source for sample in plan.samples) == ["c.png", "train/a.png"]
    assert [(reject.source, reject.reason) for reject in plan.rejects] == [("train/b.png", "not_in_table")]
    assert plan.num_inputs == 3


def test_a_reason_without_a_detail_is_said_once() -> None:
    rejects = [Reject("train/b.png", "", "table", "not_in_table")]
    table = read_label_table(b"file\ntrain/a.png\n", DEFAULT_LABEL_SCHEMA, None, where="t.csv")
    (said,) = early_warnings(table, rejects, 2, ["train/b.png"])
    assert said == "1 of 2 inputs are rejected (50%): 1 not_in_table"


@pytest.mark.parametrize(
    ("importer", "table", "files"),
    [("eyepacs", "image,level\n1_left,2\n", ["1_left.jpeg"]), ("refuge", None, ["g0001.jpg"])],
)
def test_importers_see_what_lies_behind_a_link(
    tmp_path: Path, importer: str, table: str | None, files: list[str]
) -> None:
    (tmp_path / "disk").mkdir()
    for name in files:
        (tmp_path / "disk" / name).touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photos").symlink_to(tmp_path / "disk")
    options: dict[str, Any] = {"importer": importer} if table else {"importer": importer, "labels": None}
    plan = _plan(tmp_path / "in", table or "", [], **options)
    assert [sample.source for sample in plan.samples] == [f"photos/{files[0]}"]


def test_names_below_a_subfolder_are_found_and_said(tmp_path: Path) -> None:
    mapping = "{file: Bild, file_pattern: '{file}.png', labels: {dr_grade: Grad}}"
    rows = [f"Auge {number};{number % 5}" for number in range(21)]
    files = ["Auge 0.png", *(f"sub/Auge {number}.png" for number in range(1, 21))]
    plan = _plan(tmp_path, "\n".join(["Bild;Grad", *rows]), files, mapping=mapping)
    assert (len(plan.samples), plan.rejects) == (21, ())
    assert "20 of 21 file names were completed: 20 lie below sub/" in plan.warnings


@pytest.mark.parametrize(("rejected", "warned"), [(1, False), (2, True)])
def test_many_rejects_are_a_warning_with_the_commonest_reasons(tmp_path: Path, rejected: int, warned: bool) -> None:
    cells = ["maybe"] * rejected + ["1"] * (10 - rejected)
    rows = [f"{at}.png,P{at},{cell}" for at, cell in enumerate(cells)]
    plan = _plan(tmp_path, "\n".join(["file,patient_id,is_gc", *rows]), [f"{at}.png" for at in range(10)])
    expected = (
        "2 of 10 inputs are rejected (20%): 2 unknown_label_value; unknown_label_value, for example line 2: is_gc: "
        "'maybe' in column is_gc is not one of 0..1 (no, yes): say what these cells mean (null = unknown) in a "
        "--mapping, for example: {file: file, patient_id: patient_id, labels: {is_gc: {column: is_gc, values: {maybe: "
        "null, '1': 'yes'}}}}"
    )
    assert plan.warnings == ((expected,) if warned else ())
    shown = describe_inputs(_section(tmp_path), seed=0)
    assert (f"warning: {expected}\n" in shown) is warned


@pytest.mark.parametrize(
    ("table", "files", "message", "hint"),
    [
        (
            "file,is_gc\na.png,Wahr\nb.png,Falsch\nc.png\n",
            ["a.png", "b.png", "c.png"],
            "none of the 3 rows of the table is usable: 2 unknown_label_value, for example line 2: is_gc: the cell in "
            "column is_gc is not one of 0..1 (no, yes)",
            "example: {file: file, labels: {is_gc: {column: is_gc, values: {one cell: 'no', another cell: 'yes'}}}}",
        ),
        (
            "file,is_gc\na.png,1\nb.png,0\n",
            ["a.jpg", "sub/b.jpg"],
            "one of the 2 pictures in --source; 2 of the missing files are there with the extension .jpg, not .png",
            "write the extension of the files into the table",
        ),
        (
            "file,is_gc\na,1\nb,0\n",
            ["a.jpg", "b.jpg"],
            "one of the 2 pictures in --source; 2 of the missing files are there with the extension .jpg",
            'add the extension in a --mapping: file_pattern: "{file}.jpg"',
        ),
        ("file,is_gc\na.png,1\n", ["DOE.png"], "names one of the 1 pictures", "check --source"),
        ("file,is_gc\n1.png,1\n", ["x/1.png", "y/1.png"], "1 ambiguous_file, for example line 2", "as --source"),
        ("file,is_gc\n", ["a.png"], "none of the 0 rows of the table is usable: it has none", "correct the table"),
    ],
)
def test_the_error_of_a_table_without_photographs_says_why(
    tmp_path: Path, table: str, files: list[str], message: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table, files)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "DOE" not in str(caught.value)
    assert "x/1.png" not in str(caught.value)


def _eyes(*cells: str) -> tuple[str, list[str]]:
    """Return a table of eyes and its files."""
    files = [f"{at}.png" for at in range(len(cells))]
    rows = [f"{file},P{at % 7},{cell},{at % 5}" for at, (file, cell) in enumerate(zip(files, cells, strict=True))]
    return "\n".join(["file,patient_id,eye_side,dr_grade", *rows]), files


def test_a_table_whose_rows_are_mostly_misread_is_refused_and_the_hint_is_a_mapping_that_reads_it(
    tmp_path: Path,
) -> None:
    table, files = _eyes(*["rechts", "links"] * 8, "OU", "OD")
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table, files)
    assert caught.value.message == (
        "1 of the 18 rows of the table is usable: 17 unknown_label_value, for example line 2: eye_side: 'rechts' in "
        "column eye_side is not one of 0..1 (right, left)"
    )
    mapping = caught.value.hint.partition("for example: ")[2]
    plan = _plan(tmp_path, table, files, mapping=mapping)
    assert len(plan.samples) == 18
    assert [sample.labels["eye_side"] for sample in plan.samples] == [None] * 17 + [0]
    assert [sample.labels["dr_grade"] for sample in plan.samples] == [at % 5 for at in range(18)]
    mapping = mapping.replace("rechts: null", "rechts: right").replace("links: null", "links: left")
    plan = _plan(tmp_path, table, files, mapping=mapping)
    assert [sample.labels["eye_side"] for sample in plan.samples] == [0, 1] * 8 + [None, 0]


def test_a_mapping_of_ones_own_is_kept_in_the_example(tmp_path: Path) -> None:
    table, files = _eyes(*["rechts"] * 10, "links", "nb")
    mapping = (
        "{source: Clinic, file: file, encoding: utf-8, eye_side: {column: eye_side, values: {nb: null, links: left}}}"
    )
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table, files, mapping=mapping)
    followed = caught.value.hint.partition("for example: ")[2]
    assert followed == (
        "{source: Clinic, file: file, encoding: utf-8, labels: {eye_side: {column: eye_side, values: {rechts: null, "
        "links: left, nb: null}}}}"
    )
    assert len(_plan(tmp_path, table, files, mapping=followed).samples) == 12


@pytest.mark.parametrize(
    "cells",
    [
        ["rechts", "links"],
        ["seen by Dr. Grey on Monday"] * 12,
        ["02.04.61"] * 12,
        [f"R{letter}" for letter in "abcdefghijkl"],
    ],
)
def test_cells_that_may_be_about_a_patient_are_not_quoted(tmp_path: Path, cells: list[str]) -> None:
    table, files = _eyes(*cells)
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table, files)
    assert "eye_side: the cell in column eye_side is not one of 0..1 (right, left)" in caught.value.message
    assert not [cell for cell in cells if cell in str(caught.value)]


def test_names_of_patients_in_a_column_that_a_mapping_confuses_are_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _plan(
            tmp_path,
            _eyes(*"RL" * 12)[0],
            ["0.png"],
            mapping="{file: file, patient_id: patient_id, eye_side: patient_id}",
        )
    assert "P0" not in str(caught.value)


@pytest.mark.parametrize(("grades", "sides", "refused"), [(5, 5, False), (6, 0, True), (5, 6, True)])
def test_more_than_half_of_the_rows_misread_for_one_label_are_an_error(
    tmp_path: Path, grades: int, sides: int, refused: bool
) -> None:
    rows = [f"{at}.png,{'?' if at < grades else 1},{'?' if at < sides else 'OD'}" for at in range(10)]
    table, files = "\n".join(["file,dr_grade,eye_side", *rows]), [f"{at}.png" for at in range(10)]
    if refused:
        with pytest.raises(DataError, match=r"^4 of the 10 rows of the table are usable: 6 unknown_label_value"):
            _plan(tmp_path, table, files)
        with pytest.raises(DataError, match=r"^4 of the 10 rows"):
            describe_inputs(_section(tmp_path), seed=0)
    else:
        assert len(_plan(tmp_path, table, files).samples) == 5


def test_nothing_is_written_for_a_table_that_is_mostly_misread(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _plan(tmp_path / "in", "file,eye_side\na.png,OD\n", ["a.png", "b.png", "c.png"])
    (tmp_path / "in" / "labels.csv").write_text("file,eye_side\na.png,OD\nb.png,OU\nc.png,OU\n")
    with pytest.raises(DataError, match="2 unknown_label_value"):
        _prepare(tmp_path / "in", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_hint_about_extensions_is_true(tmp_path: Path) -> None:
    table, files = "file,is_gc\na,1\nb,0\n", ["a.jpg", "b.jpg"]
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, table, files)
    pattern = caught.value.hint.partition("--mapping: ")[2]
    assert len(_plan(tmp_path, table, files, mapping=f"file: file\nlabels: {{is_gc: is_gc}}\n{pattern}\n").samples) == 2


@pytest.mark.parametrize("table", ["idrid.csv", "aptos2019.csv", "odir5k.csv", "ddr.txt"])
def test_a_table_of_a_known_set_without_its_importer_is_named(tmp_path: Path, table: str) -> None:
    with pytest.raises(DataError) as caught:
        _plan(tmp_path, (FIXTURES / table).read_bytes(), ["a.jpg"])
    name = table.partition(".")[0]
    assert f"--importer {name}" in caught.value.hint
    assert "it looks like" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_known_table_that_can_be_read_but_has_no_label_is_named_too(tmp_path: Path, encoding: str) -> None:
    plan = _plan(tmp_path, "image,level\n1_left.jpeg,2\n".encode(encoding), ["1_left.jpeg"])
    assert any("it looks like EyePACS: --importer eyepacs" in warning for warning in plan.warnings)


def test_a_schema_of_ones_own_names_its_values(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(
        "- {name: gc, values: [no, yes]}\n- {name: dr, num_values: 3, ordinal: true, values: [none, some, 'off']}\n"
    )
    schema = str(tmp_path / "schema.yaml")
    files = ["a.png", "b.png"]
    plan = _plan(tmp_path, "file,gc,dr\na.png,no,off\nb.png,yes,None\n", files, label_schema=schema)
    assert [dict(sample.labels) for sample in plan.samples] == [{"gc": 0, "dr": 2}, {"gc": 1, "dr": 0}]
    (tmp_path / "schema.yaml").write_text(DEFAULT_LABEL_SCHEMA.to_yaml())
    plan = _plan(tmp_path, "file,dr_grade,is_gc\na.png,severe,no\nb.png,2,yes\n", files, label_schema=schema)
    assert [(sample.labels["dr_grade"], sample.labels["is_gc"]) for sample in plan.samples] == [(3, 0), (2, 1)]
    (tmp_path / "schema.yaml").write_text("- {name: gc, values: [no, no]}\n")
    with pytest.raises(ConfigError, match="other names"):
        _plan(tmp_path, "file,gc\na.png,no\n", files, label_schema=schema)


@pytest.mark.parametrize(
    ("moved", "importer", "words"),
    [
        ("{name: eye_side, values: [left, right]}", None, "eye_side = 0 is left, which is 1"),
        ("{name: eye_side, values: [OS, OD]}", None, "eye_side = 0 is OS, which is 1"),
        ("{name: is_dme, values: [yes, no]}", "idrid", "is_dme = 0 is yes, which is 1"),
        ("{name: dr_grade, values: [none, moderate, severe]}", "idrid", "dr_grade = 1 is moderate, which is 2"),
    ],
)
def test_values_with_other_numbers_than_importers_write_are_refused(
    moved: str, importer: str | None, words: str, tmp_path: Path
) -> None:
    """Importers and DICOM headers write numbers: a right eye would be called left."""
    tables = {None: "file\na.png\n", "idrid": "Image name,Retinopathy grade,Risk of macular edema\na,1,0\n"}
    schema = tmp_path / "schema.yaml"
    options = {"label_schema": str(schema), "importer": importer}
    schema.write_text(f"- {moved}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        _plan(tmp_path, tables[importer], ["a.png"], **options)
    assert "or give the label another name" in caught.value.hint
    label = moved.partition("name: ")[2].partition(",")[0]
    for followed in (moved.replace(label, "own_label"), re.sub(r"values: .*", "num_values: 3}", moved)):
        schema.write_text(f"- {followed}\n")
        assert len(_plan(tmp_path, tables[importer], ["a.png"], **options).samples) == 1


def test_values_of_ones_own_table_may_be_numbered_otherwise(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text("- {name: is_gc, values: [yes, no]}\n- {name: eye_side, values: [OD, OS]}\n")
    schema = str(tmp_path / "schema.yaml")
    plan = _plan(tmp_path, "file,is_gc,eye_side\na.png,yes,OS\n", ["a.png"], label_schema=schema)
    assert dict(plan.samples[0].labels) == {"is_gc": 0, "eye_side": 1}


def test_the_console_says_which_duplicates_contradict_and_where_the_details_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        picture(index).save(folder / f"{index}.png")
    for copy in ("x", "y"):
        (folder / f"{copy}.png").write_bytes((folder / "0.png").read_bytes())
    rows = ["0.png,P0,1", "1.png,P1,1", "2.png,P2,1", "x.png,P0,1", "y.png,P5,3", "1.png,P1,4", "1.png,P6,1"]
    (folder / "labels.csv").write_text("\n".join(["file,patient_id,dr_grade", *rows]))
    summary, said = _prepare(folder, tmp_path / "set")
    assert summary["rejects"] == {"duplicate_of": 2, "duplicate_row": 2}
    assert any(
        "2 duplicate_of, 1 of them with other labels, 1 of them of another patient: the" in text for text in said
    )
    assert any(
        "2 duplicate_row, 1 of them with other labels, 1 of them of another patient: the" in text for text in said
    )
    (many,) = [text for text in said if "4 of 7 inputs are rejected (57%): 2 duplicate_of, 2 duplicate_row" in text]
    assert many.endswith(f"see {tmp_path.parent}/synfundus-crosswalks/{tmp_path.name}.set/rejects.jsonl")


def test_photographs_of_another_set_are_counted_without_except_for_0(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2):
        picture(index).save(folder / f"{index}.png")
    (folder / "labels.csv").write_text("file,patient_id,dr_grade\n0.png,P0,1\n1.png,P1,1\n")
    _prepare(folder, tmp_path / "first")
    _, said = _prepare(folder, tmp_path / "second", compare_with=(str(tmp_path / "first"),))
    (text,) = [text for text in said if "near-duplicates in other sets" in text]
    assert "2 photographs have near-duplicates in other sets, none of them in another split there" in text
