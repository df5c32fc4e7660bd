"""Merge preset, run.yaml, ``--set`` and named flags into one checked configuration with the origin of each value.

Precedence: schema < resumed run < preset < ``--config`` < ``--set`` < named flags. All problems are reported at
once, each with its dotted path, the offending value and where it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from synfundus.config.base import FORMS, Section
from synfundus.config.diffusion import OF_SCHEDULES
from synfundus.config.schema import RunConfig
from synfundus.config.yaml_text import Entry, Value, parse_flow, parse_mapping, plain_value, read_text
from synfundus.errors import ConfigError, suggestion
from synfundus.redaction import redact, secret_kind

DEFAULT_ORIGIN = "default"
RENAMED = {
    "vae.codec": "train_vae.autoencoder",
    "vae": "train_vae",
    "encode.verify_samples": "verify_latents.num_samples",
    "encode.verify_min_psnr_db": "verify_latents.min_psnr_db",
    "encode": "encode_latents",
    "unet": "train.unet",
    "diffusion": "train.diffusion",
    "loop": "train.loop",
    "optim": "train.optim",
    "ema.half_life_images": "train.ema.half_life_images",
    "ema.rampup_ratio": "train.ema.rampup_ratio",
    "ema.snapshot_every_images": "train.ema.snapshot_every_images",
    "post_hoc": "ema",
}
"""Keys of version 0.1 and their new names: an old key is refused, and the message gives the new one."""
MAX_PROBLEMS = 25
"""Problems beyond this number are counted, not listed."""
MAX_EXPLAINED = 10
"""Unknown keys beyond this number get no suggestion and no list of known keys."""
MAX_SHOWN = 80
"""Maximum length of a bad value in a message."""


@dataclass(frozen=True)
class Assignment:
    """One value that was set.

    Attributes:
        path: Dotted path in `RunConfig`, such as ``train.loop.budget_images``.
        value: Text as the user wrote it, None for null, or a list or mapping of such.
        origin: Who asked, such as ``--nodes`` or ``run.yaml:12``.
    """

    path: str
    value: Value
    origin: str


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration.

    Attributes:
        config: The values.
        provenance: Origin of every leaf by its dotted path; ``default`` where it was not set.
    """

    config: RunConfig
    provenance: Mapping[str, str]


