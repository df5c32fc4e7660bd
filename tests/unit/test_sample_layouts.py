"""Layouts of sample sets: what is written is read back label for label, and what is not whole is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from synfundus.artifacts.samples.layouts import (
    SYNFUNDUS_1M_TABLE,
    open_sample_images,
    synfundus_1m_name,
    synfundus_1m_table,
)
from synfundus.errors import DataError
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.photographs.importers import read_with_importer

ORIGINAL = Path(__file__).parents[1] / "fixtures" / "importers" / "synfundus1m_gen_cond.csv"
NAMES = DEFAULT_LABEL_SCHEMA.names


def drawn_rows(number: int) -> list[LabelRow]:
    """Return rows with every value of every label, and every label left open."""
    generator = np.random.Generator(np.random.Philox(3))
    rows: list[LabelRow] = []
    for _ in range(number):
        values = {spec.name: int(generator.integers(-1, spec.num_values)) for spec in DEFAULT_LABEL_SCHEMA.labels}
        rows.append({name: None if value < 0 else value for name, value in values.items()})
    return rows


def test_images_are_in_twenty_parts_of_which_the_last_takes_the_rest() -> None:
    wanted = {0: "Part0/0.png", 49_999: "Part0/49999.png", 50_000: "Part1/50000.png", 949_999: "Part18/949999.png"}
    wanted |= {950_000: "Part19/950000.png", 1_000_000: "Part19/1000000.png", 2_000_000: "Part19/2000000.png"}
    assert {image: synfundus_1m_name(image) for image in wanted} == wanted


def test_the_table_has_the_columns_of_the_original() -> None:
    assert synfundus_1m_table([], NAMES).decode() == ORIGINAL.read_text().splitlines()[0] + "\n"


def test_the_importer_reads_the_layout_back_label_for_label() -> None:
    rows = drawn_rows(2000)
    files = [synfundus_1m_name(image) for image in range(2000)]
    table = read_with_importer(
        "synfundus1m", synfundus_1m_table(rows, NAMES), DEFAULT_LABEL_SCHEMA, files=files, where=SYNFUNDUS_1M_TABLE
    )
    assert not table.rejected
    assert [row.file for row in table.rows] == files
    assert [dict(row.labels) for row in table.rows] == rows


def test_a_schema_of_other_labels_has_columns_of_its_own() -> None:
    schema = LabelSchema((LabelSpec("cup_size", 3), LabelSpec("eye_side", 2)))
    assert synfundus_1m_table([{"cup_size": 2, "eye_side": None}], schema.names) == b"idx,cup_size,eye_side\n0,2,\n"


def test_a_folder_that_is_no_finished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no metadata\.csv"):
        open_sample_images(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,requested_is_gc\n")
    with pytest.raises(DataError, match=r"there is no PROVENANCE\.json"):
        open_sample_images(str(tmp_path))
