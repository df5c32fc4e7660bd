"""Hints about photographs, tables and crosswalks are true: each error is met, its hint followed, and it is gone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frail import ends_in_a_worker
from phantom_clinic import config_of, write_clinic
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import write_numbered_set
from told import Shell, refusal

from synfundus.artifacts.latent_set import LatentSources, save_sources
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.errors import StorageError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.importers import IMPORTERS, read_with_importer
from synfundus.photographs.label_mapping import parse_table_mapping
from synfundus.processes import pool
from synfundus.processes.pool import process_map
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.prepare import job as prepare
from synfundus.storage import filesystem
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import SilentConsole

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "importers"
Prepare = Callable[..., tuple[object, ...]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def line(tmp_path: Path) -> Prepare:
    """Return a function that writes a folder with a table, and the dry run that reads them."""

    def write(table: str | bytes, *files: str, **options: object) -> tuple[object, ...]:
        source = tmp_path / "in"
        for name in files:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).touch()
        (tmp_path / "labels.csv").write_bytes(table.encode() if isinstance(table, str) else table)
        given = {"source": source, "labels": tmp_path / "labels.csv", "out": tmp_path / "set", **options}
        if mapping := given.pop("mapping", None):
            (tmp_path / "mapping.yaml").write_text(str(mapping))
            given["mapping"] = tmp_path / "mapping.yaml"
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        return ("prepare", *words, "--dry-run")

    return write


def test_a_table_that_is_no_text(shell: Shell, line: Prepare) -> None:
    shell.refused("save the sheet as CSV UTF-8", *line(b"PK\x03\x04 and more", "a.png"))
    table = "file,patient_id\na.png,Müller\n"
    shell.done(*line(table, "a.png"))
    told = shell.refused("save it as CSV UTF-8, or name its encoding in a --mapping", *line(table.encode("cp1252")))
    (encoding,) = re.findall(r"\((encoding: \w+)\)", told.hint)
    shell.done(*line(table.encode("cp1252"), mapping=f"file: file\npatient_id: patient_id\n{encoding}\n"))
    shell.done(*line(table))


def test_a_table_whose_file_column_has_another_name(shell: Shell, line: Prepare) -> None:
    told = shell.refused("or give it in a --mapping", *line("File,is_gc\na.png,1\n", "a.png"))
    wrong, right = re.findall(r"rename '(\w+)' to '(\w+)'", told.hint)[0]
    shell.done(*line("File,is_gc\na.png,1\n".replace(wrong, right)))
    shell.done(*line("File,is_gc\na.png,1\n", mapping="file: File"))
    told = shell.refused("name it one of", *line("what,is_gc\na.png,1\n"))
    for name in re.sub(r".*name it one of |, or give it.*", "", told.hint).split(", "):
        shell.done(*line(f"{name},is_gc\na.png,1\n"))


def test_a_table_whose_cells_have_no_meaning(shell: Shell, line: Prepare) -> None:
    table = "file,is_gc,eye_side\na.png,ja,OD\nb.png,nein,OS\n"
    told = shell.refused("say what these cells mean (null = unknown) in a --mapping", *line(table, "a.png", "b.png"))
    mapping = told.hint.partition("for example: ")[2]
    shell.done(*line(table, mapping=mapping.replace("one cell", "nein").replace("another cell", "ja")))
    rows = [f"{'ba'[at % 2]}.png,{('nein', 'ja')[at % 2]},OD" for at in range(8)]
    table = "\n".join(["file,is_gc,eye_side", *rows])
    told = shell.refused("say what these cells mean", *line(table))
    assert told.code == 3
    assert "'nein' in column is_gc is not one of 0..1 (no, yes)" in told.said
    shell.done(*line(table, mapping=told.hint.partition("for example: ")[2]))


def test_a_table_whose_files_are_elsewhere(shell: Shell, line: Prepare, tmp_path: Path) -> None:
    table = "file,is_gc\n1.png,1\n"
    line(table, "x/1.png", "y/1.png")
    told = shell.refused("give the folder of this table as --source, or write folders into the table", *line(table))
    assert told.code == 3
    shell.done(*line(table, source=tmp_path / "in" / "x"))
    shell.done(*line(table.replace("1.png", "x/1.png")))
    told = shell.refused("leave drive and folders", *line("file,is_gc\nC:\\scans\\x\\1.png,1\n"))
    assert "1 unsafe_name, for example line 2" in told.said
    for name in ("x/1.png", "x\\1.png"):
        shell.done(*line(f"file,is_gc\n{name},1\n"))
    told = shell.refused("check --source; a mapping with file_pattern", *line("file,is_gc\n7,1\n", "IMG_7.jpeg"))
    (pattern,) = re.findall(r'"(IMG_.*?)"', told.hint)
    shell.done(*line("file,is_gc\n7,1\n", mapping=f'file: file\nfile_pattern: "{pattern}"\n'))


def test_a_folder_of_broken_links(shell: Shell, line: Prepare, tmp_path: Path) -> None:
    table = "file,is_gc\na.png,1\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "disk" / "a.png")
    told = shell.refused("mount or copy what the links in --source lead to", *line(table))
    assert "broken_link" in told.said
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    shell.done(*line(table))


def test_a_table_of_other_extensions(shell: Shell, line: Prepare) -> None:
    table = "file,is_gc\na.png,1\nb.png,0\n"
    told = shell.refused("write the extension of the files into the table", *line(table, "a.jpg", "b.jpg"))
    (extension,) = re.findall(r"with the extension (\.\w+)", told.said)
    shell.done(*line(table.replace(".png", extension)))
    bare = table.replace(".png", "")
    told = shell.refused("add the extension in a --mapping", *line(bare))
    shell.done(*line(bare, mapping=f"file: file\n{told.hint.partition('--mapping: ')[2]}\n"))


def test_a_table_without_a_usable_row(shell: Shell, line: Prepare) -> None:
    shell.refused("correct the table", *line("file,patient_id\n,P1\n", "a.png"))
    shell.done(*line("file,patient_id\na.png,P1\n"))


def test_the_table_of_a_public_set(shell: Shell, line: Prepare) -> None:
    table = (FIXTURES / "idrid.csv").read_bytes()
    names = [row.split(",")[0] for row in table.decode().splitlines()[1:] if row.split(",")[0]]
    files = [f"{name}.jpg" for name in names]
    for options in ({}, {"importer": "eyepacs"}):
        told = shell.refused("it looks like", *line(table, *files, **options))
        (name,) = re.findall(r"--importer (\w+)", told.hint)
        shell.done(*line(table, importer=name))
    told = shell.refused("rename", *line(table.replace(b"Image name", b"image_name"), importer="idrid"))
    wrong, right = re.findall(r"rename '(.+?)' to '(.+?)'", told.hint)[0]
    renamed = table.replace(b"Image name", b"image_name").replace(wrong.encode(), right.encode())
    shell.done(*line(renamed, importer="idrid"))
    told = shell.refused(
        "check --source and --importer idrid", *line(table.replace(b"IDRiD_", b"X_"), importer="idrid")
    )
    shell.done(*line(table, importer="idrid"))


def test_a_table_of_no_public_set(shell: Shell, line: Prepare) -> None:
    table = "name,grade\na.png,1\n"
    told = shell.refused(
        "check the importer, or describe the table with a mapping (--mapping)", *line(table, "a.png", importer="idrid")
    )
    mapping = "file: name\nlabels: {dr_grade: {column: grade}}\n"
    shell.refused("remove one of them", *line(table, importer="idrid", mapping=mapping))
    shell.done(*line(table, mapping=mapping))
    assert "--mapping" in told.hint


def test_an_importer_and_its_table(shell: Shell, line: Prepare, tmp_path: Path) -> None:
    told = shell.refused("known: ", *line("image,level\n1_left,2\n", "1_left.jpeg", importer="eyepac"))
    names = told.hint.removeprefix("known: ").split(", ")
    assert set(names) == set(IMPORTERS)
    shell.done(*line("image,level\n1_left,2\n", importer="eyepacs"))
    told = shell.refused("leave the table out", *line("image,level\n", "g0001.jpg", importer="refuge"))
    shell.done("prepare", "--source", tmp_path / "in", "--out", tmp_path / "set", "--importer", "refuge", "--dry-run")
    with refusal("expected: ") as caught:
        read_with_importer("refuge", None, DEFAULT_LABEL_SCHEMA, files=["a.png"], where="")
    assert caught.value.hint == f"expected: {IMPORTERS['refuge'].expected}"


def test_a_mapping(shell: Shell, line: Prepare) -> None:
    table = "file,klass\na.png,1\n"
    told = shell.refused("known: ", *line(table, "a.png", mapping="file: file\nfrobnicate: 1\n"))
    known = told.hint.removeprefix("known: ").split(", ")
    ways: dict[str, Any] = {"labels": {"dr_grade": {"column": "klass"}}, "encoding": "utf-8", "source": "here"}
    ways |= {"file": "file", "file_pattern": "{file}", "patient_id": "file", "eye_side": {"column": "klass"}}
    assert set(ways) == set(known)
    for key, value in ways.items():
        parse_table_mapping({"file": "file", key: value}, DEFAULT_LABEL_SCHEMA, where="")
    told = shell.refused("for example utf-8", *line(table, mapping="file: file\nencoding: utf8mb4\n"))
    for name in re.split(r", | or ", told.hint.removeprefix("for example ")):
        shell.done(*line(table.encode(name), mapping=f"file: file\nencoding: {name}\n"))
    mapping = "file: file\nlabels: {dr_grade: {column: Klass}}\n"
    told = shell.refused("correct the mapping YAML", *line(table, mapping=mapping))
    right, wrong = re.findall(r": '(\w+)' for '(\w+)'", told.hint)[0]
    shell.done(*line(table, mapping=mapping.replace(wrong, right)))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared clinic; not to be written to."""
    root = tmp_path_factory.mktemp("clinic")
    write_clinic(root / "in", 6)
    prepared(root, "set")
    return root


