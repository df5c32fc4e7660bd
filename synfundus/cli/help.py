"""What the help says of an option: what it takes, its default, from a table that a test compares with the schema."""

from __future__ import annotations

import json
import shutil
from functools import cache
from importlib import resources
from typing import Any

from synfundus.stages.verb import Option, Verb

TABLE_NAME = "option_help.json"
"""Verb -> flag -> [what it takes, its default]: read from the schema when the table is written, not for `--help`."""
_WIDEST = 120


def settings() -> dict[str, Any]:
    """Return typer's settings: ``-h`` too, and the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return {"help_option_names": ["-h", "--help"], "max_content_width": width}


@cache
def _table() -> dict[str, dict[str, list[str]]]:
    text = (resources.files("synfundus.cli") / TABLE_NAME).read_text(encoding="utf-8")
    found: dict[str, dict[str, list[str]]] = json.loads(text)
    return found


def metavar(verb: Verb, option: Option) -> str:
    """Return what an option takes, e.g. ``PATH`` or ``cpu|cuda``."""
    if option.metavar or option.kind == "mapping":
        return option.metavar or "NAME=VALUE"
    if option.role:
        return "PATH[:SHARE]" if option.kind == "many" else "PATH"
    return _table().get(verb.name, {}).get(option.flag, ["VALUE", ""])[0]


def help_text(verb: Verb, option: Option) -> str:
    """Return the help of an option, with its default in brackets."""
    default = _table().get(verb.name, {}).get(option.flag, ["", ""])[1]
    note = "required" if option.required else f"default: {default}" if default else ""
    return f"{option.help} [{note}]" if note and "default:" not in option.help else option.help
