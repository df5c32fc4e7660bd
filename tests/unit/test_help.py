"""The help of the verbs, the configuration as text, and what an unknown flag is answered with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfundus.cli.app import run_command
from synfundus.cli.request import Request, load_request
from synfundus.cli.verbs import COMMON, VERBS
from synfundus.config import explain
from synfundus.config.base import value_at
from synfundus.config.loader import DEFAULT_ORIGIN, leaf_fields, list_presets, load_config
from synfundus.config.schema import RunConfig
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, difference
from synfundus.stages.verb import Verb


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def parsed(verb: Verb, line: str) -> Request:
    """Parse an example as the command line does, without running it."""
    program, name, *words = shlex.split(line)
    assert (program, name) == ("synfundus", verb.name)
    options = {option.flag: option for option in (*verb.options, *COMMON)}
    given: dict[str, Any] = {"preset": None, "config": None, "set": []}
    while words:
        option = options[words.pop(0)]
        if option.kind in ("flag", "switch"):
            given[option.name] = True
        elif option.kind in ("mapping", "list", "many"):
            given.setdefault(option.name, []).append(words.pop(0))
        else:
            given[option.name] = words.pop(0)
    return load_request(verb, given)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_example_of_a_verb_is_accepted(verb: Verb) -> None:
    parsed(verb, verb.example).check(look=False)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_help_has_two_groups_and_an_example(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([verb.name, "--help"]) == 0
    text = capsys.readouterr().out
    own, rest = text.split("\nOptions of all verbs:\n")
    common, example = rest.split("\nExample:\n")
    for option in verb.options:
        assert f"  {option.flag}" in own
    for option in COMMON:
        assert f"  {option.flag}" in common
    assert " ".join(example.replace("\\\n", " ").split()) == verb.example
    assert "VALUE " not in text.replace("NAME=VALUE", "").replace("KEY=VALUE", "")


def test_the_help_shows_defaults_choices_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["sample", "--help"])
    text = capsys.readouterr().out
    assert "--format png|shards" in text
    assert f"[default: {RunConfig().sample.format}]" in text
    assert "--model PATH" in text
    run_command(["demo", "--help"])
    text = capsys.readouterr().out
    preset = load_config(preset="demo-cpu", file=None, settings=[], flags=[]).config
    assert "--minutes MINUTES" in text
    assert f"[default: {preset.demo.minutes}]" in text
    assert f"[default: {preset.launch.device}]" in text


def test_the_help_is_as_wide_as_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 110):
        monkeypatch.setenv("COLUMNS", str(columns))
        run_command(["prepare", "--help"])
        widest = max(map(len, capsys.readouterr().out.splitlines()))
        assert columns - 12 < widest <= columns


@pytest.mark.parametrize("name", [*list_presets(), "train", "train.optim", "optim.lr", "seed", "label-smoothing"])
def test_what_config_show_prints_can_be_copied(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["config", "show", name])
    text = capsys.readouterr()
    if name == "label-smoothing":
        assert code == 2
        assert "presets: demo-cpu" in text.err
        return
    (tmp_path / "copy.yaml").write_text(text.out)
    copied = load_config(preset=None, file=str(tmp_path / "copy.yaml"), settings=[], flags=[])
    origin = load_config(preset=name if name in list_presets() else None, file=None, settings=[], flags=[])
    assert copied.config == origin.config
    told = {path for path, one in copied.provenance.items() if one != DEFAULT_ORIGIN}
    if name in list_presets():
        assert told == {path for path, one in origin.provenance.items() if one != DEFAULT_ORIGIN}
    else:
        assert told == {path for path in leaf_fields() if f".{name}." in f".{path}."}
    for path in told:
        first = str(leaf_fields()[path].description).split()[0]
        assert first in text.out


def test_config_show_names_default_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["config", "show", "fundus256"])
    text = " ".join(capsys.readouterr().out.replace("#", "").split())
    default = value_at(RunConfig(), "prepare.image_size_px")
    assert f"[PIXELS >= 32, <= 4096; default: {default}]" in text
    assert "image_size_px: 256" in text


def test_the_default_label_schema_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names of its values, which requests and tables may use."""
    assert run_command(["config", "show", "label-schema"]) == 0
    copy = LabelSchema.from_document(yaml.safe_load(capsys.readouterr().out), where="copy")
    assert difference(copy, DEFAULT_LABEL_SCHEMA) == ""
    assert [spec.meaning for spec in copy.labels] == [spec.meaning for spec in DEFAULT_LABEL_SCHEMA.labels]
    assert [spec.values for spec in copy.labels] == [spec.names for spec in DEFAULT_LABEL_SCHEMA.labels]
    assert copy["dr_grade"].values[3] == "severe"


def test_every_other_name_is_answered_by_a_key_that_there_is() -> None:
    keys = {path.rpartition(".")[2] for path in leaf_fields()}
    assert set(explain._OTHER_NAMES.values()) <= keys
    assert not set(explain._OTHER_NAMES) & keys, "a key answers for itself"


def test_presets_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_presets()
    assert all(len(line.split(maxsplit=1)[1]) > 20 and "#" not in line for line in lines)


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("train --lr 3e-4", ["--set train.optim.lr=..."]),
        ("prepare --label-schema f.yaml", ["--set prepare.label_schema=..."]),
        ("train --loop-precision bf16", ["--set train.loop.precision=..."]),
        ("train --learning-rate 1", ["--set train.optim.lr=..."]),
        ("train --epochs 3", ["--set train.loop.budget_images=..."]),
        ("train --learnrate 1", []),
        ("judge --nodes 2", []),
    ],
)
def test_an_unknown_flag_is_answered_by_its_key(line: str, keys: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(line.split()) == 2
    said = capsys.readouterr().err
    for key in keys:
        assert f"what to do: set it by its key: {key}" in said
    if "--nodes" in line:
        assert "what to do: leave it out: `judge` runs on one node; --submit makes it a job" in said
    elif not keys:
        assert f"what to do: see `synfundus {line.split()[0]} --help`" in said