def prepared(root: Path, out: str, **options: Any) -> dict[str, Any]:
    given = {"splits": (1.0, 0.0, 0.0), **options}
    crosswalk = given.pop("crosswalk", root / f"{out}-names")
    return prepare.run(config_of(root / "in", root / out, crosswalk, **given), LocalWorld(), SilentConsole())


def copied(clinic: Path, folder: Path) -> Path:
    """Copy a clinic; its crosswalk names the copy of the set."""
    root = shutil.copytree(clinic, folder)
    owner = root / "set-names" / "owner.json"
    owner.write_text(owner.read_text().replace(str(clinic), str(root)))
    return root


def test_options_that_are_missing(shell: Shell, clinic: Path, tmp_path: Path) -> None:
    given = {"source": clinic / "in", "labels": clinic / "in" / "labels.csv", "out": tmp_path / "set"}
    for name in given:
        rest = {key: str(value) for key, value in given.items() if key != name}
        with refusal(f"give --{name}") as caught:
            prepare.run(tiny(rest), LocalWorld(), SilentConsole())
        flag = caught.value.hint.split()[1]
        words = [word for key, value in rest.items() for word in (f"--{key}", value)]
        shell.done("prepare", *words, flag, given[name], "--dry-run")


def tiny(section: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate({"prepare": section})


def test_places_of_sets_and_crosswalks(clinic: Path, tmp_path: Path) -> None:
    root = copied(clinic, tmp_path / "clinic")
    with refusal("store it outside the set"):
        prepared(root, "new", crosswalk=root / "new" / "names")
    with refusal("give each set its own --crosswalk"):
        prepared(root, "other", crosswalk=root / "set-names")
    assert prepared(root, "other")["num_samples"] == 6
    with refusal("give its --crosswalk, or another --out"):
        prepared(root, "set", crosswalk=root / "lost")
    assert prepared(root, "set")["num_samples"] == 6
    assert prepared(root, "third", crosswalk=root / "lost")["num_samples"] == 6
    with refusal("give another --out, or remove the set"):
        prepared(root, "set", image_size_px=32)
    assert prepared(root, "fourth", image_size_px=32)["num_samples"] == 6
    shutil.rmtree(root / "set")
    assert prepared(root, "set", image_size_px=32)["num_samples"] == 6
    (root / "fourth" / "manifest.json").write_text("{}")
    with refusal("give another --out"):
        prepared(root, "fourth", image_size_px=32)
    assert prepared(root, "fifth", image_size_px=32)["num_samples"] == 6


def test_a_set_to_compare_with(clinic: Path, tmp_path: Path) -> None:
    root = copied(clinic, tmp_path / "clinic")
    (root / "empty").mkdir()
    with refusal("give the crosswalk folder of a set that this version of `prepare` wrote: it has ") as caught:
        prepared(root, "new", compare_with=(str(root / "empty"),))
    assert (root / "set-names" / caught.value.hint.rpartition(" ")[2]).is_file()
    assert prepared(root, "new", compare_with=(str(root / "set-names"),))["look_alikes"]


def stopped(root: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a preparation after its photographs were read; returns the folder of its chunks."""
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "assemble_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(root, out)
    return root / f"{out}-names" / "work" / "chunks"


def test_a_stopped_preparation_whose_files_were_damaged(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(clinic, tmp_path / "clinic")
    chunks = stopped(root, "one", monkeypatch)
    (thumbnails,) = chunks.glob("*thumbnails*")
    thumbnails.write_bytes(b"cut")
    with refusal("remove ") as caught:
        prepared(root, "one")
    shutil.rmtree(caught.value.hint.removeprefix("remove "))
    assert prepared(root, "one")["num_samples"] == 6
    (tar,) = (path for path in stopped(root, "two", monkeypatch).iterdir() if path.suffix == ".tar")
    tar.write_bytes(bytes(byte ^ 1 for byte in tar.read_bytes()))
    with refusal("run the command again to prepare this chunk again"):
        prepared(root, "two")
    assert prepared(root, "two")["num_samples"] == 6


def test_a_photograph_that_the_disk_does_not_give(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(clinic, tmp_path / "clinic")
    read = filesystem.read_bytes

    def failing(url: str) -> bytes:
        if url.endswith("003.jpg"):
            raise StorageError("cannot read: Input/output error", where=url)
        return read(url)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_bytes", failing)
        with refusal("search *.plan.jsonl in work/chunks of the crosswalk folder for this key") as caught:
            prepared(root, "new")
    key = caught.value.where.split()[1]
    pattern, place = caught.value.hint.split()[1], "work/chunks"
    rows = [row for path in (root / "new-names" / place).glob(pattern) for row in path.read_text().splitlines()]
    (found,) = (row for row in rows if key in row)
    assert "003.jpg" in found
    assert prepared(root, "new")["num_samples"] == 6


def test_a_worker_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_MAX_LOSSES", 1)
    with refusal("use fewer --workers, or 0") as caught, process_map(1) as mapped:
        list(mapped(ends_in_a_worker, [1]))
    workers = int(caught.value.hint.rpartition(" ")[2])
    with process_map(workers) as mapped:
        assert list(mapped(ends_in_a_worker, [1])) == [1]


def test_a_withdrawal(shell: Shell, clinic: Path, tmp_path: Path) -> None:
    root = copied(clinic, tmp_path / "clinic")
    names = root / "set-names"
    line = ("forget", "--crosswalk", names, "--out", root / "without", "--dry-run", "--patient")
    (names / "work").mkdir()
    shell.refused("end it with the same `synfundus prepare` first", *line, "P1")
    prepared(root, "set")
    shell.done(*line, "P1")
    shell.refused("write the patient as in the column patient_id there", *line, "p1")
    rows = (names / "crosswalk.csv").read_text().splitlines()
    column = rows[0].split(",").index("patient_id")
    shell.done(*line, rows[1].split(",")[column])
    (root / "model").mkdir()
    (root / "model" / "run.json").write_text(json.dumps({"identity": {}}))
    shell.refused("check --model", "forget", "--model", root / "model", *line[1:], "P1")
    (root / "model" / "run.json").write_text(json.dumps({"identity": {"data": "0"}}))
    shell.done("forget", "--model", root / "model", *line[1:], "P1")


def test_a_withdrawal_from_latents(shell: Shell, clinic: Path, tmp_path: Path) -> None:
    root = copied(clinic, tmp_path / "clinic")
    write_tiny_pipeline(root / "vae")
    latents, identity = (
        write_numbered_set(root / "latents", [3]),
        load_shard_set(str(root / "set"), kind="images").identity,
    )
    manifest = json.loads((root / "latents" / "manifest.json").read_text())
    manifest["properties"]["image_set_identity"] = identity
    (root / "latents" / "manifest.json").write_text(json.dumps(manifest))
    save_sources(latents.url, LatentSources(str(root / "set"), str(root / "vae"), patients=True))
    prepared(root, "other")
    line = ("forget", "--crosswalk", root / "set-names", "--patient", "P1", "--out", root / "without", "--dry-run")
    told = shell.refused(
        "give the set they were made from as --data", *line, "--latents", latents.url, "--data", root / "other"
    )
    shell.done(*line, "--latents", latents.url, "--data", told.hint.rpartition(" ")[2])


def test_a_folder_for_phantoms(shell: Shell, tmp_path: Path) -> None:
    with refusal("give --out DIR") as caught:
        phantoms.run(RunConfig(), LocalWorld(), SilentConsole())
    shell.done("phantoms", caught.value.hint.split()[1], tmp_path / "new", "--num-images", 1, "--workers", 0)
