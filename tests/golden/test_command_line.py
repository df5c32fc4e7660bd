"""The command line as it was agreed: a new or changed option shows up as a difference in golden/command_line.txt.

`make golden` writes the file anew; look at the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

from synfundus.cli.verbs import VERBS

GOLDEN = Path(__file__).with_name("command_line.txt")


def rendered() -> str:
    lines = []
    for verb in VERBS:
        lines.append(f"synfundus {verb.name}: {verb.help}")
        for option in verb.options:
            need = ", required" if option.required else ""
            lines.append(f"  {option.flag} ({option.kind}{need}) -> {option.path or 'the command line itself'}")
    return "\n".join(lines) + "\n"


def test_verbs_and_options_are_the_agreed_ones() -> None:
    if os.environ.get("SYNFUNDUS_REGENERATE_GOLDEN"):
        GOLDEN.write_text(rendered(), encoding="utf-8")
    assert rendered() == GOLDEN.read_text(encoding="utf-8")
