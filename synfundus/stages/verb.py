"""The description of a verb: its options, its checks, what it adds to a dry run.

Each folder of `synfundus.stages` has a ``verb.py`` with ``VERB`` and a ``job.py`` with ``run``. Options repeat
their help text because reading it from the schema would import pydantic, which is too slow for `--help`; a test
compares every path with the schema.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
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
        path: Dotted path of the value it sets; empty for options of the command line itself.
        help: One line.
        kind: How it is written.
        required: The verb needs a value at this path, from any source.
        holds: What must be in an input; a dry run opens it.
        proof: Documents of which one must be in an output that is not empty; a dry run looks for them.
        names: What it takes besides paths: things that come with the package.
        metavar: What it takes, where neither its role nor the schema says it.
        role: ``input`` must exist, ``output`` must not be a file; ``run`` is an output that is a run, which can be
            resumed.
    """

    flag: str
    path: str
    help: str
    kind: OptionKind = "value"
    required: bool = False
    role: PathRole = ""
    holds: Literal["images", "latents", "autoencoder", "model", "run", ""] = ""
    proof: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    metavar: str = ""

    @property
    def name(self) -> str:
        """Return the Python name: ``image_size``."""
        name = self.flag.removeprefix("--").replace("-", "_")
        return f"{name}_" if iskeyword(name) else name


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: As typed.
        help: First line of its help.
        order: Position in the help, which follows the life of an image.
        example: A command line for the help.
        options: Its own options.
        sections: Top-level keys of the configuration it uses.
        distributed: Whether it runs as ranks of a job with a process group.
        one_process: Whether its process group has one rank, even if a shared file asks for more processes.
        host_only: Whether it always computes on the CPU; with one rank it needs no process group.
        script: Its batch script; empty where it runs in no job. It runs on several nodes if it has `NODES`, too.
        trains: Section of its training; None when it does not train.
        default_preset: Preset when the user names none.
        results_on_stdout: Whether its messages are its result.
        problems: Returns problems of its own section that the schema cannot find; looks at the disk too if the second
            argument is true.
        dry_run: Opens what its options do not describe, and returns what a dry run shows of it, from its own section
            and the seed; raises what the run would raise.
        rehearse: The same of the whole configuration, for a verb that uses more than its own section.
        compare: Refuses an output folder that was begun for something else, from its own section and the seed; called
            by a dry run for a folder with one of the documents of `Option.proof`.
        closing: What is said at the end: what was written, and the next command, with values of its section and of its
            summary in braces, ``{recipe}`` where that command takes the same preset and file, and words in capitals for
            the user to fill in.
        unfit: What is said instead, of a result with which no next command makes sense; empty for any other. From the
            summary.
    """

    name: str
    help: str
    order: int
    example: str = ""
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
    rehearse: Callable[[Any], str] | None = None
    compare: Callable[[Any, int], None] | None = None
    closing: tuple[str, ...] = ()
    unfit: Callable[[Mapping[str, Any]], str] | None = None

    @property
    def key(self) -> str:
        """Return the name of its folder in `synfundus.stages` and of its own section: ``train_vae``."""
        return self.name.replace("-", "_")

    @property
    def resumes(self) -> bool:
        """Whether a stopped one is started again to resume; not one that only looks."""
        return any(option.required and option.role in ("output", "run") for option in self.options)


DEVICE = Option("--device", "launch.device", "Where to compute; auto: CUDA if there is one.")
PROCS = Option("--procs-per-node", "launch.procs_per_node", "Processes per node; default: one per GPU, or 1.")
NODES = Option("--nodes", "launch.nodes", "Number of nodes; above 1, SLURM is used.")
SUBMIT = Option("--submit", "launch.submit", "Run as a batch job of SLURM, also on one node.", "flag")
DISTRIBUTED = (NODES, PROCS, SUBMIT, DEVICE)
CACHE = Option("--cache-dir", "storage.cache_dir", "Local folder for copies of remote shards.", role="output")

MICRO_BATCH_HELP = "Maximum images per rank and forward pass; auto: as many as fit, measured at start."
DATA_HELP = "Image set (written by `prepare`)."
VAE_HELP = "Run of `train-vae`, or a folder of a diffusers AutoencoderKL or AutoencoderDC."


FEW_PATIENTS = 5


def few_patients(num_patients: object, *, num_samples: int) -> list[str]:
    """Return a warning for each held-out split with so few patients that figures on it say little.

    Args:
        num_patients: Number of patients by split; anything else is of no split.
        num_samples: Number of photographs; without a patient column each counts as a patient.
    """
    if not isinstance(num_patients, Mapping):
        return []
    kind = "patient" if sum(num_patients.values()) < num_samples else "photograph"
    return [
        f"{split} has {number} {kind}{'' if number == 1 else 's'}: figures on it say little"
        for split, number in num_patients.items()
        if split != "train" and 0 < number < FEW_PATIENTS
    ]


def closing_lines(verb: Verb, section: object, summary: Mapping[str, Any], *, recipe: Sequence[str] = ()) -> list[str]:
    """Return what is said at the end of a verb, as a shell reads it; ``recipe`` are its preset and file."""

    def written(value: object) -> str:
        if isinstance(value, Mapping) and all(isinstance(number, int) for number in value.values()):
            return ", ".join(f"{name} {number:,}" for name, number in value.items())
        return shlex.quote(str(value))

    values = {name: written(value) for name, value in {**vars(section), **summary}.items()}
    values["recipe"] = "".join(f" {shlex.quote(word)}" for word in recipe)
    lines = [
        f"warning: {line}"
        for line in few_patients(summary.get("num_patients"), num_samples=summary.get("num_samples", 0))
    ]
    if verb.unfit and (said := verb.unfit(summary)):
        return [*lines, said]
    return [*lines, *(line.format_map(values) for line in verb.closing)]


def require(value: str | None, *, flag: str, key: str) -> str:
    """Return a required path.

    Raises:
        ConfigError: It is missing.
    """
    if value is None:
        raise ConfigError(f"{flag} is missing", where=key, hint=f"give {flag}, or set {key} in the config")
    return value
