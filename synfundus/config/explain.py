"""The keys of the configuration with their meaning, as YAML to copy: sections, single keys, presets."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Collection, Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from synfundus.config.base import Section, value_at
from synfundus.config.dump import format_value
from synfundus.config.loader import DEFAULT_ORIGIN, leaf_fields, list_presets, load_config, section_class
from synfundus.config.schema import RunConfig
from synfundus.errors import ConfigError, suggestion

_WIDTH = 100
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_UNITS = {"_s": "SECONDS", "_px": "PIXELS", "minutes": "MINUTES", "_gbit": "GBIT", "_bytes": "BYTES"}


def _kinds(annotation: object) -> Iterator[object]:
    """Yield the types a field takes, and the texts it knows by name."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif annotation is not type(None):
        yield annotation


def value_name(path: str, info: FieldInfo) -> str:
    """Return a word for what a key takes: its choices (``png|shards``), its unit, or ``N``, ``X``, ``NAME``."""
    unit = next((word for ending, word in _UNITS.items() if path.endswith(ending)), "")
    words: list[str] = []
    for kind in _kinds(info.annotation):
        if isinstance(kind, str):
            words.append(kind)
        elif kind is bool:
            words.append("true|false")
        elif kind in (int, float):
            words.append(unit or ("N" if kind is int else "X"))
        elif get_origin(kind) is tuple:
            inner = next(_kinds(get_args(kind)[0]), str)
            words.append({int: "N,N,...", float: "X,X,..."}.get(inner if isinstance(inner, type) else str, "NAME,..."))
        else:
            words.append("NAME=VALUE" if get_origin(kind) is dict else "NAME")
    return "|".join(dict.fromkeys(words))


def _bounds(info: FieldInfo) -> str:
    """Return the bounds of a number, empty for none."""

    def found(metadata: Collection[object]) -> Iterator[str]:
        for one in metadata:
            yield from (f"{sign} {getattr(one, name)}" for name, sign in _BOUNDS.items() if hasattr(one, name))
            yield from found(getattr(one, "metadata", ()))

    parts = [part for part in get_args(info.annotation) if get_origin(part) is Annotated]
    return ", ".join([*found(info.metadata), *(text for part in parts for text in found(get_args(part)[1:]))])


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from (f"{indent}# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent) - 2))


def _lines(values: Section, wanted: Collection[str], section: type[Section], prefix: str) -> Iterator[str]:
    """Yield the wanted keys below a section, each under its meaning."""
    indent = "  " * prefix.count(".")
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        nested = section_class(info)
        if nested is not None:
            if any(key.startswith(f"{path}.") for key in wanted):
                yield from _comment(info.description or "", indent)
                yield f"{indent}{name}:"
                yield from _lines(values, wanted, nested, f"{path}.")
        elif path in wanted:
            value = format_value(value_at(values, path))
            default = format_value(info.get_default(call_default_factory=True))
            taken = " ".join(filter(None, [value_name(path, info), _bounds(info)]))
            differs = f"; default: {default}" if value != default else ""
            yield from _comment(f"{info.description or ''} [{taken}{differs}]", indent)
            yield f"{indent}{name}: {value}"


def _of_section(name: str, leaves: Collection[str]) -> list[str]:
    """Return the keys a name stands for: a section, a key, or the end of some (``lr``)."""
    inside = [path for path in leaves if f"{path}.".startswith(f"{name}.")]
    return inside or [path for path in leaves if f".{path}.".find(f".{name}.") >= 0]


def explain(name: str) -> str:
    """Return a preset, a section or keys as YAML with meaning, values and defaults.

    Args:
        name: A preset, a section (``train.optim``), a key, or the end of one (``lr``).

    Raises:
        ConfigError: There is nothing of that name.
    """
    leaves = leaf_fields()
    if name in list_presets():
        loaded = load_config(preset=name, file=None, settings=[], flags=[])
        wanted = [path for path, origin in loaded.provenance.items() if origin != DEFAULT_ORIGIN]
        values = loaded.config
    else:
        values, wanted = RunConfig(), _of_section(name.replace("-", "_"), leaves)
    if not wanted:
        known = sorted({part for path in leaves for part in (path, *path.split("."))} | set(list_presets()))
        raise ConfigError(
            f"there is no preset, section or key {name!r}{suggestion(name, known)}",
            where="config show",
            hint=f"presets: {', '.join(list_presets())}; sections: {', '.join(RunConfig.model_fields)}; label-schema",
        )
    return "\n".join(_lines(values, frozenset(wanted), RunConfig, "")) + "\n"


_OTHER_NAMES = {
    "learning_rate": "lr",
    "epochs": "budget_images",
    "num_epochs": "budget_images",
    "max_steps": "budget_images",
    "resolution": "image_size_px",
    "grad_clip": "max_grad_norm",
    "num_workers": "workers",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "mixed_precision": "precision",
    "output_dir": "run_dir",
}
"""What other trainers call some keys."""


def keys_like(flag: str, sections: Collection[str]) -> list[str]:
    """Return the keys an unknown flag may mean, those of the same name first.

    Args:
        flag: As typed, ``--lr``.
        sections: Top-level keys to look in.
    """
    name = flag.removeprefix("--").replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    leaves = [path for path in leaf_fields() if path.split(".")[0] in sections]
    same = [path for path in leaves if path.rpartition(".")[2] == name or path.replace(".", "_").endswith(f"_{name}")]
    close = difflib.get_close_matches(name, [path.rpartition(".")[2] for path in leaves], n=2, cutoff=0.75)
    return same or [path for path in leaves if path.rpartition(".")[2] in close]


def default_text(default: Any) -> str:  # noqa: ANN401 - the default of any key
    """Write a default for a line of help; empty for none."""
    nothing = default is None or default is False or default in ((), {})
    return "" if nothing else format_value(default).strip("[]").replace(" ", "")
