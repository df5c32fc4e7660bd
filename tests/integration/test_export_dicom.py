"""`export-dicom`: every image is a file or a named reject, from either layout, and a stopped run is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from tiny_samples import draw_samples, tiny_model
from tiny_sets import encode_png, write_set

from synfundus.artifacts.samples.layouts import open_sample_images
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import LabelSchema
from synfundus.stages import Summary
from synfundus.stages.export_dicom import job as export_dicom
from synfundus.telemetry.console import SilentConsole

NUMBER = 48
NO_SIDE = (15, 31, 47)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def samples(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_samples(model, tmp_path_factory.mktemp("samples") / "png", NUMBER)


def export(samples: Path, out: Path, workers: int = 0) -> Summary:
    section = {"samples": str(samples), "out": str(out), "workers": workers}
    return export_dicom.run(RunConfig.model_validate({"export_dicom": section}), LocalWorld(), SilentConsole())


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.dcm"))}


def rejects(out: Path) -> dict[int, str]:
    return {row["index"]: row["reason"] for row in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())}


def check_all(samples: Path, out: Path) -> int:
    """Read every file with pydicom and compare it with its image; returns how many."""
    table = [line.split(",") for line in (out / "metadata.csv").read_text().splitlines()[1:]]
    uids = set()
    for name, grade, glaucoma, side in table:
        found = pydicom.dcmread(out / name)
        image = int(Path(name).stem)
        assert found.SyntheticData == "YES"
        assert found.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
        assert found.SOPClassUID == pydicom.uid.OphthalmicPhotography8BitImageStorage
        assert found.ImageLaterality == "RL"[int(side)] == "RL"[image % 2]
        assert f"dr_grade={grade}, is_gc={glaucoma}, eye_side={side}" in found.ImageComments
        assert (found.PatientBirthDate, found.PatientSex) == ("", "")
        assert np.array_equal(found.pixel_array, np.asarray(Image.open(samples / "images" / f"{image:08d}.png")))
        uids |= {found.SOPInstanceUID, found.StudyInstanceUID, found.SeriesInstanceUID, found.PatientID}
    assert len(uids) == 4 * len(table), "nobody has two images"
    return len(table)


def test_every_image_is_read_back_with_its_attributes_or_is_a_named_reject(samples: Path, tmp_path: Path) -> None:
    summary = export(samples, tmp_path / "dicom")
    assert summary["rejects"] == {"eye_side_not_requested": len(NO_SIDE)}
    assert tuple(rejects(tmp_path / "dicom")) == NO_SIDE
    assert check_all(samples, tmp_path / "dicom") == summary["num_written"] == NUMBER - len(NO_SIDE)


@pytest.mark.slow
def test_a_thousand_of_a_thousand_files_are_read_back(model: Path, tmp_path: Path) -> None:
    samples = draw_samples(model, tmp_path / "png", 1067, batch_size=97, num_steps=1)
    summary = export(samples, tmp_path / "dicom", workers=2)
    assert summary["num_written"] >= 1000
    assert check_all(samples, tmp_path / "dicom") == 1067 - summary["rejects"]["eye_side_not_requested"]


def test_a_stopped_run_goes_on_and_writes_the_same_bytes(samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "dicom"
    export(samples, out)
    before, table = files(out), (out / "metadata.csv").read_bytes()
    for name in ("images/0000/00000003.dcm", "images/0000/00000020.dcm", "metadata.csv", "rejects.jsonl"):
        (out / name).unlink()
    summary = export(samples, out)
    assert (summary["num_written"], summary["num_kept"]) == (2, NUMBER - len(NO_SIDE) - 2)
    assert files(out) == before
    assert (out / "metadata.csv").read_bytes() == table


def test_shards_give_the_bytes_that_single_files_give(samples: Path, tmp_path: Path) -> None:
    """Shards of uneven sizes, as several ranks may leave them."""
    names = [f"{image:08d}" for image in range(NUMBER)]
    members = [(name, {"json": b"{}", "png": (samples / f"images/{name}.png").read_bytes()}) for name in names]
    provenance = json.loads((samples / "PROVENANCE.json").read_text())
    schema = LabelSchema.from_document(provenance["label_schema"], where="")
    write_set(tmp_path / "shards", members, shards={"train": (20, 1, 27)}, kind="samples", schema=schema)
    shutil.copy(samples / "PROVENANCE.json", tmp_path / "shards")
    table = (samples / "metadata.csv").read_text().replace("images/", "")
    (tmp_path / "shards" / "metadata.csv").write_text(table)
    export(samples, tmp_path / "a")
    export(tmp_path / "shards", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    (tmp_path / "shards" / "metadata.csv").write_text(table.replace("00000021.png", "x.png"))
    summary = export(tmp_path / "shards", tmp_path / "c")
    assert summary["rejects"]["damaged"] == 1, "a table of other images"


def test_what_is_damaged_missing_or_no_generated_image_is_named(samples: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(samples, tmp_path / "copy")
    path = [copy / "images" / f"{image:08d}.png" for image in range(4)]
    path[0].unlink()
    path[1].write_bytes(path[1].read_bytes()[:-40])
    path[2].write_bytes(encode_png(np.zeros((32, 32, 3), dtype=np.uint8)))  # as a photograph put there
    data = bytearray(path[3].read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    path[3].write_bytes(bytes(data))
    summary = export(copy, tmp_path / "dicom")
    wanted = {0: "missing", 1: "damaged", 2: "not_marked_synthetic", 3: "damaged"}
    assert rejects(tmp_path / "dicom") == wanted | dict.fromkeys(NO_SIDE, "eye_side_not_requested")
    assert summary["num_written"] + sum(summary["rejects"].values()) == NUMBER


def test_a_folder_of_other_images_is_refused_also_by_a_dry_run(model: Path, samples: Path, tmp_path: Path) -> None:
    other = draw_samples(model, tmp_path / "other", 8, num_steps=1)
    export(samples, tmp_path / "dicom")
    section = RunConfig.model_validate(
        {"export_dicom": {"samples": str(other), "out": str(tmp_path / "dicom")}}
    ).export_dicom
    for refuse in (lambda: export(other, tmp_path / "dicom"), lambda: export_dicom.compare_claim(section)):
        with pytest.raises(ConfigError, match=r"this folder holds DICOM files of other images: .*num_images"):
            refuse()
    assert "8 of 8 images" in export_dicom.rehearse(section)


def test_images_without_a_side_are_refused_and_the_hint_helps(model: Path, tmp_path: Path) -> None:
    def drawn(name: str, **labels: Any) -> Path:
        section = {"labels": None, "num_images": 2, "label": labels}
        return draw_samples(model, tmp_path / name, 2, **section)

    with pytest.raises(DataError, match=r'none of 2 images can be written: \{"eye_side_not_requested": 2\}') as refused:
        export(drawn("any", is_gc=1), tmp_path / "dicom")
    assert "ask for eye_side when sampling" in refused.value.hint
    assert export(drawn("left", is_gc=1, eye_side=1), tmp_path / "left-dicom")["num_written"] == 2


def test_a_set_whose_documents_disagree_is_refused_and_sampling_again_mends_it(
    model: Path, samples: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no finished set") as refused:
        open_sample_images(str(tmp_path))
    assert refused.value.hint == "give a folder that `synfundus sample` has finished"
    assert len(open_sample_images(str(samples))) == NUMBER
    for kind in ("png", "shards"):
        out = draw_samples(model, tmp_path / kind, 8, format=kind)
        lines = (out / "metadata.csv").read_text().splitlines()
        (out / "metadata.csv").write_text("\n".join(lines[:-1]) + "\n")
        with pytest.raises(DataError, match="the table has 7 rows with 7 files") as refused:
            open_sample_images(str(out))
        assert refused.value.hint == "run the same `synfundus sample` again"
        assert len(open_sample_images(str(draw_samples(model, out, 8, format=kind)))) == 8
