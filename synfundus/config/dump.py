"""Writing a resolved configuration as YAML for people to read and the loader to read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from synfundus.config.base import Section
from synfundus.config.loader import LoadedConfig

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


def _lines(
    section: Section, names: Iterable[str], provenance: Mapping[str, str], path: str = "", indent: str = ""
) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        dotted = f"{path}{name}"
        key = f"{indent}{name}:"
        if isinstance(value, Section):
            yield key
            yield from _lines(value, type(value).model_fields, provenance, f"{dotted}.", f"{indent}  ")
        else:
            yield f"{key} {format_value(value)}".ljust(_COMMENT_COLUMN) + f"  # {_escape(provenance[dotted])}"


def dump_config(loaded: LoadedConfig, *, only: frozenset[str] | None = None) -> str:
    """Write the configuration as YAML, each value with its origin in a comment.

    Args:
        loaded: What `load_config` returned.
        only: Top-level keys to write; all when left out.
    """
    names = [name for name in type(loaded.config).model_fields if only is None or name in only]
    return "\n".join(_lines(loaded.config, names, loaded.provenance)) + "\n"
