"""A patient who withdraws: sets without the photographs, a crosswalk without the names, no second ingestion."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom_clinic import config_of, write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import tiny_config

from synfundus.config.photographs import ForgetConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError, DataError
from synfundus.labels.seen import LABEL_ROWS, SeenRows, distinct_rows
from synfundus.shards.label_reading import read_label_states
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.set_survey import SetSurvey
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.forget import job as forget
from synfundus.stages.forget.plan import describe_withdrawal
from synfundus.stages.prepare import job as prepare
from synfundus.storage import filesystem
from synfundus.storage.manifest import SPLITS, ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole

PATIENT = "P3"


@pytest.fixture(scope="module")
def hospital(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared and encoded clinic, two photographs a patient, and a model of the latents."""
    root = tmp_path_factory.mktemp("hospital")
    write_clinic(root / "in", 12)
    shards = {"shard_max_samples": 3, "splits": (0.6, 0.2, 0.2)}
    prepare.run(config_of(root / "in", root / "data" / "images", root / "names", **shards), world, SilentConsole())
    write_tiny_pipeline(root / "old" / "export", image_size_px=32)
    encode = {"data": str(root / "data" / "images"), "vae": str(root / "old"), "out": str(root / "data" / "latents")}
    encode_latents.run(tiny_config({"encode_latents": encode}), world, SilentConsole())
    for name, key, value in (("ldm", "latents", "latents"), ("vae", "data", "images"), ("other", "data", "")):
        identity = load_shard_set(str(root / "data" / value), kind=value).identity if value else "0" * 64  # type: ignore[arg-type]
        (root / name).mkdir()
        (root / name / "run.json").write_text(json.dumps({"identity": {key: identity}}))
    return root


