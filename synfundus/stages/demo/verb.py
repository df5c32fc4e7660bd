"""`synfundus demo` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synfundus.stages.verb import DEVICE, PROCS, SUBMIT, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import DemoConfig
    from synfundus.config.schema import RunConfig

_CLAIM = "stages/request.json"


def _problems(section: DemoConfig, look: bool) -> list[str]:
    del look
    if section.source is None:
        given = [f"--{name}" for name in ("labels", "mapping", "importer") if getattr(section, name) is not None]
        return [f"--source and {name} belong together: photographs and what describes them" for name in given]
    if section.importer is not None and section.mapping is not None:
        return ["--importer and --mapping both define the columns: remove one of them"]
    if section.labels is None and section.importer is None:
        return ["--source and --labels belong together: photographs and the table that describes them (or --importer)"]
    return []


def look_at_photographs(document: dict[str, Any]) -> str:
    """Describe the user's own photographs and their table, without reading a photograph; empty for phantoms.

    Args:
        document: The whole configuration; its stages are placed in it.

    Raises:
        SynfundusError: As `prepare`, in seconds.
    """
    from synfundus.config.photographs import PrepareConfig
    from synfundus.stages.demo.plan import place_stages
    from synfundus.stages.prepare.verb import rehearse_prepare

    if document["demo"]["source"] is None:
        return ""
    place_stages(document)
    return rehearse_prepare(PrepareConfig.model_validate(document["prepare"]), document["seed"])


def _rehearse(config: RunConfig) -> str:
    from synfundus.storage import filesystem

    if config.train.diffusion.prediction_type == "flow_velocity":
        from synfundus.stages import build

        build.check_sampler(build.sampler_settings(config.sample).sampler, config.train.diffusion)
    if filesystem.exists(filesystem.join(str(config.demo.out), _CLAIM)):
        from synfundus.stages.demo.job import compare_claim

        compare_claim(config)
    return look_at_photographs(config.model_dump())


def _unfit(summary: Mapping[str, Any]) -> str:
    if not summary.get("label_control_withheld"):
        return ""
    return (
        "the chain has run, but its model draws no fundus photographs: nothing can be done with its samples; "
        "repeat it with more --minutes and another --out"
    )


VERB = Verb(
    name="demo",
    help="Run the whole chain on phantoms, or on your own photographs, in minutes.",
    order=10,
    example="synfundus demo --out demo-out --minutes 12",
    options=(
        Option(
            "--out", "demo.out", "Folder for all results of the demo.", required=True, role="output", proof=(_CLAIM,)
        ),
        Option("--minutes", "demo.minutes", "Approximate time on two idle cores."),
        Option("--source", "demo.source", "Folder of your own photographs instead of phantoms.", role="input"),
        Option("--labels", "demo.labels", "Label table of these photographs; some importers need none.", role="input"),
        Option("--importer", "demo.importer", "Importer for a known data set, e.g. idrid, odir5k, aptos2019."),
        Option("--mapping", "demo.mapping", "Mapping YAML of this table.", role="input"),
        PROCS,
        SUBMIT,
        DEVICE,
    ),
    sections=(
        *("seed", "demo", "phantoms", "prepare", "train_vae", "encode_latents", "train", "sample"),
        *("launch", "telemetry"),
    ),
    distributed=True,
    script="demo.sh",
    trains="train",
    default_preset="demo-cpu",
    problems=_problems,
    rehearse=_rehearse,
    unfit=_unfit,
    closing=("next: synfundus sample --model {out}/model --out SAMPLES --num-images 16",),
)
