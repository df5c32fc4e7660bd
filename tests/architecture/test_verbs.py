"""A verb is a folder: what it is made of, and that nothing else has to know of a new one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from synfundus.cli.verbs import VERBS
from synfundus.config.schema import RunConfig
from synfundus.stages.verb import PROCS, Verb

ROOT = Path(__file__).resolve().parents[2]
STAGES = ROOT / "synfundus" / "stages"

VERB_PY = """
from synfundus.stages.verb import Option, Verb

VERB = Verb(
    name="greet-set",
    help="Say where a set is.",
    order=125,
    options=(Option("--data", "inspect.data", "Set to greet.", required=True, role="input"),),
    sections=("inspect",),
    results_on_stdout=True,
)
"""
JOB_PY = """
def run(config, world, console):
    console.message(f"hello {config.inspect.data}")
    return {"ok": True}
"""


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_is_a_folder_and_a_section_of_its_name(verb: Verb) -> None:
    assert {"__init__.py", "verb.py", "job.py"} <= {path.name for path in (STAGES / verb.key).iterdir()}
    assert set(verb.sections) <= set(RunConfig.model_fields)
    own = verb.key in RunConfig.model_fields
    assert own == (verb.key in verb.sections)
    assert own or (verb.problems is None and verb.dry_run is None), "these are handed its own section"
    claims = any(option.proof for option in verb.options)
    assert not claims or verb.compare or verb.rehearse or verb.key == "forget", "a dry run compares what was begun"


def test_every_folder_is_a_verb_with_a_place_of_its_own_in_the_help() -> None:
    assert {path.parent.name for path in STAGES.glob("*/__init__.py")} == {verb.key for verb in VERBS}
    assert len({verb.order for verb in VERBS}) == len(VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_what_a_verb_is_and_what_its_options_say_agree(verb: Verb) -> None:
    assert (PROCS in verb.options) == (verb.distributed and not verb.one_process)
    assert verb.distributed or not verb.host_only
    if verb.script:
        assert any(option.required and option.role in ("output", "run") for option in verb.options)
    if any(option.role == "run" for option in verb.options):
        assert verb.trains == verb.key


def said(folder: Path, *arguments: str) -> str:
    """Run the program that lies in a folder or an archive; returns what it says."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    command = [sys.executable, "-P", "-m", "synfundus", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_verb_is_added_by_adding_a_folder(tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT / "synfundus", code / "synfundus", ignore=shutil.ignore_patterns("__pycache__"))
    before = said(code, "--help")
    folder = code / "synfundus" / "stages" / "greet_set"
    folder.mkdir()
    for name, text in {"__init__.py": "", "verb.py": VERB_PY, "job.py": JOB_PY}.items():
        (folder / name).write_text(text)
    line = "  greet-set       Say where a set is.\n"
    after = said(code, "--help")
    assert after.replace(line, "") == before
    assert after.index("  prepare ") < after.index(line) < after.index("  inspect ")
    assert "hello " in said(code, "greet-set", "--data", str(tmp_path))
    assert "# synfundus greet-set" in said(code, "greet-set", "--data", str(tmp_path), "--dry-run")
    archive = shutil.make_archive(str(tmp_path / "code"), "zip", code)
    assert said(Path(archive), "--help") == after
