"""The documents are true: links lead somewhere, commands parse, names and numbers are those of the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from synfundus.cli.app import run_command
from synfundus.cli.verbs import VERBS
from synfundus.config.loader import RENAMED, leaf_fields
from synfundus.config.yaml_text import parse_yaml
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.decode import Undecodable
from synfundus.photographs.field_of_view import NoFieldOfView
from synfundus.photographs.label_mapping import parse_table_mapping
from synfundus.photographs.label_table import read_label_table
from synfundus.stages.prepare.plan import load_schema

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ADR_FOLDER = ROOT / "docs" / "adr"
CODE_FOLDERS = ("synfundus", "tests", "benchmarks", "ds_configs", "launchers", "slurm", "docs")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_JOB_ID")
MAX_ADR_LINES = 40

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"(?<![\w./-])[a-z_]+(?:\.[a-z0-9_]+)+")
FILE_SUFFIXES = (".py", ".sh", ".csv", ".json", ".jsonl", ".yaml", ".png", ".tar", ".key")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> list[Block]:
    return [Block(*match) for match in FENCE.findall(document.read_text(encoding="utf-8"))]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def inline_code(document: Path) -> list[str]:
    return INLINE.findall(prose(document))


def slug(heading: str) -> str:
    """Return the anchor a forge makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    kept = [c for c in text if c in "-_ " or unicodedata.category(c)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    return {slug(heading) for heading in HEADING.findall(prose(document))}


def shell_commands(document: Path) -> Iterator[str]:
    """Yield every command of the shell blocks and of the inline code, line continuations joined."""
    for block in blocks(document):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from (part.strip() for part in line.split("&&"))
    yield from inline_code(document)


def script_verb(script: str) -> str:
    """Return the verb a batch script runs."""
    found = re.search(r"-m synfundus ([a-z-]+)", (ROOT / script).read_text(encoding="utf-8"))
    assert found is not None, script
    return found[1]


def command_line(command: str) -> tuple[str, ...] | None:
    """Return what a documented command hands to the program; None if it starts something else."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    if not words:
        return None
    if words[0] == "synfundus":
        return tuple(words[1:])
    for at, word in enumerate(words):
        if re.fullmatch(r"slurm/[a-z_]+\.sh", word) and words[0] == "sbatch":
            return (script_verb(word), *words[at + 1 :])
        if re.fullmatch(r"launchers/[a-z_]+\.sh", word) and len(words) > at + 1:
            return tuple(words[at + 1 :])
    return None


def documented_command_lines() -> dict[tuple[str, ...], Path]:
    """Return every command line of the documents, with the first document it stands in."""
    found: dict[tuple[str, ...], Path] = {}
    for document in DOCUMENTS:
        for command in shell_commands(document):
            line = command_line(command)
            if line and not line[0].isupper():  # `synfundus VERB` stands for all of them
                found.setdefault(line, document)
    return found


COMMAND_LINES = documented_command_lines()


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder on a machine that seems to have SLURM; the process's umask is put back."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in ("sbatch", "srun"):
        (programs / program).write_text("#!/bin/false\n", encoding="utf-8")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ.get('PATH', '')}")
    for variable in RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    umask = os.umask(0o022)
    os.umask(umask)
    yield folder
    os.umask(umask)


def write_named_yaml(document: Path, folder: Path) -> set[str]:
    """Write the YAML blocks that begin with ``# NAME.yaml`` under that name."""
    names = set()
    for block in blocks(document):
        named = re.match(r"# ([a-z_]+\.yaml)\n", block.text)
        if block.language == "yaml" and named is not None:
            (folder / named[1]).write_text(block.text, encoding="utf-8")
            names.add(named[1])
    return names


@pytest.mark.usefixtures("inputs_elsewhere")
@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_documented_command_parses_and_leaves_the_disk_alone(
    line: tuple[str, ...], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_named_yaml(COMMAND_LINES[line], empty_folder)
    has_options = any(word.startswith("-") for word in line)
    extra = () if "--dry-run" in line or "--help" in line else ("--dry-run",) if has_options else ("--help",)
    code = run_command([*line, *extra])
    output = capsys.readouterr()
    assert code == 0, f"{name_of(COMMAND_LINES[line])}: synfundus {' '.join(line)}\n{output.err}"
    assert output.out
    assert {path.name for path in empty_folder.iterdir()} == given


def test_the_search_for_commands_finds_the_ones_in_the_readme() -> None:
    verbs = {line[0] for line, document in COMMAND_LINES.items() if document.name == "README.md"}
    assert {"demo", "prepare", "train-vae", "encode-latents", "train", "sample", "doctor"} <= verbs


def test_readme_lists_every_verb() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {verb.name for verb in VERBS} <= set(rows)
    assert set(rows) <= {verb.name for verb in VERBS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_resolve(document: Path) -> None:
    broken = []
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        if not place.is_relative_to(ROOT) or not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_files_exist(document: Path) -> None:
    missing = []
    for code in inline_code(document):
        path = code.strip().split()[0].rstrip("/") if code.strip() else ""
        inside = path.split("/", 1)[0] in CODE_FOLDERS and "/" in path
        if inside and re.fullmatch(r"[a-z0-9_./-]+", path) and not (ROOT / path).exists():
            missing.append(path)
    assert not missing


def test_architecture_names_modules_by_their_path() -> None:
    named = [code for code in inline_code(ROOT / "docs" / "architecture.md") if code.endswith(".py")]
    assert len([code for code in named if code.startswith("synfundus/")]) >= 20


def unknown_keys(named: Iterable[str], known: Collection[str]) -> list[str]:
    """Return those that begin like a key of the configuration, of today or of version 0.1, and are none."""
    sections = {key.split(".")[0] for key in (*leaf_fields(), *RENAMED)}
    keys = {*known, *(".".join(parts[:-1]) for parts in (leaf.split(".") for leaf in known) if len(parts) > 2)}
    return [
        key for key in named if key.split(".")[0] in sections and not key.endswith(FILE_SUFFIXES) and key not in keys
    ]


def test_architecture_says_which_module_may_import_which_library() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    doors = {
        contract["forbidden_modules"][0]: {
            ignored.split(" -> ")[0].replace(".", "/") + ".py" for ignored in contract["ignore_imports"]
        }
        for contract in contracts
        if contract["name"].startswith("door: ") and contract.get("ignore_imports")
    }
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("| library | imported in |", 1)[1]
    said = {}
    for row in table.split("\n\n", 1)[0].splitlines()[2:]:
        _, libraries, places, _ = row.split("|")
        for library in libraries.split(","):
            said[library.strip()] = INLINE.findall(places)
    assert set(said) == set(doors)
    for library, modules in doors.items():
        assert all(any(module.startswith(place) for place in said[library]) for module in modules), library
        assert all(any(module.startswith(place) for module in modules) for place in said[library]), library


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_configuration_keys_exist(document: Path) -> None:
    named = [code.split("=")[0] for code in inline_code(document)]
    assert not unknown_keys([key for key in named if KEY.fullmatch(key)], leaf_fields())


def test_configuration_keys_named_in_the_code_exist() -> None:
    """In messages, hints, tables and docstrings; sections count too, and what f-strings say before a value."""
    modules = sorted((ROOT / "synfundus").rglob("*.py"))
    known = {path.relative_to(ROOT / "synfundus").with_suffix("").as_posix().replace("/", ".") for path in modules}
    known |= {*RENAMED, "demo.control"}  # which names a draw
    for leaf in leaf_fields():
        known |= {".".join(leaf.split(".")[:depth]) for depth in range(1, leaf.count(".") + 2)}
    unknown = [
        f"{name_of(path)}:{node.lineno}: {key}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for key in unknown_keys(KEY.findall(node.value), known)
    ]
    assert not unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [match[1] for command in shell_commands(document) if (match := re.search(r"\bmake ([a-z-]+)$", command))]
    assert set(lines) <= targets


def adr_files() -> dict[str, Path]:
    return {path.name[:4]: path for path in sorted(ADR_FOLDER.glob("[0-9]*.md"))}


def test_every_adr_the_code_refers_to_exists() -> None:
    known, unknown = adr_files(), []
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".yaml", ".json", ".sh") and path != Path(__file__).resolve():
                numbers = re.findall(r"ADR-(\d{4})", path.read_text(encoding="utf-8"))
                unknown += [f"{name_of(path)}: ADR-{number}" for number in numbers if number not in known]
    assert not unknown


def test_adrs_are_numbered_in_a_row_indexed_short_and_complete() -> None:
    index = (ADR_FOLDER / "README.md").read_text(encoding="utf-8")
    files = adr_files()
    assert list(files) == [f"{number:04d}" for number in range(1, len(files) + 1)]
    assert len(files) == len(list(ADR_FOLDER.glob("[0-9]*.md")))
    for number, path in files.items():
        text = path.read_text(encoding="utf-8")
        assert f"({path.name})" in index
        assert text.startswith(f"# ADR-{number}: ")
        assert len(text.splitlines()) <= MAX_ADR_LINES, path.name
        assert [f"## {title}" in text for title in ("Context", "Decision", "Consequences", "How it is proved")] == [
            True
        ] * 4, path.name


def test_formats_document_names_every_format_of_the_code() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    constant = re.compile(r'^_?[A-Z_]*FORMAT(?:_NAME)? = "(synfundus-[a-z-]+)"', re.MULTILINE)
    formats = {
        name
        for path in (ROOT / "synfundus").rglob("*.py")
        for name in constant.findall(path.read_text(encoding="utf-8"))
    }
    assert len(formats) >= 7
    assert {name for name in formats if f"| `{name}` |" not in text} == set()


def test_formats_document_lists_every_reason_to_refuse_a_photograph() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    reasons = {reason.value for reason in (*Undecodable, *NoFieldOfView)}
    assert {reason for reason in reasons if f"`{reason}`" not in text} == set()


def test_the_examples_of_a_mapping_and_of_a_schema_are_such(tmp_path: Path) -> None:
    examples = [block.text for block in blocks(ROOT / "docs" / "formats.md") if block.language == "yaml"]
    assert len(examples) == 3
    (tmp_path / "schema.yaml").write_text(examples[2])
    schema = load_schema(str(tmp_path / "schema.yaml"))
    assert schema.num_values == (5, 2, 3)
    assert schema.check_value("icdr", "severe") == 3
    assert schema.check_value("referable", "no") == 0
    mapping = parse_table_mapping(parse_yaml(examples[0], where="docs"), DEFAULT_LABEL_SCHEMA, where="docs/formats.md")
    assert mapping.labels["is_gc"].values == {"rg": 1, "nrg": 0, "?": None}
    (table,) = [block.text for block in blocks(ROOT / "docs" / "formats.md") if block.text.startswith("Bild;")]
    mapping = parse_table_mapping(parse_yaml(examples[1], where="docs"), DEFAULT_LABEL_SCHEMA, where="docs/formats.md")
    rows = read_label_table(table.encode(), DEFAULT_LABEL_SCHEMA, mapping, where="docs/formats.md").rows
    read = [[row.labels[name] for name in ("eye_side", "dr_grade", "is_gc")] for row in rows]
    assert read == [[0, 2, 1], [1, None, 0], [0, 0, None], [1, 0, 1], [0, 4, 0]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_promise_no_anonymity_and_name_no_machine(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.search(r"anonym", text, re.IGNORECASE)
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", text)
    assert "@@" not in text
