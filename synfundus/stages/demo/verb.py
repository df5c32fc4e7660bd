"""`synfundus demo` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DEVICE, PROCS, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import DemoConfig


def _problems(section: DemoConfig, look: bool) -> list[str]:
    del look
    if (section.source is None) == (section.labels is None):
        return []
    return ["--source and --labels belong together: photographs and the table that describes them"]


def _dry_run(section: DemoConfig, seed: int) -> str:
    from synfundus.config.photographs import PrepareConfig
    from synfundus.stages.prepare.plan import describe_inputs

    if section.source is None:
        return ""
    inputs = PrepareConfig(source=section.source, labels=section.labels, mapping=section.mapping)
    return describe_inputs(inputs, seed=seed)


VERB = Verb(
    name="demo",
    help="Run the whole chain on phantoms, or on your own photographs, in minutes.",
    order=10,
    example="synfundus demo --out demo-out --minutes 12",
    options=(
        Option(
            "--out",
            "demo.out",
            "Folder for all results of the demo.",
            required=True,
            role="output",
            proof=("stages/request.json",),
        ),
        Option("--minutes", "demo.minutes", "Approximate time on two idle cores."),
        Option("--source", "demo.source", "Folder of your own photographs instead of phantoms.", role="input"),
        Option("--labels", "demo.labels", "Label table of these photographs.", role="input"),
        Option("--mapping", "demo.mapping", "Mapping YAML of this table.", role="input"),
        PROCS,
        DEVICE,
    ),
    sections=(
        *("seed", "demo", "phantoms", "prepare", "train_vae", "encode_latents", "train", "sample"),
        *("launch", "telemetry"),
    ),
    distributed=True,
    trains="train",
    default_preset="demo-cpu",
    problems=_problems,
    dry_run=_dry_run,
)