@dataclass
class _Draft:
    """Values collected so far, and what is wrong with them."""

    leaves: dict[tuple[str, ...], Assignment] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def list_presets() -> list[str]:
    """Return the names of the shipped presets."""
    folder = resources.files("synfundus.config") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """Return the YAML of a shipped preset.

    Raises:
        ConfigError: There is no preset of that name.
    """
    known = list_presets()
    if name not in known:
        raise ConfigError(
            f"there is no preset {_show(name)}{suggestion(name, known)}",
            where="--preset",
            hint=f"presets: {', '.join(known)}; a file of your own goes to --config",
        )
    return (resources.files("synfundus.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def section_class(info: FieldInfo) -> type[Section] | None:
    """Return the class of a field that is a section, None for a leaf."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def leaf_fields(section: type[Section] = RunConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Return every leaf of the schema by its dotted path, in the order of the schema."""
    leaves: dict[str, FieldInfo] = {}
    for name, info in section.model_fields.items():
        nested = section_class(info)
        if nested is None:
            leaves[prefix + name] = info
        else:
            leaves.update(leaf_fields(nested, f"{prefix}{name}."))
    return leaves


def _containers(annotation: object) -> set[object]:
    """Return which of dict, tuple and list a field accepts."""
    origin = get_origin(annotation)
    if origin in (dict, tuple, list):
        return {origin}
    return set().union(*(_containers(part) for part in get_args(annotation))) if origin else set()


def _show(value: object) -> str:
    """Write a value for a message: quoted, escaped, not too long."""
    text = redact(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _renamed(key: str) -> tuple[str, str] | None:
    """Return as much of a key as version 0.1 had, and today's name of that; None if it had nothing of it."""
    while old := max((old for old in RENAMED if f"{key}.".startswith(f"{old}.")), key=len, default=""):
        today = RENAMED[old] + key.removeprefix(old)
        if any(f"{leaf}.".startswith(f"{today}.") for leaf in leaf_fields()):
            return key, today
        key = key.rpartition(".")[0]
    return None


def _unknown(path: Sequence[str], section: type[Section], origin: str, *, whole: str = "", suggest: bool) -> str:
    """Describe a key the schema does not have.

    Args:
        path: The key with what it stands under.
        section: The section it is not in.
        origin: Who asked.
        whole: The path as it was written, where it is longer.
        suggest: Look for close matches, which takes time that the thousandth problem is not worth.
    """
    *parents, last = path
    prefix = ".".join(parents)
    if renamed := _renamed(whole or ".".join(path)):
        return f"unknown key {_show(renamed[0])} ({origin}): it is called {renamed[1]} now"
    clause = suggestion(last, list(section.model_fields)) if suggest else " "
    if not clause:
        everywhere = leaf_fields()
        same_name = [known for known in everywhere if known.rsplit(".", 1)[-1] == last.rsplit(".", 1)[-1]]
        clause = f" (did you mean {' or '.join(same_name[:3])}?)" if same_name else suggestion(last, list(everywhere))
    place = f"in {prefix}" if prefix else "at the top level"
    choices = "" if clause else f"; known: {', '.join(section.model_fields)}"
    return f"unknown key {_show(last)} {place} ({origin}){clause}{choices}"


def _check_text(value: object) -> str | None:
    """Say what is wrong with a text as such, or None: control characters, broken encodings and secrets."""
    if isinstance(value, str):
        if any(not character.isprintable() and ord(character) < 0xD800 and character.isascii() for character in value):
            return "contains a control character or a line break"
        if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            return "is not valid UTF-8"
        if kind := secret_kind(value):
            return f"looks like {kind}; secrets come from the environment, a profile or a role, and are not settings"
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((problem for item in items if (problem := _check_text(item))), None)


def _as_written(text: Value, info: FieldInfo, origin: str) -> Value:
    """Give a text the structure its field has: lists by comma or in brackets, mappings in braces."""
    kinds = _containers(info.annotation)
    if not isinstance(text, str) or not kinds:
        return text
    stripped = text.strip()
    if stripped[:1] in ("[", "{"):
        return parse_flow(stripped, where=origin)
    if kinds & {tuple, list}:
        return [part.strip() for part in stripped.split(",")] if stripped else []
    return text


def _put_leaf(draft: _Draft, path: tuple[str, ...], info: FieldInfo, value: Value, origin: str) -> None:
    dotted = ".".join(path)
    try:
        shaped = _as_written(value, info, origin)
    except ConfigError as error:
        draft.problems.append(f"{dotted} ({origin}): {error.message}")
        return
    wrong = _check_text(shaped)
    if wrong is None and isinstance(shaped, dict) and dict not in _containers(info.annotation):
        wrong = "is a mapping where a value belongs"
    if wrong is not None:
        draft.problems.append(f"{dotted} = {_show(value)} ({origin}): {wrong}")
        return
    draft.leaves[path] = Assignment(dotted, shaped, origin)


def _entries(value: Value | dict[str, Entry]) -> dict[str, Entry]:
    """Return what stands in a section, nothing where the value is no section."""
    return {key: item for key, item in value.items() if isinstance(item, Entry)} if isinstance(value, dict) else {}


def _merge_entries(
    draft: _Draft, entries: Mapping[str, Entry], section: type[Section], path: tuple[str, ...], source: str, lines: bool
) -> None:
    """Take over a (part of a) file."""
    for key, entry in entries.items():
        here = (*path, key)
        origin = f"{source}:{entry.line}" if lines else source
        info = section.model_fields.get(key)
        inside = _entries(entry.value)
        if info is None and inside and any(old.startswith(f"{'.'.join(here)}.") for old in RENAMED):
            _merge_entries(draft, inside, Section, here, source, lines)  # one by one: not all have gone one way
            continue
        if info is None:
            count = len(draft.problems)
            draft.problems.append(
                f"unknown key ({origin})"  # beyond what is shown only the number counts
                if count >= MAX_PROBLEMS
                else _unknown(here, section, origin, suggest=count < MAX_EXPLAINED)
            )
            continue
        nested = section_class(info)
        if nested is None:
            _put_leaf(draft, here, info, plain_value(entry.value), origin)
        elif isinstance(entry.value, dict):
            _merge_entries(draft, inside, nested, here, source, lines)
        elif entry.value is not None:
            draft.problems.append(
                f"{'.'.join(here)} = {_show(entry.value)} ({origin}): is a section, it takes keys of its own"
            )


def _merge_assignment(draft: _Draft, assignment: Assignment) -> None:
    """Take over one ``--set`` or flag."""
    parts = tuple(assignment.path.split("."))
    section: type[Section] = RunConfig
    for depth, part in enumerate(parts):
        here = parts[: depth + 1]
        info = section.model_fields.get(part)
        if info is None:
            draft.problems.append(_unknown(here, section, assignment.origin, whole=assignment.path, suggest=True))
            return
        nested = section_class(info)
        if nested is not None:
            section = nested
            continue
        rest = ".".join(parts[depth + 1 :])
        if not rest:
            _put_leaf(draft, here, info, assignment.value, assignment.origin)
        elif dict in _containers(info.annotation):
            earlier = draft.leaves[here].value if here in draft.leaves else {}
            grown = {**earlier, rest: assignment.value} if isinstance(earlier, dict) else {rest: assignment.value}
            _put_leaf(draft, here, info, grown, assignment.origin)
        else:
            draft.problems.append(f"{assignment.path} ({assignment.origin}): {'.'.join(here)} has no keys of its own")
        return
    draft.problems.append(
        f"{assignment.path} = {_show(assignment.value)} ({assignment.origin}): is a section; "
        f"it has {', '.join(section.model_fields)}"
    )


def _nest(leaves: Mapping[tuple[str, ...], Assignment]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, assignment in leaves.items():
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = assignment.value
    return tree


def _describe(error: Mapping[str, Any], leaves: Mapping[tuple[str, ...], Assignment]) -> tuple[str, str]:
    """Return what one of pydantic's complaints is about, by path, value and origin, and what it says."""
    location = tuple(str(part) for part in error["loc"])
    known = {".".join(path): assignment for path, assignment in leaves.items()}
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = FORMS[error["ctx"]["pattern"]]
    for length in range(len(location), 0, -1):
        assignment = known.get(".".join(location[:length]))
        if assignment is not None:
            return f"{assignment.path} = {_show(assignment.value)} ({assignment.origin})", message
    dotted = ".".join(location)
    involved = [f"{path} ({item.origin})" for path, item in known.items() if path.startswith(f"{dotted}.")]
    return dotted, message + (f" [set here: {', '.join(involved)}]" if involved else "")


def _raise_problems(problems: Sequence[str]) -> None:
    listed = list(dict.fromkeys(problems))
    hidden = len(listed) - MAX_PROBLEMS
    shown = listed[:MAX_PROBLEMS] + ([f"... and {hidden} more"] if hidden > 0 else [])
    if len(listed) == 1:
        message = listed[0]
    else:
        message = f"{len(listed)} problems:\n" + "\n".join(f"- {problem}" for problem in shown)
    raise ConfigError(message, hint="`synfundus config schema` lists all keys, `synfundus config show KEY` one")


_FLOW = ("train", "diffusion", "prediction_type")


def _drop_schedule_of_preset(draft: _Draft, preset: str) -> None:
    """Leave a preset's noise schedule out where a flow is asked for, which has none; what the user wrote stays."""
    asked = draft.leaves.get(_FLOW)
    for name in OF_SCHEDULES if asked is not None and asked.value == "flow_velocity" else ():
        path = (*_FLOW[:-1], name)
        if path in draft.leaves and draft.leaves[path].origin == f"preset {preset}":
            del draft.leaves[path]


def load_config(
    *,
    preset: str | None,
    file: str | None,
    settings: Sequence[str],
    flags: Sequence[Assignment],
    begun: tuple[str, str] | None = None,
) -> LoadedConfig:
    """Resolve and check the configuration.

    Args:
        preset: Name of a shipped preset.
        file: A YAML file.
        settings: Arguments of ``--set``, each ``dotted.path=value``; later ones win.
        flags: What named options ask for.
        begun: Name and text of the YAML with the settings of a resumed run; all others win over it.

    Raises:
        ConfigError: With every problem found.
    """
    draft = _Draft()
    if begun is not None:
        _merge_entries(draft, parse_mapping(begun[1], where=begun[0]), RunConfig, (), begun[0], lines=True)
    if preset is not None:
        entries = parse_mapping(preset_text(preset), where=f"preset {preset}")
        _merge_entries(draft, entries, RunConfig, (), f"preset {preset}", lines=False)
    if file is not None:
        if wrong := _check_text(file):
            raise ConfigError(f"the path {_show(file)} {wrong}", where="--config")
        _merge_entries(draft, parse_mapping(read_text(file), where=file), RunConfig, (), file, lines=True)
    for text in settings:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            draft.problems.append(f"--set: {_show(text)} is not of the form KEY=VALUE")
            continue
        given = None if value.strip() in ("null", "~") else value
        _merge_assignment(draft, Assignment(path.strip(), given, "--set"))
    for flag in flags:
        _merge_assignment(draft, flag)
    if preset is not None:
        _drop_schedule_of_preset(draft, preset)
    try:
        config = RunConfig.model_validate(_nest(draft.leaves))
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for one in error.errors(include_url=False):
            about, message = _describe(dict(one), draft.leaves)
            found.setdefault(about, []).append(message)
        # a value of several kinds is complained about once for each kind
        draft.problems.extend(f"{about}: {'; '.join(dict.fromkeys(said))}" for about, said in found.items())
        _raise_problems(draft.problems)
        raise
    if draft.problems:
        _raise_problems(draft.problems)
    origins = {assignment.path: assignment.origin for assignment in draft.leaves.values()}
    return LoadedConfig(config, {path: origins.get(path, DEFAULT_ORIGIN) for path in leaf_fields()})


def fingerprint(config: Section) -> str:
    """Return the SHA-256 of the canonical JSON of a configuration, in hexadecimal."""
    canonical = json.dumps(
        config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
