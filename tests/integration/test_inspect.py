"""`synfundus inspect`: what it says is what is there, and with --verify nothing that is wrong goes unnamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rank_processes import run_cli
from tiny_pipeline import SCHEMA, write_tiny_pipeline
from tiny_runs import Talk
from tiny_sets import UNEVEN_SHARDS, encode_png, flip_byte, phantom_samples, tiny_config, write_phantom_set, write_set

from synfundus.cli.app import run_command
from synfundus.distributed.world import LocalWorld
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.pictures.sheets import PATIENTS_NOTE
from synfundus.shards.reader import encode_npy
from synfundus.shards.set_survey import SetSurvey
from synfundus.stages.inspect import job as inspect
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.storage.tarshard import write_shard
from synfundus.telemetry.console import SilentConsole

SIZES = {"train": (5, 3), "val": (0, 2), "test": (1,)}
NUM_SAMPLES = 11


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    mask = os.umask(0o022)
    yield
    os.umask(mask)


def look(url: str, out: Path, **section: Any) -> dict[str, Any]:
    given = {"data": url, "out": str(out), "contact_sheet_images": 0, **section}
    return inspect.run(tiny_config({"inspect": given}), LocalWorld(), SilentConsole())


def verify(url: str, out: Path) -> dict[str, Any]:
    return look(url, out, verify=True)


@pytest.fixture
def small_set(tmp_path: Path) -> ShardSet:
    return write_set(tmp_path / "set", phantom_samples(NUM_SAMPLES), shards=SIZES)


def tar_of(shard_set: ShardSet, number: int) -> Path:
    return Path(shard_set.shard_url(shard_set.shards[number]))


def index_of(shard_set: ShardSet, number: int) -> Path:
    return Path(str(tar_of(shard_set, number)).replace(".tar", ".idx.npz"))


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {problem["place"]: problem["reason"] for problem in report["problems"]}


def test_counts_labels_and_sizes_are_those_of_the_samples(image_set: ShardSet, tmp_path: Path) -> None:
    samples = phantom_samples(96)
    report: dict[str, Any] = {}
    for verified in (False, True):
        report = look(image_set.url, tmp_path, verify=verified)
        assert report["ok"] is True
        assert report["verified"] is verified
        assert (report["num_samples"], report["good"], report["damaged"]) == (96, 96, 0)
        for split, sizes in UNEVEN_SHARDS.items():
            found = report["splits"][split]
            assert (found["num_samples"], found["num_shards"]) == (sum(sizes), len(sizes))
            assert (found["smallest_shard_samples"], found["largest_shard_samples"]) == (min(sizes), max(sizes))
            assert found["bytes"] == sum(shard.bytes for shard in image_set.split_shards(split))
        for extension in ("png", "json"):
            sizes_bytes = [len(members[extension]) for _, members in samples]
            assert report["members"][extension] == {
                "count": 96,
                "total_bytes": sum(sizes_bytes),
                "smallest_bytes": min(sizes_bytes),
                "largest_bytes": max(sizes_bytes),
            }
        labels = [json.loads(members["json"])["labels"] for _, members in samples]
        grades = report["labels"]["values"]["dr_grade"]
        for value in range(5):
            assert grades[str(value)] == sum(row.get("dr_grade") == value for row in labels)
        assert grades["unknown"] == sum(row.get("dr_grade") is None for row in labels)
        together = sum((row["dr_grade"] or 0) > 0 and row["is_dme"] == 1 for row in labels)
        assert report["labels"]["together"]["dr_grade"]["is_dme"] == together
    assert json.loads((tmp_path / "inspect.json").read_text())["labels"] == report["labels"]


def test_labels_of_an_index_are_those_of_the_documents(tmp_path: Path) -> None:
    samples = phantom_samples(6)
    rows = [DEFAULT_LABEL_SCHEMA.encode(json.loads(members["json"])["labels"]) for _, members in samples]
    without = write_set(tmp_path / "a", samples, shards={"train": (6,)})
    name = shard_name("train", 0)
    states = np.asarray(rows, dtype=np.int16)
    files = write_shard(str(tmp_path / "a" / name), samples, extensions=("json", "png"), states=states)
    within = save_shard_set(replace(without, shards=(ShardEntry.of(name, "train", files),)))
    expected = look(within.url, tmp_path)["labels"]
    flip_byte(tar_of(within, 0), 600)  # a document; without --verify it is not read
    assert look(within.url, tmp_path)["labels"] == expected
    assert expected["values"]["eye_side"]["1"] == sum(row[-1] == 2 for row in rows)


def test_a_tar_is_not_opened_where_its_index_holds_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_set: ShardSet, latent_set: ShardSet
) -> None:
    opened: list[str] = []
    open_read = filesystem.open_read

    def watched(url: str, **options: Any) -> Any:
        opened.append(url)
        return open_read(url, **options)

    monkeypatch.setattr(filesystem, "open_read", watched)
    survey = SetSurvey(latent_set, verify=False)
    assert len(list(survey.label_rows(lambda _: None))) == latent_set.num_samples()
    assert opened == []
    survey = SetSurvey(image_set, verify=False)
    assert len(list(survey.label_rows(lambda _: None))) == image_set.num_samples()
    assert len(opened) == len(image_set.shards), "this one was written without"


def test_the_sheet_shows_images_latents_and_samples(image_set: ShardSet, latent_set: ShardSet, tmp_path: Path) -> None:
    synthetic = write_set(tmp_path / "samples", phantom_samples(4), shards={"train": (4,)}, kind="samples")
    told = {**image_set.properties, "drawn": True}
    drawn = write_set(tmp_path / "drawn", phantom_samples(4), shards={"train": (4,)}, properties=told)
    for shard_set, mark in ((image_set, None), (latent_set, None), (synthetic, "yes"), (drawn, "drawn")):
        out = tmp_path / f"{shard_set.kind}-{mark}"
        look(shard_set.url, out, contact_sheet_images=4)
        with Image.open(out / "contact_sheet.png") as sheet:
            assert sheet.info.get("synthetic") == mark
            assert sheet.info.get("Warning") == (PATIENTS_NOTE if shard_set is image_set else None)
            pixels = np.asarray(sheet)
        assert pixels.shape[1] > 4 * 64
        assert len(np.unique(pixels[-90:-40].reshape(-1, 3), axis=0)) > 60, "the tiles at the bottom are pictures"


def test_a_sheet_with_photographs_of_patients_is_announced_as_one(image_set: ShardSet, tmp_path: Path) -> None:
    section = {"data": image_set.url, "out": str(tmp_path), "contact_sheet_images": 1}
    inspect.run(tiny_config({"inspect": section}), LocalWorld(), talk := Talk())
    assert f"contact_sheet.png ({PATIENTS_NOTE})" in talk.lines[-1]


def test_the_sheet_of_a_damaged_set_shows_what_is_left(small_set: ShardSet, tmp_path: Path) -> None:
    index_of(small_set, 0).unlink()
    flip_byte(tar_of(small_set, 1), tar_of(small_set, 1).stat().st_size // 2)
    report = look(small_set.url, tmp_path, contact_sheet_images=64, verify=True)
    assert report["good"] == NUM_SAMPLES - 5 - 1
    assert (tmp_path / "contact_sheet.png").exists()
    for path in (Path(small_set.url) / "train").glob("*.tar"):
        path.unlink()
    for path in Path(small_set.url).glob("*/*.idx.npz"):
        path.write_bytes(b"")
    assert look(small_set.url, tmp_path, contact_sheet_images=64)["good"] == 0


def test_every_damaged_sample_is_named(small_set: ShardSet, tmp_path: Path) -> None:
    keys = [key for key, _ in phantom_samples(NUM_SAMPLES)]
    with tarfile.open(tar_of(small_set, 0)) as archive:
        offset = archive.getmember(f"{keys[3]}.png").offset_data
    flip_byte(tar_of(small_set, 0), offset + 100)
    report = verify(small_set.url, tmp_path)
    assert (report["ok"], report["exit_code"], report["good"]) == (False, 3, NUM_SAMPLES - 1)
    assert report["damaged_shards"] == [{"name": "train/000000.tar", "num_samples": 5, "good": 4}]
    found = reasons(report)
    assert found[f"train/000000.tar#{keys[3]}"] == "member .png does not match its checksum"
    assert "its sha256 is" in found["train/000000.tar"]
    assert len(found) == 2


def test_behind_a_cut_the_samples_are_read_by_the_index(small_set: ShardSet, tmp_path: Path) -> None:
    keys = [key for key, _ in phantom_samples(NUM_SAMPLES)]
    with tarfile.open(tar_of(small_set, 0)) as archive:
        header = archive.getmember(f"{keys[1]}.json").offset
    flip_byte(tar_of(small_set, 0), header + 3)
    report = verify(small_set.url, tmp_path)
    assert report["good"] == NUM_SAMPLES, "a damaged header hides nothing from a reader with an index"
    assert not report["ok"]
    assert any("the tar is invalid at byte" in problem["reason"] for problem in report["problems"])


def cut_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def append(data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes() + data)

    return change


def put_error_document(path: Path) -> None:
    path.write_bytes(b"<Error>SlowDown</Error>")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut_tail, "it ends without an end mark"),
        (append(b"hidden" * 100), "data after the end mark"),
        (append(bytes(512)), "the manifest records"),
        (Path.unlink, "cannot be read"),
        (put_error_document, "truncated in a header"),
    ],
    ids=["cut", "appended", "padded", "missing", "error document"],
)
def test_a_tar_that_is_not_the_one_written_is_named(
    small_set: ShardSet, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    change(tar_of(small_set, 1))
    report = verify(small_set.url, tmp_path)
    assert any(problem["place"] == "train/000001.tar" and words in problem["reason"] for problem in report["problems"])
    assert report["damaged_shards"][0]["name"] == "train/000001.tar"


def test_a_damaged_index_is_named_and_the_tar_said_to_be_whole(small_set: ShardSet, tmp_path: Path) -> None:
    flip_byte(index_of(small_set, 0), 70)
    report = verify(small_set.url, tmp_path)
    assert report["good"] == NUM_SAMPLES - 5
    texts = " ".join(problem["reason"] for problem in report["problems"])
    assert "does not match the manifest" in texts
    assert "the tar itself is complete" in texts


def rewrite(shard_set: ShardSet, number: int, samples: list[Any], **options: Any) -> ShardSet:
    """Write a shard anew, with correct hashes everywhere."""
    extensions = tuple(dict.fromkeys(name for _, members in samples for name in members))
    entry = shard_set.shards[number]
    files = write_shard(shard_set.shard_url(entry), samples, extensions=extensions, **options)
    shards = list(shard_set.shards)
    shards[number] = ShardEntry.of(entry.name, entry.split, files)
    return save_shard_set(replace(shard_set, shards=tuple(shards)))


def test_what_has_right_hashes_and_is_wrong_all_the_same_is_named(small_set: ShardSet, tmp_path: Path) -> None:
    samples = phantom_samples(NUM_SAMPLES)[:5]
    keys = [key for key, _ in samples]
    samples[0][1]["pkl"] = b"cos\nsystem\n(S'true'\ntR."
    samples[1][1]["json"] = json.dumps({"labels": {}, "sha256_image": hashlib.sha256(b"x").hexdigest()}).encode()
    samples[2][1]["png"] = encode_png(np.zeros((32, 32, 3), np.uint8))
    samples[3] = (phantom_samples(NUM_SAMPLES)[6][0], samples[3][1])
    rewrite(small_set, 0, samples)
    found = reasons(verify(small_set.url, tmp_path))
    assert "must not contain members of kind .pkl" in found[f"train/000000.tar#{keys[0]}"]
    assert "the image does not match sha256_image" in found[f"train/000000.tar#{keys[1]}"]
    assert "image of (32, 32, 3), expected 64" in found[f"train/000000.tar#{keys[2]}"]
    assert "the key is also in train/000000.tar" in found[f"train/000001.tar#{samples[3][0]}"]
    assert len(found) == 4


def test_labels_in_the_index_that_differ_from_the_document_are_named(small_set: ShardSet, tmp_path: Path) -> None:
    samples = phantom_samples(NUM_SAMPLES)[:5]
    rows = [DEFAULT_LABEL_SCHEMA.encode(json.loads(members["json"])["labels"]) for _, members in samples]
    rows[2][0] = 5 if rows[2][0] != 5 else 1
    rewrite(small_set, 0, samples, states=np.asarray(rows, dtype=np.int16))
    report = verify(small_set.url, tmp_path)
    assert reasons(report) == {f"train/000000.tar#{samples[2][0]}": "its labels in the index differ from its JSON"}


def test_rejects_and_shards_that_the_manifest_does_not_know_are_named(small_set: ShardSet, tmp_path: Path) -> None:
    root = Path(small_set.url)
    assert verify(small_set.url, tmp_path)["ok"]
    rows = [{"key": "k", "stage": "decode", "reason": "damaged"}, {"key": "l", "source": "DOE_JANE.jpg"}]
    (root / "rejects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "train" / "000009.tar").write_bytes(tar_of(small_set, 0).read_bytes())
    report = verify(small_set.url, tmp_path)
    found = [(problem["place"], problem["reason"]) for problem in report["problems"]]
    assert found == [
        ("rejects.jsonl", "it has fields that a set must not contain: source"),
        ("rejects.jsonl", "it has 2 rejects, the manifest records 0"),
        ("train/000009.tar", "the manifest does not list it, but readers that use all tars would read it"),
    ]
    assert (report["exit_code"], report["good"]) == (3, NUM_SAMPLES)
    (root / "rejects.jsonl").write_text("17\n")
    (root / "train" / "000009.tar").unlink()
    assert reasons(verify(small_set.url, tmp_path)) == {"rejects.jsonl": "it cannot be read: a line is not an object"}
    save_shard_set(replace(small_set, rejects={"damaged": 3}))
    (root / "rejects.jsonl").unlink()
    assert reasons(verify(small_set.url, tmp_path))["rejects.jsonl"] == "it has 0 rejects, the manifest records 3"


def test_a_latent_set_is_verified_with_its_mirrored_moments(latent_set: ShardSet, tmp_path: Path) -> None:
    report = verify(latent_set.url, tmp_path)
    assert report["ok"]
    assert set(report["members"]) == {"json", "moments.npy", "flip.npy"}
    bad = [(f"k{n}", {"json": b'{"labels": {}}', "moments.npy": encode_npy(np.ones((2, 2, 2)))}) for n in range(3)]
    written = write_set(
        tmp_path / "set", bad, shards={"train": (3,)}, kind="latents", extensions=("json", "moments.npy"),
        properties={"moments_shape": [2, 2, 2]},
    )  # fmt: skip
    assert verify(written.url, tmp_path)["problems_by_reason"] == {"moments of shape expected": 3}


def test_the_command_ends_with_3_and_says_what_is_left(
    small_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "--data", small_set.url, "--out", str(tmp_path / "out"), "--images", "2"]
    assert run_command([*arguments, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "verified: 11 samples, every hash matches, every sample decodes" in said
    assert "dr_grade" in said
    flip_byte(tar_of(small_set, 0), tar_of(small_set, 0).stat().st_size // 2)
    assert run_command([*arguments, "--verify"]) == 3
    assert "damaged: 10 of 11 samples are valid" in capsys.readouterr().out
    assert run_command([*arguments, "--verify", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["good"] == 10


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard set"):
        look(str(tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="--data is missing"):
        inspect.run(tiny_config(), LocalWorld(), SilentConsole())


def test_an_object_store_is_verified_like_a_folder(small_set: ShardSet, tmp_path: Path, s3_bucket: str) -> None:
    folder = Path(small_set.url)
    for path in folder.rglob("*.*"):
        filesystem.write_bytes(f"{s3_bucket}/set/{path.relative_to(folder)}", path.read_bytes())
    here = look(small_set.url, tmp_path, verify=True)
    there = inspect.run(
        tiny_config({"inspect": {"data": f"{s3_bucket}/set", "out": f"{s3_bucket}/out", "verify": True}}),
        LocalWorld(),
        SilentConsole(),
    )
    assert {**there, "location": ""} == {**here, "location": ""}
    assert Image.open(io.BytesIO(filesystem.read_bytes(f"{s3_bucket}/out/contact_sheet.png"))).size[0] > 64
    tar = bytearray(tar_of(small_set, 0).read_bytes())
    tar[len(tar) // 2] ^= 1
    filesystem.write_bytes(f"{s3_bucket}/set/train/000000.tar", bytes(tar))
    damaged = look(f"{s3_bucket}/set", tmp_path, verify=True)
    assert (damaged["ok"], damaged["good"]) == (False, NUM_SAMPLES - 1)
    assert any("the manifest records" in reason for reason in reasons(damaged).values())


def test_inspecting_does_not_import_torch(tmp_path: Path) -> None:
    write_phantom_set(tmp_path / "set")
    code = (
        "import sys\nfrom synfundus.cli.app import run_command\n"
        f"assert run_command(['inspect', '--data', {str(tmp_path / 'set')!r}, '--out', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)


def test_a_folder_of_generated_png_files_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_pipeline(tmp_path / "model")
    options = ["--num-images", "4", "--num-steps", "2", "--device", "cpu", "--label", f"{SCHEMA.names[0]}=1"]
    run_cli("sample", "--model", tmp_path / "model", "--out", tmp_path / "out", *options).check()
    assert run_command(["inspect", "--data", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Every image of this set was generated by a model" in said
    assert "4 of 4 images are there" in said
    assert f"{SCHEMA.names[0]}" in said
    (tmp_path / "out" / "images" / "00000001.png").unlink()
    assert run_command(["inspect", "--data", str(tmp_path / "out"), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["missing"] == ["images/00000001.png"]
    assert report["labels"] == {SCHEMA.names[0]: {"1": 4}}


def test_labels_are_counted_by_split_and_few_patients_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = phantom_samples(NUM_SAMPLES)
    properties = {
        "image_size_px": 64,
        "num_patients": {"train": 7, "val": 2, "test": 1},
        "nested": {"a": [1, None, True]},
    }
    found = write_set(tmp_path / "set", samples, shards=SIZES, properties=properties)
    assert run_command(["inspect", "--data", found.url, "--out", str(tmp_path / "out"), "--images", "0"]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "inspect.json").read_text())
    labels = [json.loads(members["json"])["labels"] for _, members in samples]
    parts = {"train": labels[:8], "val": labels[8:10], "test": labels[10:]}
    for split, rows in parts.items():
        expected = Counter(name for row in rows for name, value in row.items() if value)
        assert report["above_0"][split] == dict(expected)
    assert "warning: val has 2 patients: figures on it say little" in said
    assert re.search(r"nested\.a +1, -, yes", said)
    assert "{" not in said
