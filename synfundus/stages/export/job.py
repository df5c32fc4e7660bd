"""`synfundus export`: copy a trained model out of its run, checked part by part, or export that of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from synfundus.artifacts.checkpoint_model import (
    has_only_checkpoints,
    load_checkpoint_model,
    newest_images,
    require_checkpoint,
)
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import (
    check_out,
    find_pipeline,
    load_pipeline,
    named_model,
    resave_pipeline,
    run_identity,
)
from synfundus.config.generation import ExportConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.stages import Summary
from synfundus.stages.verb import require
from synfundus.storage.locations import resolved
from synfundus.storage.writer_lock import write_alone
from synfundus.telemetry.console import Console


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write the model of a run (``export.run_dir``) to a folder (``export.out``). One process.

    Returns:
        ``out``, ``fingerprint``, ``autoencoder_fingerprint``, ``image_size_px``.

    Raises:
        CheckpointError: The run has no model, or no such checkpoint.
        ConfigError: The output folder holds something else.
    """
    del world
    run_url = require(config.export.run_dir, flag="--run-dir", key="export.run_dir")
    out = require(config.export.out, flag="--out", key="export.out")
    finished = _finished(config.export, run_url)
    is_there = finished is not None and resolved(finished) == resolved(out)
    if not is_there:
        _check_out(config.export, run_url, finished)
        write_alone(out)
    pipeline = _model(config.export, run_url, finished, console)
    fingerprint = pipeline.fingerprint
    if not is_there:
        run = run_identity(run_url)
        # of another checkpoint than the newest, if that is damaged; and another writer may have been here meanwhile
        check_out(out, run=run, fingerprint=fingerprint, training=pipeline.training_summary)
        fingerprint = resave_pipeline(out, pipeline, run=run)
        console.message(f"model {fingerprint[:12]} written to {out}")
    return {
        "out": out,
        "fingerprint": fingerprint,
        "autoencoder_fingerprint": pipeline.autoencoder_fingerprint,
        "image_size_px": pipeline.image_size_px,
    }


def rehearse(section: ExportConfig) -> str:
    """Describe what would be exported, with the errors of the run; writes nothing."""
    run_url, out = str(section.run_dir), str(section.out)
    finished = _finished(section, run_url)
    if finished is None or resolved(finished) != resolved(out):
        _check_out(section, run_url, finished)
    what = finished or f"{section.weights} weights of {section.checkpoint or 'the newest checkpoint'} of {run_url}"
    return f"# model\n{what}\n\n"


def _check_out(section: ExportConfig, run_url: str, finished: str | None) -> None:
    """Check the output folder before the work.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: It holds something else than this model.
    """
    if finished is None:
        require_checkpoint(run_url, section.checkpoint)
        name = section.checkpoint
        images = newest_images(run_url) if name is None else int(name.removeprefix("images-"))
        model: tuple[str, Mapping[str, Any]] = "", {"images_seen": images, "weights": section.weights}
    else:
        model = named_model(finished)
    check_out(str(section.out), run=run_identity(run_url), fingerprint=model[0], training=model[1])


def _finished(section: ExportConfig, run_url: str) -> str | None:
    """Return the folder of a run's finished model; None when a checkpoint is to be exported."""
    if section.checkpoint is not None or section.weights != "averaged" or has_only_checkpoints(run_url):
        return None
    return find_pipeline(run_url)


def _model(section: ExportConfig, run_url: str, finished: str | None, console: Console) -> Model:
    if finished is None:
        return load_checkpoint_model(run_url, name=section.checkpoint, weights=section.weights, console=console)
    pipeline = load_pipeline(finished, device=torch.device("cpu"))
    newest = newest_images(run_url)
    if newest > int(pipeline.training_summary.get("images_seen") or 0):
        console.warning(f"the run was trained further after this export, to {newest:,} images: see --checkpoint")
    return pipeline