@pytest.fixture
def clinic(hospital: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; the crosswalk knows where its set is."""
    copy = shutil.copytree(hospital, tmp_path / "hospital")
    owner = json.loads((copy / "names" / "owner.json").read_text())
    (copy / "names" / "owner.json").write_text(json.dumps({**owner, "out": str(copy / "data" / "images")}))
    return copy


def settings(clinic: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "crosswalk": str(clinic / "names"),
        "patient": PATIENT,
        "latents": [str(clinic / "data" / "latents")],
        "model": [str(clinic / name) for name in ("ldm", "vae", "other")],
        "out": str(clinic / "without"),
    }
    return {**given, **changes}


def run(clinic: Path, **changes: Any) -> dict[str, Any]:
    return forget.run(tiny_config({"forget": settings(clinic, **changes)}), LocalWorld(), SilentConsole())


def rows_of(clinic: Path) -> list[dict[str, str]]:
    with (clinic / "names" / "crosswalk.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def keys_of(clinic: Path, patient: str = PATIENT) -> set[str]:
    return {row["key"] for row in rows_of(clinic) if row["patient_id"] == patient and not row["reason"]}


def samples(shard_set: ShardSet) -> dict[str, dict[str, bytes]]:
    found = {}
    for split in SPLITS:
        reader = ShardSetReader(shard_set, split=split)
        for shard, size in enumerate(reader.shard_sizes):
            found.update(dict(reader.read(shard, sample) for sample in range(size)))
        reader.close()
    return found


def texts(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_new_sets_lack_the_patient_and_nothing_else(clinic: Path) -> None:
    gone = keys_of(clinic)
    assert len(gone) == 2
    old = {kind: load_shard_set(str(clinic / "data" / kind), kind=kind) for kind in ("images", "latents")}
    before = texts(clinic / "data")
    summary = run(clinic)
    for kind, source in old.items():
        made = load_shard_set(str(clinic / "without" / kind), kind=source.kind)
        assert samples(made) == {key: members for key, members in samples(source).items() if key not in gone}
        assert made.rejects == {**source.rejects, "withdrawn": 2}
        assert made.identity == summary["identities"][kind] != source.identity
        survey = SetSurvey(made, verify=True)
        assert sum(1 for _ in survey.label_rows(lambda _: None)) == made.num_samples()
        survey.check_other_files()
        assert not survey.problems
        withdrawn = [
            json.loads(line)
            for line in (clinic / "without" / kind / "rejects.jsonl").read_text().splitlines()
            if "withdrawn" in line
        ]
        assert len(withdrawn) == 2
    images = load_shard_set(str(clinic / "without" / "images"), kind="images")
    assert images.num_samples() + sum(images.rejects.values()) == images.properties["num_inputs"]
    assert images.properties["label_counts"]["num_samples"] == images.num_samples()
    counted = SeenRows.of_document(images.properties[LABEL_ROWS], len(images.label_schema.labels))
    assert counted.states.tolist() == distinct_rows(read_label_states(images, splits=("train",)))[0].tolist()
    assert counted.shares.sum() == pytest.approx(images.properties["num_patients"]["train"], abs=1e-6)
    assert sum(images.properties["num_patients"].values()) == sum(old["images"].properties["num_patients"].values()) - 1
    latents = load_shard_set(str(clinic / "without" / "latents"), kind="latents")
    assert latents.properties["image_set_identity"] == images.identity
    assert latents.properties["photographs"][LABEL_ROWS] == images.properties[LABEL_ROWS]
    assert texts(clinic / "data") == before, "no set is changed in place"


def test_nothing_of_the_patient_stays_in_the_crosswalk_and_others_stay(clinic: Path) -> None:
    gone, others = keys_of(clinic), [row for row in rows_of(clinic) if row["patient_id"] not in ("", PATIENT)]
    names = {row["source"] for row in rows_of(clinic) if row["key"] in gone}
    hashes = np.load(clinic / "names" / "looks.npy", allow_pickle=False)
    run(clinic)
    left = texts(clinic / "names")
    for name in (*names, f",{PATIENT},", f'"{PATIENT}"'):
        assert name.encode() not in left
    assert [row for row in rows_of(clinic) if row["patient_id"] not in ("", PATIENT)] == others
    assert {row["key"] for row in rows_of(clinic) if row["reason"] == "withdrawn"} == gone
    now = np.load(clinic / "names" / "looks.npy", allow_pickle=False)
    assert set(hashes["key"].tolist()) - set(now["key"].tolist()) == {key.encode() for key in gone}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (clinic / "names").iterdir())


def test_models_of_these_sets_have_to_be_trained_again(clinic: Path) -> None:
    assert run(clinic)["train_again"] == [str(clinic / "ldm"), str(clinic / "vae")]


def test_prepare_does_not_take_the_patient_in_again(clinic: Path, tmp_path: Path) -> None:
    run(clinic)
    again = tmp_path / "names-again"
    again.mkdir()
    for name in ("secret.key", "withdrawn.jsonl"):
        shutil.copy(clinic / "names" / name, again / name)
    out = tmp_path / "again"
    summary = prepare.run(config_of(clinic / "in", out, again), LocalWorld(), SilentConsole())
    assert summary["rejects"]["withdrawn"] == 2
    old = load_shard_set(str(clinic / "without" / "images"), kind="images")
    assert set(samples(load_shard_set(str(out), kind="images"))) == set(samples(old))
    assert f",{PATIENT},".encode() not in texts(again)


@pytest.mark.parametrize("at", ["shard", "crosswalk"])
def test_a_killed_withdrawal_is_resumed(clinic: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shutil.copytree(clinic, clinic.parent / "whole")
    run(clinic, out=str(whole / "without"), crosswalk=str(whole / "names"))
    real, calls = forget._shard, []

    def dying(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    def dying_later(url: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forget, *(("_shard", dying) if at == "shard" else ("write_private", dying_later)))
        with pytest.raises(KeyboardInterrupt):
            run(clinic)
    summary = run(clinic)
    assert summary["removed"] == {"images": 2, "latents": 2}
    for kind in ("images", "latents"):
        tars = sorted((whole / "without" / kind).rglob("*.tar"))
        assert tars
        for tar in tars:
            assert tar.read_bytes() == (clinic / "without" / tar.relative_to(whole / "without")).read_bytes()
    assert not list((clinic / "without").rglob("*.done.json"))
    assert run(clinic) == summary, "and once more: nothing left to do"


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(clinic: Path) -> None:
    before = texts(clinic)
    said = describe_withdrawal(ForgetConfig(**settings(clinic)))
    assert "2 inputs of this patient" in said
    assert len(re.findall(r"^2 of \d+ samples", said, re.MULTILINE)) == 2
    assert texts(clinic) == before


def test_a_patient_nobody_knows_and_another_request_are_refused(clinic: Path) -> None:
    with pytest.raises(ConfigError, match="no photograph of this patient") as caught:
        run(clinic, patient="P999")
    assert "patient_id" in caught.value.hint
    assert not (clinic / "without").exists()
    run(clinic)
    with pytest.raises(ConfigError, match="sets without other photographs"):
        run(clinic, patient="P4")
    (clinic / "theirs").mkdir()
    (clinic / "theirs" / "thesis.tex").write_text("three years")
    before = texts(clinic / "names")
    with pytest.raises(ConfigError, match=r"something else: thesis\.tex"):
        run(clinic, patient="P4", out=str(clinic / "theirs"))
    assert texts(clinic / "names") == before


def test_a_second_withdrawal_says_that_nothing_is_left_of_the_patient(clinic: Path) -> None:
    run(clinic)
    console = Talk()
    given = {"latents": [str(clinic / "without" / "latents")], "out": str(clinic / "again"), "model": []}
    summary = forget.run(tiny_config({"forget": settings(clinic, **given)}), LocalWorld(), console)
    assert set(summary["removed"].values()) == {0}
    assert "nothing has to be trained again" in console.lines[-1]


def test_a_copy_under_another_patient_is_named(clinic: Path) -> None:
    said: list[str] = []

    class Console(SilentConsole):
        def warning(self, text: str) -> None:
            said.append(text)

    config = tiny_config({"forget": settings(clinic, patient="Q2", model=[])})
    forget.run(config, LocalWorld(), Console())  # its photograph is a copy of one of P0
    assert len(said) == 1
    assert any(key in said[0] for key in keys_of(clinic, "P0"))


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"identity": '])
def test_a_model_whose_document_is_damaged_is_named(clinic: Path, text: str) -> None:
    (clinic / "ldm" / "run.json").write_text(text)
    before = rows_of(clinic)
    with pytest.raises(DataError) as caught:
        run(clinic)
    assert caught.value.where == str(clinic / "ldm" / "run.json")
    assert rows_of(clinic) == before
    (clinic / "ldm" / "run.json").write_text('{"identity": 7}')
    with pytest.raises(ConfigError, match="names what it was trained on"):
        run(clinic)


def test_latents_that_do_not_name_their_images_are_refused_before_anything_is_written(clinic: Path) -> None:
    (clinic / "data" / "latents" / "sources.json").unlink()
    with pytest.raises(DataError, match="do not say where their images"):
        run(clinic)
    assert not (clinic / "without").exists()


def test_a_set_in_a_bucket_is_written_there(clinic: Path, s3_bucket: str) -> None:
    filesystem.upload_folder(clinic / "data" / "images", f"{s3_bucket}/images", last=("manifest.json",))
    run(clinic, data=f"{s3_bucket}/images", latents=[], out=f"{s3_bucket}/without")
    made = load_shard_set(f"{s3_bucket}/without/images", kind="images")
    assert made.rejects["withdrawn"] == 2
    assert set(samples(made)).isdisjoint(keys_of(clinic))
