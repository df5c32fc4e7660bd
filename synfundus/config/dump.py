"""Writing a resolved configuration as YAML for people to read and the loader to read back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from synfundus.config.base import Section
from synfundus.config.loader import DEFAULT_ORIGIN, LoadedConfig

_PLAIN = re.compile(r"[A-Za-z0-9_./+-]([A-Za-z0-9_./+:@=-]*[A-Za-z0-9_./+=@-])?")
_COMMENT_COLUMN = 44


def _escape(text: str) -> str:
    """Escape characters that YAML would break, fold or refuse, as its double-quoted style does."""
    return "".join(character if character.isprintable() else f"\\U{ord(character):08x}" for character in text)


def _quoted(text: str) -> str:
    backslash, quote = "\\", '"'
    return quote + _escape(text.replace(backslash, backslash * 2).replace(quote, backslash + quote)) + quote


def format_value(value: object) -> str:
    """Write one value in flow syntax.

    Text is quoted where YAML or the loader would read it as something else.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        special = value.lower() in ("null", "true", "false") or value.startswith("-")
        return value if _PLAIN.fullmatch(value) and not special else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{format_value(key)}: {format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return repr(value)


def _lines(section: Section, provenance: Mapping[str, str], path: str, depth: int) -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        dotted = f"{path}{name}"
        key = f"{'  ' * depth}{name}:"
        if isinstance(value, Section):
            yield key
            yield from _lines(value, provenance, f"{dotted}.", depth + 1)
        else:
            yield f"{key} {format_value(value)}".ljust(_COMMENT_COLUMN) + f"  # {_escape(provenance[dotted])}"


def dump_config(loaded: LoadedConfig, *, only: frozenset[str] | None = None, hide_defaults: bool = False) -> str:
    """Write the configuration as YAML, each value with its origin in a comment.

    Args:
        loaded: What `load_config` returned.
        only: Top-level keys to write; all when left out.
        hide_defaults: Leave out values that are still the default.
    """
    kept: list[str] = []
    top = ""
    for line in _lines(loaded.config, loaded.provenance, "", 0):
        if not line.startswith(" "):
            top = line.split(":", 1)[0]
        if only is not None and top not in only:
            continue
        if hide_defaults and line.endswith(f"# {DEFAULT_ORIGIN}"):
            continue
        kept.append(line)
    return "\n".join(_without_empty_sections(kept)) + "\n"


def _without_empty_sections(lines: list[str]) -> list[str]:
    """Drop headings of empty sections."""
    kept: list[str] = []
    indent_below = -1
    for line in reversed(lines):
        indent = len(line) - len(line.lstrip())
        if line.endswith(":") and indent_below <= indent:
            continue
        kept.append(line)
        indent_below = indent
    return kept[::-1]
