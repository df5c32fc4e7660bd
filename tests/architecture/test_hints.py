"""Every hint has a class, what it names exists, and the tests that follow it are there (`tests/hints.yaml`)."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hint_sites import Site, sites

from synfundus.cli.verbs import COMMON, VERBS
from synfundus.config.loader import leaf_fields
from synfundus.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"followed", "advice", "elsewhere"}
SITES = sites()
FOREIGN_FLAGS = {
    "--cpus-per-task": "sbatch",
    "--exclude": "sbatch",
    "--force-reinstall": "pip",
    "--gpus-per-node": "sbatch",
    "--gpus-per-task": "sbatch",
    "--gres": "sbatch",
    "--ntasks-per-node": "sbatch",
    "--shm-size": "docker",
    "--version": "sbatch",
}
"""Options of other programs that hints name."""
NOT_OURS = {"CUDA_VISIBLE_DEVICES", "MASTER_PORT", "TMPDIR", "WANDB_MODE"}


@cache
def table() -> dict[str, list[dict[str, Any]]]:
    """Return the hints by module."""
    found: dict[str, list[dict[str, Any]]] = yaml.safe_load((ROOT / "tests" / "hints.yaml").read_text(encoding="utf-8"))
    return found


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Return the names of the tests in a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def test_every_hint_is_in_the_table_and_the_table_has_no_other() -> None:
    """A new hint needs a line there: a test that follows it, or why none can."""
    listed = [(module, entry["hint"]) for module, entries in table().items() for entry in entries]
    written = {(site.module, site.text) for site in SITES}
    assert len(written) > 230, "the search itself finds them"
    assert sorted(written - set(listed)) == [], "hints without a class"
    assert sorted(set(listed) - written) == [], "no hints any more"
    assert len(listed) == len(set(listed)), "hints that are listed twice"


def test_every_entry_has_one_class_and_names_a_test_that_is_there() -> None:
    for entry in (entry for entries in table().values() for entry in entries):
        (kind,) = entry.keys() - {"hint"}
        assert kind in CLASSES, entry
        if kind == "followed":
            place, _, name = entry[kind].partition("::")
            assert name in names_of_tests(ROOT / "tests" / place), entry
        else:
            assert len(entry[kind].split()) >= 3, f"a reason: {entry}"


def test_a_new_hint_is_noticed() -> None:
    import hint_sites

    tree = ast.parse('raise ConfigError("no", hint=f"give {flag}, or {1}")\nother.hint = "do this" if x == "a" else y')
    texts = [text for value in hint_sites._worded(tree, set()) for text in hint_sites._texts(value)]
    assert sorted(texts) == ["do this", "give {}, or {}"]


def shown(site: Site) -> str:
    return f"{site.module}:{site.line}: {site.text}"


def test_flags_that_hints_name_exist() -> None:
    """In a stage's hint they are flags of that verb, or of all; elsewhere of some verb."""
    common = {option.flag for option in COMMON} | {"--help"}
    flags = {verb.key: {option.flag for option in verb.options} | common for verb in VERBS}
    everywhere = set().union(*flags.values())
    unknown = []
    for site in SITES:
        parts = Path(site.module).parts
        known = flags.get(parts[1], everywhere) if parts[0] == "stages" else everywhere
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", site.text)) - FOREIGN_FLAGS.keys()
        known |= everywhere if re.search(r"`synfundus [\w-]+", site.text) else set()
        unknown += [f"{shown(site)}: {flag}" for flag in named - known]
    assert not unknown


def test_commands_that_hints_name_exist() -> None:
    verbs, config = {verb.name for verb in VERBS}, {"show", "schema", "presets"}
    for site in SITES:
        for command in re.findall(r"`synfundus ([^`{]*)`", site.text):
            verb, *rest = command.split()
            assert verb in verbs or (verb == "config" and rest[0] in config) or verb.startswith("--"), shown(site)
            flags = {option.flag for one in VERBS if one.name == verb for option in (*one.options, *COMMON)}
            assert {word for word in rest if word.startswith("--")} <= flags, shown(site)
        for word in re.findall(r"(?<!synfundus )`([a-z][\w-]*)`", site.text):
            assert word in verbs | RunConfig.model_fields.keys(), shown(site)


def test_keys_that_hints_name_exist() -> None:
    leaves = leaf_fields()
    names = {part for leaf in leaves for part in leaf.split(".")}
    for site in SITES:
        for key in re.findall(
            r"\b(?:train|train_vae|storage|launch|sample|telemetry|verify_latents)\.[\w.]+\w", site.text
        ):
            assert any(f"{leaf}.".startswith(f"{key}.") for leaf in leaves), shown(site)
        for name in re.findall(r"(?<![\w.`])[a-z]+(?:_[a-z]+)+(?![\w.(`{])", site.text):
            assert name in names | KNOWN_NAMES, f"{shown(site)}: {name}"


KNOWN_NAMES = {
    "eye_side",
    "file_pattern",
    "flow_velocity",
    "grad_accum_dtype",
    "patient_id",
    "save_pretrained",
    "v_prediction",
    "dr_grade",
}
"""Names with an underline that are no keys of the configuration."""


def test_files_targets_and_variables_that_hints_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for site in SITES:
        for name in re.findall(r"\b(?:docs|launchers|slurm|ds_configs)/[\w*./-]*\w", site.text):
            assert list(ROOT.glob(name)), shown(site)
        for name in re.findall(r"\bzero2\w*\.json", site.text):
            assert (ROOT / "ds_configs" / name).is_file(), shown(site)
        for name in re.findall(r"\bmake ([a-z]+-[a-z-]+)", site.text):
            assert name in targets, shown(site)
        for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", site.text):
            assert name.startswith("AWS_") or name in NOT_OURS, shown(site)
