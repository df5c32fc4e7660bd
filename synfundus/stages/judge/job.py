"""`synfundus judge`: label control of a model or of a folder of samples.

A judge is trained on the photographs of an image set, and its predictions on generated images are compared with what
they were asked for; the same figures on held-out photographs tell what the judge can see at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.claim import Claim
from synfundus.artifacts.model_folder import DOCUMENT_NAME, find_pipeline
from synfundus.artifacts.run_folder import versions
from synfundus.artifacts.sample_set import TABLE_NAMES, requested_labels
from synfundus.config.generation import JudgeConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.errors import ConfigError, DataError
from synfundus.evaluation.label_control import control_rows
from synfundus.labels.plan import label_table
from synfundus.labels.schema import LabelSchema
from synfundus.shards.reader import decode_image
from synfundus.stages import Summary
from synfundus.stages.judging import (
    TRAIN_SPLIT,
    LabelledImages,
    held_out_splits,
    judge_label_control,
    read_images,
    read_states,
    reconstruct,
    show_label_control,
)
from synfundus.stages.sample import job as sample
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME, ShardSet, load_shard_set
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
    request = {"seed": config.seed, "image_set_identity": data.identity, **section.model_dump(exclude={"out", "data"})}
    if section.samples is not None:
        read_samples(section.samples, data.label_schema)  # refuse before the folder is claimed
    on_rank_0(lambda: _CLAIM.make(out, request), world)
    if section.model is not None:
        asked = _write_label_plan(section, config.seed, data, names, world)
        sample.run(config.model_copy(update={"sample": config.sample.model_copy(update=asked)}), world, console)
    device, at_the_end = torch_device(world), without_timeout(world)
    return on_rank_0(lambda: _judge(section, config.seed, data, request, device, console), at_the_end)


def _shared_labels(model: str, data: ShardSet) -> tuple[str, ...]:
    """Return the labels that a model and an image set both have.

    Raises:
        CheckpointError: There is no model.
        ConfigError: They have no label in common.
    """
    url = filesystem.join(find_pipeline(model), DOCUMENT_NAME)
    find_autoencoder(find_pipeline(model))
    schema = LabelSchema.from_document(documents.read_object(url).get("label_schema"), where=url)
    names = tuple(name for name in data.label_schema.names if name in schema.names)
    if not names:
        message = f"the model has labels {', '.join(schema.names)}, the set {', '.join(data.label_schema.names)}"
        raise ConfigError(message, where=url, hint="give the --data the model was trained with")
    return names


def _write_label_plan(
    section: JudgeConfig, seed: int, data: ShardSet, names: Sequence[str], world: World
) -> dict[str, Any]:
    """Write label rows of held-out photographs; returns what `sample` is asked for with them. Collective."""
    plan = filesystem.join(str(section.out), LABEL_PLAN_NAME)

    def write() -> None:
        if not filesystem.exists(plan):
            states = read_states(data, splits=held_out_splits(data))
            rows = control_rows(states, data.label_schema, count=section.num_images, seed=seed)
            filesystem.write_bytes(plan, label_table(rows, names))

    on_rank_0(write, world)
    wanted: dict[str, Any] = {"model": section.model, "out": filesystem.join(str(section.out), SAMPLES_DIR)}
    return {**wanted, "labels": plan, "num_images": None, "label": {}, "format": "png"}


def _judge(
    section: JudgeConfig, seed: int, data: ShardSet, request: dict[str, Any], device: torch.device, console: Console
) -> Summary:
    splits = held_out_splits(data)
    if splits == (TRAIN_SPLIT,):
        console.warning("the set holds no patient out: figures on real photographs are of those the judge learned from")
    train, held_out = read_images(data, splits=(TRAIN_SPLIT,)), read_images(data, splits=splits)
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
    url = filesystem.join(str(section.out), REPORT_NAME)
    documents.write_document(url, document, format_name=_FORMAT, version=_VERSION)
    show_label_control(control, console, num_generated=len(generated))
    console.message(f"figures: {url}")
    return document


def read_samples(folder: str, schema: LabelSchema) -> LabelledImages:
    """Read generated images and what they were asked for: a folder of PNG files, or a shard set.

    Raises:
        ConfigError: There are no samples, or they have labels the schema does not have.
        DataError: A row without a file, or images of different sizes.
    """
    if filesystem.exists(filesystem.join(folder, MANIFEST_NAME)):
        return read_images(load_shard_set(folder, kind="samples"), splits=(TRAIN_SPLIT,))
    requested = requested_labels(folder)
    if requested is None:
        hint = f"give a complete folder written by `sample`, with {TABLE_NAMES[0]}"
        raise ConfigError("there are no samples", where=folder, hint=hint)
    if not requested or not all(name for name, _ in requested):
        raise DataError("the table of samples has no rows, or one without a file", where=folder)
    images, states = [], []
    for name, row in requested:
        images.append(decode_image(filesystem.read_bytes(filesystem.join(folder, name)), where=name))
        states.append(schema.encode({label: schema.check_value(label, text or None) for label, text in row.items()}))
    if len({image.shape for image in images}) > 1:
        raise DataError("the images are of different sizes", where=folder)
    return LabelledImages(np.stack(images), np.array(states, dtype=np.int64))
