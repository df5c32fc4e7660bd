"""`synfundus sample` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from synfundus.errors import SynfundusError
from synfundus.stages.verb import DISTRIBUTED, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import SampleConfig
    from synfundus.labels.schema import LabelSchema


def _problems(section: SampleConfig, look: bool) -> list[str]:
    problems = []
    if section.num_images is None and section.labels is None:
        problems.append("--num-images or --labels is missing: how many images?")
    if section.guide_model and any(value is not None for value in section.negative_label.values()):
        problems.append("--guide-model and --negative-label exclude each other: guidance leads away from one thing")
    given = [("--label", section.label), ("--negative-label", section.negative_label)]
    given.append(("--guidance-weight", dict.fromkeys(section.guidance_weight)))
    if not look or section.model is None or "://" in section.model or not any(labels for _, labels in given):
        return problems
    schema = _schema_of(section.model)
    if schema is None:
        return problems
    for flag, name, value in ((flag, *pair) for flag, labels in given for pair in labels.items()):
        try:
            schema.check_value(name, value)
        except SynfundusError as error:
            problems.append("; ".join(filter(None, (f"{flag}: {error.message}", error.hint))))
    return problems


def _schema_of(model: str) -> LabelSchema | None:
    """Return the label schema of a run or model; None where it cannot be read: the job says why."""
    from synfundus.labels.schema import LabelSchema

    for place in ("export/synfundus.json", "synfundus.json"):
        path = Path(model) / place
        try:
            document = json.loads(path.read_bytes())
            return LabelSchema.from_document(document["label_schema"], where=str(path))
        except (OSError, ValueError, KeyError, TypeError, SynfundusError):
            continue
    return None


def _dry_run(section: SampleConfig, seed: int) -> str:
    from synfundus.stages.rehearsal import rehearse_sampling

    del seed
    if section.guide_model:
        from synfundus.stages.rehearsal import read_model
        from synfundus.stages.sample.guide import check_guide, read_guide

        check_guide(read_model(str(section.model)), read_guide(section.guide_model), where=section.guide_model)
    return rehearse_sampling(section)


def _compare(section: SampleConfig, seed: int) -> None:
    from synfundus.stages.sample.request import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="sample",
    help="Generate images for labels.",
    order=410,
    example="synfundus sample --model runs/model --out samples --num-images 16 --label dr_grade=3",
    options=(
        Option(
            "--model",
            "sample.model",
            "Run of `train`, or an exported pipeline.",
            required=True,
            role="input",
            holds="model",
        ),
        Option("--out", "sample.out", "Folder to write.", required=True, role="output", proof=("request.json",)),
        Option("--num-images", "sample.num_images", "Number of images; default with a label plan: one per row."),
        Option("--label", "sample.label", "NAME=VALUE for every image (repeatable); others are unknown.", "mapping"),
        Option("--labels", "sample.labels", "Label plan: a CSV with one row per image.", role="input"),
        Option(
            "--allow-unseen", "sample.allow_unseen", "Also draw labels that no photograph of the training has.", "flag"
        ),
        Option(
            "--sampler",
            "sample.sampler",
            "Solver; a flow takes dpmpp, euler, heun or unipc; default: the model's recommendation.",
        ),
        Option("--num-steps", "sample.num_steps", "Solver steps; default: the model's recommendation."),
        Option(
            "--guidance-scale",
            "sample.guidance_scale",
            "Classifier-free guidance; 1 turns it off; default: the model's recommendation.",
        ),
        Option(
            "--guidance-weight",
            "sample.guidance_weight",
            "NAME=WEIGHT in place of the guidance scale for a label (repeatable).",
            "mapping",
        ),
        Option(
            "--negative-label",
            "sample.negative_label",
            "NAME=VALUE that guidance leads away from (repeatable); others are unknown.",
            "mapping",
        ),
        Option(
            "--guide-model",
            "sample.guide_model",
            "Weaker model to lead away from (autoguidance): RUN@IMAGES, a run's checkpoint, or an exported folder.",
        ),
        Option(
            "--check",
            "sample.check",
            "Look at every image, draw again what fails, name the rest: checks.jsonl.",
            "flag",
        ),
        Option(
            "--judge",
            "sample.judge",
            "With --check: folder written by `judge`; its judge reads the labels.",
            role="input",
        ),
        Option("--format", "sample.format", "PNG files, or a set of shards."),
        Option("--layout", "sample.layout", "How PNG files lie in the folder: images/, or Part0/ to Part19/."),
        *DISTRIBUTED,
    ),
    sections=("seed", "sample", "storage", "launch", "telemetry"),
    distributed=True,
    script="sample.sh",
    problems=_problems,
    dry_run=_dry_run,
    compare=_compare,
    closing=(
        "read {out}/README.md first: labels were asked for, nobody has looked; all images: {out}/contact-sheet.html",
        "next: synfundus inspect --data {out}",
    ),
)
