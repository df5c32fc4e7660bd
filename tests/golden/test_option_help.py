"""What an option takes and its default, as the help shows them, are those of the schema.

`make golden` writes the table anew; look at the difference before committing it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from synfundus.cli import help as cli_help
from synfundus.cli.verbs import COMMON, VERBS
from synfundus.config.base import value_at
from synfundus.config.explain import default_text, value_name
from synfundus.config.loader import leaf_fields, load_config

TABLE = Path(cli_help.__file__).with_name(cli_help.TABLE_NAME)


def rendered() -> str:
    leaves = leaf_fields()
    table: dict[str, dict[str, list[str]]] = {}
    for verb in VERBS:
        config = load_config(preset=verb.default_preset, file=None, settings=[], flags=[]).config
        table[verb.name] = {
            option.flag: [value_name(option.path, leaves[option.path]), default_text(value_at(config, option.path))]
            for option in (*verb.options, *COMMON)
            if option.path
        }
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def test_the_help_shows_the_defaults_and_choices_of_the_schema() -> None:
    if os.environ.get("SYNFUNDUS_REGENERATE_GOLDEN"):
        TABLE.write_text(rendered(), encoding="utf-8")
    assert rendered() == TABLE.read_text(encoding="utf-8")
