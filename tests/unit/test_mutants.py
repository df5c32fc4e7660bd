"""The table of mutants fits the program, and the campaign tells a caught one from a survivor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mutate import ROOT, Mutant, chosen, is_caught, problems, read_table, run_all

LEAST = 120


def test_every_mutant_changes_one_place_of_the_program_and_names_tests_that_are_there() -> None:
    mutants = read_table()
    assert problems(mutants, ROOT) == []
    assert len(mutants) >= LEAST
    assert len({(mutant.file, mutant.name) for mutant in mutants}) == len(mutants)


def test_every_package_has_mutants() -> None:
    packages = {path.parent.name for path in (ROOT / "synfundus").glob("*/__init__.py")}
    assert packages == {mutant.file.split("/")[1] for mutant in read_table() if mutant.file.count("/") > 1}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "adding.py").write_text("def add(a, b):\n    return a + b\n\n\ndef unused():\n    return 1\n")
    test = "from adding import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    (tmp_path / "test_adding.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


WRONG = Mutant("sums are differences", "adding.py", "a + b", "a - b", ("test_adding.py",))
UNTESTED = replace(WRONG, name="two is one", old="return 1", new="return 2")


def test_a_mutant_that_no_test_notices_survives_and_the_tree_is_as_before(program: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in program.iterdir() if path.is_file()}
    assert run_all([WRONG, UNTESTED], [program]) == [UNTESTED]
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in program.iterdir() if path.is_file()}
    assert before == after


def test_tests_that_cannot_run_are_no_catch(program: Path) -> None:
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        is_caught(replace(WRONG, tests=("test_gone.py",)), program)


def test_what_does_not_fit_is_named(program: Path) -> None:
    assert problems([WRONG, UNTESTED], program) == []
    wrong = [
        replace(WRONG, old="return"),
        replace(WRONG, old="a * b"),
        replace(WRONG, new="a + b"),
        replace(WRONG, new="a +"),
        replace(WRONG, file="gone.py"),
        replace(WRONG, tests=("test_gone.py",)),
    ]
    found = [" ".join(problems([mutant], program)) for mutant in wrong]
    words = ["2 times", "0 times", "nothing is changed", "no program any more", "0 times", "test_gone.py is missing"]
    assert all(word in text for word, text in zip(words, found, strict=True)), found


def test_a_sample_is_always_the_same_and_a_word_names_a_file_or_a_fault() -> None:
    mutants = read_table()
    assert len(chosen(mutants, [], 10)) == 10
    assert chosen(mutants, [], 10) == chosen(mutants, [], 10)
    assert {mutant.file for mutant in chosen(mutants, ["diffusion/flow.py"], 0)} == {"synfundus/diffusion/flow.py"}
    assert [mutant.name for mutant in chosen(mutants, ["same units"], 0)] != []
