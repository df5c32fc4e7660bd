"""The help of a verb: defaults and choices, an example, and the options of all verbs in a group of their own."""

from __future__ import annotations

import json
import shutil
import textwrap
from functools import cache
from importlib import resources
from typing import Any

from typer.core import TyperCommand

from synfundus.cli.verbs import COMMON, VERBS
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


class VerbCommand(TyperCommand):
    """A verb, whose help shows first its own options, then those of all verbs, then an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as typer has them
        """Write the options in two groups."""
        common = {"help", *(option.name for option in COMMON)}
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], "Options of all verbs": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups["Options of all verbs" if parameter.name in common else "Options"].append(record)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - as typer has them
        """Write the example, broken as a shell reads it."""
        del ctx
        example = next((verb.example for verb in VERBS if verb.name == self.name), "")
        if example:
            lines = textwrap.wrap(example, formatter.width - 8, break_on_hyphens=False, break_long_words=False)
            with formatter.section("Example"):
                formatter.write("  " + " \\\n      ".join(lines) + "\n")
