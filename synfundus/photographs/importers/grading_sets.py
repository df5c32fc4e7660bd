"""Sets that grade diabetic retinopathy: EyePACS, APTOS 2019, Messidor-2, DDR, IDRiD.

Their readers searched for retinopathy, some also for macular edema. Grade 0 says nothing about glaucoma, macular
degeneration or any other disease: those are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from synfundus.labels.csv_table import RecordFault, TableRecord, TableRecords, read_records, text_lines
from synfundus.photographs.importers.file_names import picture_stem, picture_suffix
from synfundus.photographs.importers.importer import FINDING, GRADE, SIDE, Cells, Column, Doubt, Importer, Source

_DDR_HEADER = ("image", "grade")
_DDR_LINE = re.compile(r"(?P<image>\S.*?)[\s,;]+(?P<grade>\S+)")


def _eyepacs_photographs(cells: Cells) -> Sequence[Cells]:
    """Read patient and side from ``{patient}_left`` or ``{patient}_right``."""
    stem = picture_stem(cells["image"].replace("\\", "/").split("/")[-1])
    patient, _, side = stem.rpartition("_")
    return ({**cells, "patient in the name": patient, "side in the name": side},)


EYEPACS = Importer(
    collection="EyePACS",
    file="image",
    suffix=".jpeg",
    patient="patient in the name",
    labels={
        "dr_grade": (Column("level", GRADE),),
        "eye_side": (Column("side in the name", dict.fromkeys(SIDE)),),
    },
    derived=frozenset({"patient in the name", "side in the name"}),
    notes=(
        (
            (),
            "EyePACS mixes upright and inverted photographs: in about a third the side in the name does not fit the "
            "picture, so the eye side is unknown; --set prepare.name_sides=true takes the names at their word",
        ),
    ),
    photographs=_eyepacs_photographs,
)
EYEPACS_NAME_SIDES = replace(
    EYEPACS, labels={**EYEPACS.labels, "eye_side": (Column("side in the name", SIDE),)}, notes=()
)
"""Kaggle "Diabetic Retinopathy Detection", ``trainLabels.csv``: ``image,level``.

One reader graded retinopathy from 0 to 4, also on photographs of poor quality; readability is not given. Patient and
eye are in the name: a name without ``_left`` or ``_right`` is a reject. Some photographs are inverted, as seen through
an indirect lens, and nothing says which: by eye, 29 of 90 show the disc on the other side than the name says. So the
eye side is unknown, unless the names are taken at their word (`EYEPACS_NAME_SIDES`).
"""

APTOS2019 = Importer(
    collection="APTOS 2019",
    file="id_code",
    suffix=".png",
    labels={"dr_grade": (Column("diagnosis", GRADE),)},
    bare_names=True,
)
"""Kaggle "APTOS 2019 Blindness Detection", ``train.csv``: ``id_code,diagnosis``. Neither patient nor eye is given."""

MESSIDOR2 = Importer(
    collection="Messidor-2",
    file="image_id",
    suffix=".jpg",
    aliases={"image_id": ("id_code",), "adjudicated_dr_grade": ("diagnosis",)},
    labels={
        "dr_grade": (Column("adjudicated_dr_grade", GRADE),),
        "is_dme": (Column("adjudicated_dme", FINDING),),
        "is_fundus": (Column("adjudicated_gradable", FINDING),),
    },
    doubts=(Doubt("adjudicated_gradable", ("0",), ("dr_grade", "is_dme")),),
)
"""Messidor-2 with the grades of a panel of retina specialists, ``messidor_data.csv``; also the copy whose first
columns are ``id_code,diagnosis``.

The panel searched for retinopathy and referable macular edema in every photograph, so 0 is an absence. Ungradable
photographs are not readable as a whole, and any grades they have are ignored. Photographs come in pairs of one
examination, but the table does not give the pairs.
"""

IDRID = Importer(
    collection="IDRiD",
    file="Image name",
    suffix=".jpg",
    labels={
        "dr_grade": (Column("Retinopathy grade", GRADE),),
        "is_dme": (Column("Risk of macular edema", {"0": 0, "1": None, "2": 1}),),
    },
)
"""IDRiD, part B, ``a. IDRiD_Disease Grading_Training Labels.csv`` and the table of the test part.

The name of the last column ends in a space, and the training table has empty columns after it. Risk 0 is no hard
exudate, 2 is an exudate near the fovea. Risk 1 is an edema that is not clinically significant: neither, so unknown.
Training and test photographs have the same names: ``--source`` must be the folder of this table.
"""


def _ddr_records(source: Source) -> TableRecords:
    """Read lines of ``name.jpg grade``, or the copy with a header.

    The copy has the header of APTOS 2019, but its names have an extension.
    """
    lines = [line.strip() for line in text_lines(source.data, where=source.where)]
    if _ddr_line(next(filter(None, lines), "")).fault:
        table = read_records(source.data, where=source.where)
        names = (record.cells[0] for record in table.records if not record.fault)
        copy = table.header == ("id_code", "diagnosis") and picture_suffix(next(names, ""))
        return TableRecords(_DDR_HEADER, table.records) if copy else table
    records = [_ddr_line(text, line) for line, text in enumerate(lines, start=1) if text]
    return TableRecords(_DDR_HEADER, tuple(records))


def _ddr_line(text: str, line: int = 1) -> TableRecord:
    match = _DDR_LINE.fullmatch(text)
    if match and picture_suffix(match["image"]):
        return TableRecord(line, (match["image"], match["grade"]))
    return TableRecord(line, (), RecordFault("malformed_row", "the line is not a file name and a grade"))


DDR = Importer(
    collection="DDR",
    file="image",
    suffix=".jpg",
    labels={
        "dr_grade": (Column("grade", {**GRADE, "5": None}),),
        "is_fundus": (Column("grade", {**dict.fromkeys(GRADE, 1), "5": 0}),),
    },
    expected="lines of a file name and a grade, without a header",
    records=_ddr_records,
)
"""DDR (OIA), ``DR_grading/train.txt``, ``valid.txt``, ``test.txt``: lines of ``name.jpg grade``, no header; also the
copy ``DR_grading.csv`` with ``id_code,diagnosis``.

Grade 5 is "ungradable": the photograph is not readable and has no grade. Every other grade means that it is readable.
The parts of a file name are not documented as patients, so they are not used.
"""
