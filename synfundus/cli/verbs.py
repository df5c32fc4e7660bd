"""The verbs, each defined in its folder of `synfundus.stages`, and their common options.

Nothing here imports pydantic, which is too slow for `--help`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from synfundus import stages
from synfundus.stages.verb import Option, Verb

COMMON = (
    Option("--preset", "", "Start from a shipped preset: demo-cpu, fundus256, fundus512, fundus1024.", metavar="NAME"),
    Option("--config", "", "Then read this YAML file.", metavar="PATH"),
    Option("--set", "", "Then set KEY=VALUE, e.g. train.optim.lr=2e-4 (repeatable).", "list", metavar="KEY=VALUE"),
    Option("--seed", "seed", "Seed of every random draw."),
    Option(
        "--dry-run", "", "Show the resolved values, where each came from and what would start; do nothing.", "switch"
    ),
    Option("--json", "", "Print the summary as JSON on standard output.", "switch"),
    Option("--debug", "", "Show the traceback of an error.", "switch"),
)


def find_verbs() -> tuple[Verb, ...]:
    """Return the verbs in the order of the help: each folder of `synfundus.stages` has one in its ``verb.py``."""
    folders = [module.name for module in iter_modules(stages.__path__) if module.ispkg]
    verbs: list[Verb] = [import_module(f"{stages.__name__}.{folder}.verb").VERB for folder in folders]
    return tuple(sorted(verbs, key=lambda verb: verb.order))


VERBS = find_verbs()
