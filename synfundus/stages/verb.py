"""What a verb says of itself: its row on the command line, its checks, what it adds to a dry run.

Each folder of `synfundus.stages` has a ``verb.py`` with ``VERB`` and a ``job.py`` with ``run``. Help texts are repeated
in the rows because reading them from the schema would import pydantic, which `--help` cannot afford; a test compares
every path with the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from synfundus.errors import ConfigError

OptionKind = Literal["value", "many", "flag", "mapping", "switch", "list"]
"""value: one text; many: repeatable text; flag: no argument, sets true; mapping: repeatable NAME=VALUE; switch, list:
for the CLI itself."""
PathRole = Literal["input", "output", "run", ""]


@dataclass(frozen=True)
class Option:
    """A named option: a dotted path of the configuration.

    Attributes:
        flag: As typed, ``--image-size``.
        path: Dotted path of the configuration it sets; empty for what concerns the command line alone.
        help: One line.
        kind: How it is written.
        required: The verb cannot do without a value at this path, wherever it comes from.
        role: ``input`` must exist, ``output`` must not be a file; ``run`` is an output that is a run, which goes on as
            it began.
    """

    flag: str
    path: str
    help: str
    kind: OptionKind = "value"
    required: bool = False
    role: PathRole = ""

    @property
    def name(self) -> str:
        """Return the Python name: ``image_size``."""
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: As typed.
        help: First line of its help.
        order: Where it stands in the help, which follows the life of an image.
        options: Its own options.
        sections: Top-level keys of the configuration that concern it.
        distributed: Whether it runs as ranks of a job with a process group.
        one_process: Whether its group has one rank, however many processes a shared file asks for.
        host_only: Whether it computes on the host whatever accelerators there are; alone it needs no process group.
        script: Batch script for several nodes; empty when it does not run on several.
        trains: Section of the training it does; None when it does not train.
        default_preset: Preset taken when the user names none.
        results_on_stdout: What it says is its result.
        problems: Says what is wrong with the values of its own section that the schema cannot know; also with what lies
            on the disk if the second argument says so.
        dry_run: Returns what a dry run shows beside the values, from its own section and the seed.
    """

    name: str
    help: str
    order: int
    options: tuple[Option, ...]
    sections: tuple[str, ...]
    distributed: bool = False
    one_process: bool = False
    host_only: bool = False
    script: str = ""
    trains: Literal["train", "train_vae"] | None = None
    default_preset: str | None = None
    results_on_stdout: bool = False
    problems: Callable[[Any, bool], list[str]] | None = None
    dry_run: Callable[[Any, int], str] | None = None

    @property
    def key(self) -> str:
        """Return the name of its folder in `synfundus.stages` and of its own section: ``train_vae``."""
        return self.name.replace("-", "_")


DEVICE = Option("--device", "launch.device", "auto, cpu or cuda.")
PROCS = Option("--procs-per-node", "launch.procs_per_node", "Processes a node; default one a GPU, or 1.")
NODES = Option("--nodes", "launch.nodes", "Nodes; above 1 SLURM is used.")
DISTRIBUTED = (NODES, PROCS, DEVICE)
CACHE = Option("--cache-dir", "storage.cache_dir", "Local folder for copies of remote shards.", role="output")

MICRO_BATCH_HELP = "Most images per rank and forward pass; auto: as many as memory holds, found at start."
DATA_HELP = "Set of images, written by `prepare`."
VAE_HELP = "Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."


def require(value: str | None, *, flag: str, key: str) -> str:
    """Return a path the verb cannot do without.

    Raises:
        ConfigError: It was not given.
    """
    if value is None:
        raise ConfigError(f"{flag} is missing", where=key, hint=f"give {flag}, or set {key} in the config")
    return value
