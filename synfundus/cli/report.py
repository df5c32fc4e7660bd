"""Printing errors: a panel on a terminal, plain lines in a log file; what, where, what to do."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

from synfundus.errors import SynfundusError
from synfundus.redaction import redact
from synfundus.telemetry.console import log_stamp


def printable(text: str) -> str:
    """Remove secrets; escape what could move the cursor, colour the terminal or break the encoding.

    Line breaks and tabs are kept.
    """
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in redact(text)
    )


def _write(title: str, sections: Sequence[tuple[str, str]], stream: TextIO) -> None:
    if stream.isatty():
        from rich.console import Console
        from rich.panel import Panel
        from rich.text import Text

        body = Text()
        for name, text in sections:
            if name:
                body.append(f"\n{name}: ", style="bold")
            body.append(printable(text))
        Console(file=stream, highlight=False).print(Panel(body, title=title, title_align="left", border_style="red"))
        return
    lines = [printable(f"{name}: {text}" if name else text) for name, text in sections]
    message = "\n".join([f"{log_stamp()}error ({title.lower()}): {lines[0]}", *lines[1:]]) + "\n"
    encoding = stream.encoding or "utf-8"
    stream.write(message.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def report_traceback(error: BaseException) -> None:
    """Print the traceback of an error, with its causes."""
    sys.stderr.write(printable("".join(traceback.format_exception(error))))


def report_error(error: SynfundusError, *, debug: bool) -> None:
    """Print an error on standard error.

    Ranks above 0 print one line with their number: rank 0 usually prints the same in full.
    """
    if debug:
        report_traceback(error)
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    if rank != "0":
        place = f" ({error.where})" if error.where else ""
        line = f"{log_stamp()}rank {rank}: {error.title}: {error.message}{place}"
        sys.stderr.write(printable(line).replace("\n", "; ") + "\n")
        return
    sections = [("", error.message)]
    if error.where:
        sections.append(("where", error.where))
    if error.hint:
        sections.append(("what to do", error.hint))
    _write(error.title, sections, sys.stderr)


def report_usage(message: str, arguments: Sequence[str]) -> None:
    """Print an error of the command line itself on standard error."""
    from synfundus.cli.verbs import VERBS

    if message.startswith("Usage:"):
        # a group without a command: show the list of commands
        sys.stderr.write(message.rstrip() + "\n")
        return
    verb = next((argument for argument in arguments if argument in {known.name for known in VERBS}), "")
    hint = f"see `synfundus {verb} --help`" if verb else "see `synfundus --help`"
    if verb and (flag := re.match(r"No such option: (--[\w-]+)", message.strip())):
        from synfundus.config.explain import keys_like

        known = next(known for known in VERBS if known.name == verb)
        if flag[1] in ("--nodes", "--submit"):
            job = "one node; --submit makes it a job" if known.script else "the machine it is started on"
            message, hint = flag[0], f"leave it out: `{verb}` runs on {job}"
        elif keys := keys_like(flag[1], known.sections):
            message = flag[0]
            hint = f"set it by its key: {' or '.join(f'--set {key}=...' for key in keys[:3])}"
    required = [option.flag for known in VERBS if known.name == verb for option in known.options if option.required]
    if "unexpected extra argument" in message and len(required) == 1:
        hint = f"name what it is: `synfundus {verb} {required[0]} ...`"
    _write("Command line", [("", message.strip()), ("what to do", hint)], sys.stderr)
