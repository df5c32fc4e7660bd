"""Generated images among the photographs of patients: rejected by name, and let in only where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom_file, photograph_dataset
from phantom_clinic import picture
from tiny_runs import Talk

from synfundus.artifacts.samples.description import image_marks
from synfundus.artifacts.samples.layouts import SYNFUNDUS_1M_TABLE, synfundus_1m_name, synfundus_1m_table
from synfundus.artifacts.samples.stores import PngStore
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.pictures.sheets import encode_png
from synfundus.shards.reader import ShardSetReader
from synfundus.stages import Summary
from synfundus.stages.prepare import job as prepare
from synfundus.storage.manifest import load_shard_set

XMP = b'<x Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
GENERATED = ("a.png", "b.dcm", "c.jpg")


def write_inputs(folder: Path, names: tuple[str, ...]) -> None:
    """Write three generated images and three drawn ones, each of another phantom, and a table."""
    folder.mkdir()
    pictures = [picture(index) for index in range(6)]
    made = {
        "a.png": encode_png(
            np.asarray(pictures[0]), text=image_marks(model="m", seed=0, index=0, labels={}), compress_level=1
        ),
        "b.dcm": dicom_file(photograph_dataset(np.asarray(pictures[1]), SyntheticData="YES", ImageLaterality="L")),
        "e.png": encode_png(np.asarray(pictures[3]), text={"synthetic": "drawn"}, compress_level=1),
        "f.dcm": dicom_file(photograph_dataset(np.asarray(pictures[4]), SyntheticData="NO")),
    }
    for name in names:
        if name in made:
            (folder / name).write_bytes(made[name])
    for name, at, xmp in (("c.jpg", 2, XMP), ("d.jpg", 5, b"")):
        if name in names:
            pictures[at].save(folder / name, quality=92, xmp=xmp)
    rows = [f"{name},{number % 5}," for number, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,requested_dr_grade,requested_eye_side", *rows]) + "\n")


def prepared(folder: Path, **options: Any) -> tuple[Summary, list[str]]:
    section = {
        "source": str(folder),
        "labels": str(folder / "metadata.csv"),
        "out": str(folder.parent / "images"),
        "image_size_px": 64,
        "workers": 0,
        "splits": (1.0, 0.0, 0.0),
        "near_duplicates": False,
    }
    console = Talk()
    config = RunConfig.model_validate({"prepare": section | options})
    return prepare.run(config, LocalWorld(), console), console.lines


def test_generated_images_are_named_rejects_and_drawn_ones_are_not(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", (*GENERATED, "d.jpg", "e.png", "f.dcm"))
    summary, _ = prepared(tmp_path / "in")
    assert summary["rejects"] == {"synthetic": 3}
    assert (summary["num_inputs"], summary["num_samples"]) == (6, 3)
    named = [json.loads(line) for line in (Path(summary["crosswalk"]) / "rejects.jsonl").read_text().splitlines()]
    assert sorted(row["source"] for row in named) == sorted(GENERATED)
    assert {(row["stage"], row["reason"]) for row in named} == {("files", "synthetic")}


def test_where_they_are_let_in_the_set_says_which_they_are_and_has_the_labels_asked_for(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", (*GENERATED, "d.jpg"))
    summary, said = prepared(tmp_path / "in", allow_synthetic=True)
    found = load_shard_set(summary["out"], kind="images")
    assert (summary["num_samples"], summary["rejects"]) == (4, {})
    assert (found.properties["synthetic"], found.properties["flags"]["synthetic"]) == (3, 3)
    assert any("3 samples are flagged synthetic: a model generated them" in line for line in said)
    reader = ShardSetReader(found, split="train")
    documents = [json.loads(reader.read(0, sample)[1]["json"]) for sample in range(4)]
    reader.close()
    assert sorted((one["source"], one["labels"]["dr_grade"]) for one in documents) == [
        ("photographs", 3),
        ("synthetic", 0),
        ("synthetic", 1),
        ("synthetic", 2),
    ]
    assert {one["labels"]["dr_grade"]: one["eye_side"] for one in documents}[1] == 1, "from the DICOM file"


def test_a_folder_of_generated_images_alone_is_refused_and_the_hint_lets_it_in(tmp_path: Path) -> None:
    write_inputs(tmp_path / "in", GENERATED)
    with pytest.raises(DataError, match=r'none of 3 inputs is usable: \{"synthetic": 3\}') as refused:
        prepared(tmp_path / "in")
    assert "--allow-synthetic" in refused.value.hint
    summary, _ = prepared(tmp_path / "in", allow_synthetic=True, out=str(tmp_path / "let-in"))
    assert summary["num_samples"] == 3


def test_the_layout_of_synfundus_1m_is_prepared_label_for_label(tmp_path: Path) -> None:
    rows = [{"dr_grade": number, "is_gc": number % 2, "eye_side": None if number == 2 else 1} for number in range(3)]
    wanted = [{**dict.fromkeys(DEFAULT_LABEL_SCHEMA.names), **row} for row in rows]
    store = PngStore(str(tmp_path / "in"), num_images=3, batch_size=3, name=synfundus_1m_name)
    for image, row in enumerate(wanted):
        marks = image_marks(model="m", seed=0, index=image, labels=row)
        store.write([(image, encode_png(np.asarray(picture(image)), text=marks, compress_level=1))])
    (tmp_path / "in" / SYNFUNDUS_1M_TABLE).write_bytes(synfundus_1m_table(wanted, DEFAULT_LABEL_SCHEMA.names))
    summary, _ = prepared(
        tmp_path / "in",
        labels=str(tmp_path / "in" / SYNFUNDUS_1M_TABLE),
        importer="synfundus1m",
        allow_synthetic=True,
    )
    reader = ShardSetReader(load_shard_set(summary["out"], kind="images"), split="train")
    documents = [json.loads(reader.read(0, sample)[1]["json"]) for sample in range(3)]
    reader.close()
    assert sorted((one["labels"] for one in documents), key=lambda labels: int(labels["dr_grade"])) == wanted
