"""`synfundus judge`: label control of a model or of a folder of samples.

A judge is trained on the photographs of an image set, and its predictions on generated images are compared with what
they were asked for; the same figures on held-out photographs tell what the judge can see at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.claim import Claim
from synfundus.artifacts.model_folder import DOCUMENT_NAME, find_pipeline
from synfundus.artifacts.run_folder import versions
from synfundus.config.generation import JudgeConfig, SampleConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.errors import ConfigError
from synfundus.evaluation.judge_file import JUDGE_NAME
from synfundus.evaluation.label_control import control_rows
from synfundus.labels.plan import label_table
from synfundus.labels.schema import LabelSchema
from synfundus.stages import Summary
from synfundus.stages.judge.samples import check_samples, read_samples, require_same_meaning
from synfundus.stages.judging import (
    held_out_splits,
    judge_label_control,
    read_photographs,
    read_states,
    reconstruct,
    show_label_control,
)
from synfundus.stages.rehearsal import read_model, require_sampler
from synfundus.stages.sample import job as sample
from synfundus.stages.sample.request import compare_claim
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console

REPORT_NAME = "judge.json"
LABEL_PLAN_NAME = "label-plan.csv"
SAMPLES_DIR = "samples"
_FORMAT = "synfundus-judge"
_VERSION = 1
_CLAIM = Claim("request.json", _FORMAT, _VERSION, others="figures of other images")


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Generate images if asked to, and judge them. Collective; generated images are kept at a restart.

    Returns:
        The content of judge.json.

    Raises:
        ConfigError: Neither a model nor samples; a folder that holds something else.
        DataError: A table of samples that cannot be read.
    """
    section = config.judge
    data = load_shard_set(require(section.data, flag="--data", key="judge.data"), kind="images")
    out = require(section.out, flag="--out", key="judge.out")
    if (section.model is None) == (section.samples is None):
        raise ConfigError("give either --model or --samples", where="judge")
    names = _shared_labels(section.model, data) if section.model is not None else ()
    request = _request(section, config.seed, data)
    if section.samples is not None:
        read_samples(section.samples, data.label_schema)  # refuse before the folder is claimed
    on_rank_0(lambda: _CLAIM.make(out, request), world)
    if section.model is not None:
        _write_label_plan(section, config.seed, data, names, world)
        sample.run(config.model_copy(update={"sample": _asked(section, config.sample)}), world, console)
    device, at_the_end = torch_device(world), without_timeout(world)
    return on_rank_0(lambda: _judge(section, config.seed, data, request, device, console), at_the_end)


def _shared_labels(model: str, data: ShardSet) -> tuple[str, ...]:
    """Return the labels that a model and an image set both have.

    Raises:
        CheckpointError: There is no model.
        ConfigError: They have no label in common, or mean something else by one.
    """
    url = filesystem.join(find_pipeline(model), DOCUMENT_NAME)
    find_autoencoder(find_pipeline(model))
    schema = LabelSchema.from_document(documents.read_object(url).get("label_schema"), where=url)
    names = tuple(name for name in data.label_schema.names if name in schema.names)
    if not names:
        message = f"the model has labels {', '.join(schema.names)}, the set {', '.join(data.label_schema.names)}"
        raise ConfigError(message, where=url, hint="give the --data the model was trained with")
    require_same_meaning(schema, data.label_schema, where=url)
    return names


def rehearse(section: JudgeConfig, settings: SampleConfig, *, seed: int) -> str:
    """Refuse what the run refuses, for a dry run; no image is decoded or generated.

    Raises:
        SynfundusError: As the run.
    """
    data, out = load_shard_set(str(section.data), kind="images"), str(section.out)
    if section.model is None:
        number = check_samples(str(section.samples), data.label_schema)
        text = f"{number:,} images of {section.samples}"
    else:
        names = _shared_labels(section.model, data)
        require_sampler(settings.sampler, read_model(section.model))
        text = f"{section.num_images:,} images of {section.model}, asked for {', '.join(names)}"
    _CLAIM.compare(out, _request(section, seed, data))
    asked = _asked(section, settings)
    if section.model is not None and all(map(filesystem.exists, (str(asked.labels), str(asked.out)))):
        compare_claim(asked, seed)
    return f"# images\n{text}\n\n"


def _request(section: JudgeConfig, seed: int, data: ShardSet) -> dict[str, Any]:
    return {"seed": seed, "image_set_identity": data.identity, **section.model_dump(exclude={"out", "data"})}


def _asked(section: JudgeConfig, settings: SampleConfig) -> SampleConfig:
    """Return what `sample` is asked for: images for the label rows of held-out photographs."""
    out, plan = (filesystem.join(str(section.out), name) for name in (SAMPLES_DIR, LABEL_PLAN_NAME))
    wanted: dict[str, Any] = {
        "model": section.model,
        "out": out,
        "labels": plan,
        "num_images": None,
        "label": {},
        "format": "png",
    }
    return settings.model_copy(update=wanted)


def _write_label_plan(section: JudgeConfig, seed: int, data: ShardSet, names: Sequence[str], world: World) -> None:
    """Write label rows of held-out photographs. Collective."""
    plan = filesystem.join(str(section.out), LABEL_PLAN_NAME)

    def write() -> None:
        if not filesystem.exists(plan):
            states = read_states(data, splits=held_out_splits(data))
            rows = control_rows(states, data.label_schema, count=section.num_images, seed=seed)
            filesystem.write_bytes(plan, label_table(rows, names))

    on_rank_0(write, world)


def _judge(
    section: JudgeConfig, seed: int, data: ShardSet, request: dict[str, Any], device: torch.device, console: Console
) -> Summary:
    train, held_out = read_photographs(data)
    autoencoder = restored = None
    if section.model is not None:
        autoencoder, _ = open_autoencoder(
            find_autoencoder(find_pipeline(section.model)), device=device, dtype=torch.float32
        )
        restored = reconstruct(autoencoder, held_out.pixels, device=device)
    generated = read_samples(section.samples or filesystem.join(str(section.out), SAMPLES_DIR), data.label_schema)
    control = judge_label_control(
        train=train,
        held_out=held_out,
        held_out_restored=restored,
        generated=generated,
        autoencoder=autoencoder,
        schema=data.label_schema,
        seed=seed,
        device=device,
        console=console,
    )
    document = {**request, "num_generated": len(generated), **control.to_document(), "versions": versions()}
    filesystem.write_bytes(filesystem.join(str(section.out), JUDGE_NAME), control.judge_file)
    url = filesystem.join(str(section.out), REPORT_NAME)
    documents.write_document(url, document, format_name=_FORMAT, version=_VERSION)
    show_label_control(control, console, num_generated=len(generated))
    console.message(f"figures: {url}")
    return document
