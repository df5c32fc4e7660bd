"""A patient's identity, planted in every carrier of every kind of file, reaches nothing that leaves the hospital."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from planted_identity import ASCII_STEM, STEM, Planted, has_token, hits, plant, token_of
from rank_processes import run_cli
from tiny_pipeline import tiny_autoencoder
from tiny_sets import tiny_config

from synfundus.artifacts.autoencoder_folder import save_autoencoder
from synfundus.distributed.world import LocalWorld
from synfundus.phantoms.draw import LABEL_NAMES, draw_phantom
from synfundus.photographs.crosswalk import default_place
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.prepare import job as prepare
from synfundus.storage.manifest import REJECTS_NAME, load_shard_set
from synfundus.storage.tarshard import TarShardReader
from synfundus.telemetry.console import SilentConsole


@dataclass(frozen=True)
class Clinic:
    """Photographs and a table full of identities.

    Attributes:
        folder: Where they lie.
        files: By name, with what is planted in them.
        patients: Patient of each file.
        num_rows_without_file: Rows of the table that name a file that is not there.
    """

    folder: Path
    files: dict[str, Planted]
    patients: dict[str, str]
    num_rows_without_file: int


def write_clinic(folder: Path, number: int) -> Clinic:
    """Write planted photographs of two per patient, in folders and files with names of patients."""
    folder.mkdir(parents=True)
    files, patients, rows = {}, {}, []
    for index in range(number):
        planted = plant(draw_phantom(seed=3, index=index, image_size_px=96).pixels, index)
        patient = token_of(index // 2, "patient_id")
        name = f"{token_of(index // 2, 'folder')}/{ASCII_STEM}_{index:04d}{planted.suffix}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(planted.data)
        files[name], patients[name] = planted, patient
        row = {"file": name, "patient_id": patient, "dr_grade": str(index % 5)}
        rows.append({**row, "patient_name": token_of(index, "column_name"), "remark": token_of(index, "column_remark")})
    rows.append({"file": f"{ASCII_STEM}_gone.jpg", "patient_id": token_of(9998, "patient_id"), "dr_grade": "1"})
    rows.append({"file": f"../{STEM}.jpg", "patient_id": token_of(9999, "patient_id"), "dr_grade": "1"})
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("file", "patient_id", "patient_name", "remark", *LABEL_NAMES))
        writer.writeheader()
        writer.writerows(rows)
    return Clinic(folder, files, patients, 2)


def digests(clinic: Clinic) -> set[bytes]:
    """Return hashes of identifiers that anybody could compute: they would be identifiers themselves."""
    found = set()
    for text in [*clinic.files, *clinic.patients.values(), *(Path(name).name for name in clinic.files)]:
        for algorithm in ("md5", "sha1", "sha256"):
            digest = hashlib.new(algorithm, text.encode(), usedforsecurity=False)
            found |= {digest.digest(), digest.hexdigest().encode()}
    return found


def leaks(folder: Path, clinic: Clinic) -> list[str]:
    """Return where in a folder something of a patient is found, in names of files too."""
    known = digests(clinic)
    found = []
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        found += [f"{path.name}: {hit!r}" for hit in [*hits(data), *hits(str(path.relative_to(folder)).encode())]]
        found += [f"{path.name}: a hash of an identifier" for digest in known if digest in data]
    return found


@dataclass(frozen=True)
class Released:
    """What was made of a clinic, and everything that was said meanwhile."""

    clinic: Clinic
    images: Path
    latents: Path
    said: str


def release(folder: Path, number: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Released:
    """Run `prepare` as a user does and once more here with every logger at work, and encode the latents."""
    clinic = write_clinic(folder / "in", number)
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    images, latents, autoencoder = folder / "images", folder / "latents", folder / "codec"
    given = {"source": str(clinic.folder), "labels": str(clinic.folder / "labels.csv")}
    line = ["--source", given["source"], "--labels", given["labels"], "--image-size", "64", "--workers", "0"]
    done = run_cli("prepare", *line, "--out", images, "--debug").check()
    again = {**given, "out": str(folder / "again"), "image_size_px": 64, "workers": 0}
    prepare.run(tiny_config({"prepare": again}), LocalWorld(), SilentConsole())
    save_autoencoder(tiny_autoencoder(), str(autoencoder))
    encode = {"data": str(images), "vae": str(autoencoder), "out": str(latents), "flip": True}
    encode_latents.run(tiny_config({"encode_latents": encode}), LocalWorld(), SilentConsole())
    captured = capfd.readouterr()
    return Released(clinic, images, latents, done.output + caplog.text + captured.out + captured.err)


def found_in_sources(clinic: Clinic) -> tuple[int, int]:
    """Return how many planted tokens the search finds in the photographs, and how many there are."""
    found = total = 0
    for index, planted in enumerate(clinic.files.values()):
        total += len(planted.carriers)
        found += sum(has_token(planted.data, token_of(index, carrier)) for carrier in planted.carriers)
        assert len(hits(planted.data)) >= len(planted.carriers)
    return found, total


def check_release(released: Released) -> dict[str, Any]:
    """Check one release; returns its figures."""
    clinic = released.clinic
    found, total = found_in_sources(clinic)
    assert found == total, "the search must find every token where it was planted"
    crosswalk = Path(default_place(str(released.images)), "crosswalk.csv").read_bytes()
    for name, patient in clinic.patients.items():
        assert name.encode() in crosswalk
        assert patient.encode() in crosswalk

    images = load_shard_set(str(released.images), kind="images")
    latents = load_shard_set(str(released.latents), kind="latents")
    usable = sum(planted.usable for planted in clinic.files.values())
    assert images.num_samples() == usable == latents.num_samples()
    assert sum(images.rejects.values()) == len(clinic.files) - usable + clinic.num_rows_without_file
    assert (released.images / REJECTS_NAME).read_text().count("\n") == sum(images.rejects.values())

    assert leaks(released.images, clinic) == []
    assert leaks(released.latents, clinic) == []
    assert hits(released.said.encode()) == []
    return {"files": len(clinic.files), "carriers": total, "images": usable}


def test_nothing_of_a_patient_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    released = release(tmp_path, 40, caplog, capfd)
    assert check_release(released)["carriers"] > 500
    # the sample documents hold what is documented, and nothing else
    shard_set = load_shard_set(str(released.images), kind="images")
    for shard in shard_set.shards:
        reader = TarShardReader(shard_set.shard_url(shard), index_sha256=shard.index_sha256)
        for number in range(len(reader)):
            document = json.loads(reader.read(number)["json"])
            assert set(document) == {"labels", "eye_side", "source", "size_px", "sha256_image"}
        reader.close()


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    clinic = write_clinic(tmp_path / "in", 12)
    assert len(leaks(clinic.folder, clinic)) > 100
    (tmp_path / "out").mkdir()
    name = next(iter(clinic.files))
    for number, data in enumerate([name.encode(), hashlib.sha256(name.encode()).hexdigest().encode()]):
        (tmp_path / "out" / "manifest.json").write_bytes(b"{" + data + b"}")
        assert len(leaks(tmp_path / "out", clinic)) >= 1, number


@pytest.mark.slow
def test_campaign_300_photographs_with_an_identity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    figures = check_release(release(tmp_path, 312, caplog, capfd))
    with capfd.disabled():
        print(json.dumps({"name": "identity planted in every carrier", "passed": 312, "of": 312, **figures}))
