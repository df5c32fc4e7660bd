"""Reading untrusted YAML: data only, bounded, and every error names its line.

Only mappings, lists and scalars are read. A plain scalar stays the text the user wrote (``24:00:00`` is not 86400,
``no`` is not false, ``012`` is not ten): the schema knows the type of each field and converts it, the file format
does not guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from synfundus.errors import ConfigError

MAX_BYTES = 256 * 1024
"""A run.yaml is a few kilobytes; a larger file is something else."""
MAX_DEPTH = 20
"""Nesting beyond any section of the schema."""

Value = str | None | list["Value"] | dict[str, "Value"]
"""Scalars are text; null is None."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """A value of a document and the line of its key, 1-based."""

    value: Value | dict[str, Entry]
    line: int


def read_text(path: str) -> str:
    """Read a text file a user named.

    Raises:
        ConfigError: Missing, a folder, unreadable, too large, or not text.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError("the config file does not exist", where=path, hint="check the path after --config") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the config file cannot be read: {reason}", where=path) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the config file has more than {MAX_BYTES} bytes", where=path, hint="a run.yaml is a few KiB"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the config file is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x})",
            where=path,
            hint="save it as UTF-8; a config is a YAML file",
        ) from error
    if "\0" in text:
        raise ConfigError("the config file is binary (it contains NUL bytes)", where=path, hint="a config is YAML text")
    return text


def _complaint(error: yaml.YAMLError, text: str, where: str) -> ConfigError:
    """Turn a parser's exception into one readable message."""
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else None
    place = f"{where}:{line}" if line else where
    lines = text.splitlines()
    content = lines[line - 1] if line and line <= len(lines) else ""
    if "\t" in content[: len(content) - len(content.lstrip())]:
        return ConfigError("a tab is used for indentation", where=place, hint="YAML indents with blanks")
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    shown = f" in {content.strip()[:80]!r}" if content.strip() else ""
    return ConfigError(f"not valid YAML: {problem}{shown}", where=place, hint="see the line named above")


def _check_events(text: str, where: str) -> None:
    """Walk the document's events: no aliases, no tags, one document, bounded depth. Cheap, builds nothing."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if documents > 1:
            raise ConfigError("the file holds more than one document", where=f"{where}:{line}", hint="remove the ---")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError("anchors and aliases (&, *) are not read", where=f"{where}:{line}", hint="write it out")
        tag = getattr(event, "tag", None)
        if tag and not (isinstance(event, yaml.ScalarEvent) and tag == "!"):
            raise ConfigError(f"the tag {tag!r} is not read", where=f"{where}:{line}", hint="write plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=f"{where}:{line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _scalar(node: ScalarNode) -> str | None:
    text: str = node.value
    return None if not node.style and text.lower() in ("null", "~", "") else text


def _plain(node: Node, where: str) -> Value:
    """Turn a node into a value without lines."""
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode):
        return [_plain(item, where) for item in node.value]
    return plain_value(_entries(node, where))


def plain_value(value: Value | dict[str, Entry]) -> Value:
    """Forget the lines of entries."""
    if isinstance(value, dict):
        return {key: plain_value(item.value) if isinstance(item, Entry) else item for key, item in value.items()}
    return value


def _entries(node: Node, where: str) -> dict[str, Entry]:
    """Turn a mapping node into entries with lines; refuse keys that occur twice."""
    assert isinstance(node, MappingNode)
    found: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            raise ConfigError("a key must be a word, not a list or a mapping", where=f"{where}:{line}")
        key: str = key_node.value
        if key in found:
            raise ConfigError(
                f"the key {key!r} occurs twice, in lines {found[key].line} and {line}",
                where=f"{where}:{line}",
                hint="keep one of them",
            )
        nested = isinstance(value_node, MappingNode)
        found[key] = Entry(_entries(value_node, where) if nested else _plain(value_node, where), line)
    return found


def _composed(text: str, where: str) -> Node | None:
    """Return the nodes of a document that passes the checks; None for an empty one."""
    try:
        _check_events(text, where)
        node: Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _complaint(error, text, where) from error
    except RecursionError as error:
        raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=where) from error
    return node


def parse_mapping(text: str, *, where: str) -> dict[str, Entry]:
    """Parse a document that must be a mapping.

    Args:
        text: The document; an empty one is an empty mapping.
        where: Name of the file, for messages.

    Raises:
        ConfigError: Not YAML, not a mapping, or YAML this reader refuses.
    """
    node = _composed(text, where)
    if node is None or (isinstance(node, ScalarNode) and _scalar(node) is None):
        return {}
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else f"the text {node.value[:60]!r}"
        raise ConfigError(
            f"the file is {kind}, not a mapping",
            where=where,
            hint="write sections and keys, like `loop:` and below it `budget_images: 1000`",
        )
    return _entries(node, where)


def parse_yaml(text: str, *, where: str) -> Value:
    """Parse a document of any kind to plain values: scalars are text, null is None.

    Raises:
        ConfigError: Not YAML, or YAML this reader refuses: a key twice, an alias, a tag, deep nesting, too long.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"the file has more than {MAX_BYTES} characters", where=where)
    node = _composed(text, where)
    return None if node is None else _plain(node, where)


def parse_flow(text: str, *, where: str) -> Value:
    """Parse a value in flow syntax, such as ``[1, 2]`` or ``{dr_grade: 3}``.

    Raises:
        ConfigError: Not YAML, or YAML this reader refuses.
    """
    try:
        _check_events(text, where)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{text[:80]!r} cannot be read: {problem}", where=where) from error
    return None if node is None else _plain(node, where)
