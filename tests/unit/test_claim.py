"""Whose folder it is."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from synfundus.artifacts.claim import Claim, difference
from synfundus.errors import ConfigError
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.writer_note import Writer, note_document, process_start_of

CLAIM = Claim("notes/request.json", "synfundus-test", 1, others="tests of something else", beside=r"logs(/.*)?")


def test_a_free_folder_is_taken_and_known_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert CLAIM.read(str(out)) is None
    assert CLAIM.make(str(out), {"seed": 1, "sizes": (2, 3)})
    assert CLAIM.read(str(out)) == {"format": "synfundus-test", "schema_version": 1, "seed": 1, "sizes": [2, 3]}
    (out / "anything.txt").touch()
    assert not CLAIM.make(str(out), {"seed": 1, "sizes": [2, 3]})


def test_what_a_kill_left_while_the_claim_was_written_is_no_stranger(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / ".request.json.0123abcd.tmp").write_text("{")
    (tmp_path / "logs" / "job").mkdir(parents=True)
    assert CLAIM.make(str(tmp_path), {"seed": 1})


@pytest.mark.parametrize("name", ["notes/x", "notes/request.json.tmp", ".request.json.0123abcd.tmp", "log", "x\n"])
def test_anything_else_is_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="something else") as caught:
        CLAIM.make(str(tmp_path), {"seed": 1})
    assert (name if name.isprintable() else repr(name)) in caught.value.message
    assert caught.value.where == str(tmp_path)


def test_many_strangers_are_counted_short(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ConfigError, match=r"0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt, \.\.\.\n"):
        CLAIM.read(str(tmp_path))


def test_another_request_is_refused_naming_both_sides(tmp_path: Path) -> None:
    CLAIM.make(str(tmp_path), {"seed": 1, "model": {"width": 8}})
    with pytest.raises(ConfigError, match=r"tests of something else: model\.width is 8 there, 9 here\n") as caught:
        CLAIM.make(str(tmp_path), {"seed": 1, "model": {"width": 9}})
    assert "--out" in caught.value.hint


def test_a_refusal_names_the_writer_of_the_folder_too(tmp_path: Path) -> None:
    CLAIM.make(str(tmp_path), {"seed": 1})
    other = subprocess.Popen(["sleep", "60"])
    writer = replace(Writer.here(str(tmp_path), 900.0), pid=other.pid, started=process_start_of(other.pid))
    (tmp_path / WRITER_NAME).write_bytes(note_document(writer))
    said = rf"tests of something else \(process {other.pid} .* writes to it\): seed is 1"
    with pytest.raises(ConfigError, match=said):
        CLAIM.make(str(tmp_path), {"seed": 2})
    other.kill()
    other.wait()
    with pytest.raises(ConfigError, match="tests of something else: seed is 1"):
        CLAIM.make(str(tmp_path), {"seed": 2})


@pytest.mark.parametrize("text", ["no json", "{}", '{"format": "other", "schema_version": 1}'])
def test_a_document_of_another_program_is_something_else(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "request.json").write_text(text)
    with pytest.raises(ConfigError, match="something else"):
        CLAIM.make(str(tmp_path), {"seed": 1})
    assert (tmp_path / "notes" / "request.json").read_text() == text


def test_a_difference_names_hashes_last_and_what_is_absent() -> None:
    there = {"format": "x", "labels_sha256": "ab", "seed": 1, "gone": None, "same": [1]}
    assert difference(there, {"labels_sha256": "cd", "seed": 2, "same": (1,)}) == (
        "gone is None there, 'absent' here; seed is 1 there, 2 here; labels_sha256 is 'ab' there, 'cd' here"
    )
    run = {"kind": "vae", "identity": {"data": "ab", "lr": 1}}
    assert difference(run, {"kind": "diffusion", "identity": {"data": "ab", "lr": 2}}) == (
        "kind is 'vae' there, 'diffusion' here; lr is 1 there, 2 here"
    )
    assert difference({str(n): n for n in range(7)}, {}).endswith(" and 3 more")
    assert difference(there, there) == ""
