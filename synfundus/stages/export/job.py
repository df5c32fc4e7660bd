"""`synfundus export`: copy a trained model out of its run, checked part by part, or export that of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from synfundus.artifacts.cards.model_card import JUDGED_NAME
from synfundus.artifacts.checkpoint_model import (
    has_only_checkpoints,
    load_checkpoint_model,
    newest_images,
    require_checkpoint,
)
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_export import check_out, resave_pipeline
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline, named_model, run_identity
from synfundus.config.generation import ExportConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.stages import Summary
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
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
        told = pipeline.training_summary | judged_control(run_url, pipeline.fingerprint)
        preview = newest_preview(run_url, int(told.get("images_seen") or 0))
        fingerprint = resave_pipeline(out, replace(pipeline, training_summary=told), run=run, preview=preview)
        console.message(f"model {fingerprint[:12]} written to {out}")
    return {
        "out": out,
        "fingerprint": fingerprint,
        "autoencoder_fingerprint": pipeline.autoencoder_fingerprint,
        "image_size_px": pipeline.image_size_px,
    }


def newest_preview(run_url: str, images_seen: int) -> bytes:
    """Return the last preview that a run drew up to a place, PNG; empty where there is none."""
    folder = filesystem.join(run_url, "previews")
    drawn = [name for name in filesystem.list_names(folder) if "images-" <= name <= f"images-{images_seen:012d}.png"]
    return filesystem.read_bytes(filesystem.join(folder, max(drawn))) if drawn else b""


def judged_control(run_url: str, fingerprint: str) -> dict[str, Any]:
    """Return ``label_control`` as `judge` measured it of this very model, in `JUDGED_NAME` of its run; else nothing.

    Raises:
        DataError: What `judge` wrote is damaged.
    """
    report, made = (filesystem.join(run_url, JUDGED_NAME, name) for name in ("judge.json", "samples/PROVENANCE.json"))
    if not (filesystem.exists(report) and filesystem.exists(made)):
        return {}
    if documents.read_object(made).get("model_fingerprint") != fingerprint:
        return {}
    control = documents.read_document(report, format_name="synfundus-judge", version=1)["label_control"]
    if control["generated"] is None:
        return {"label_control": "withheld: the generated images do not look like fundus photographs"}
    told = {}
    for label, figures in control["generated"]["labels"].items():
        others = control["real"]["labels"][label]
        measure = next((name for name in ("kappa", "auc", "accuracy") if None not in (figures[name], others[name])), "")
        if measure:
            values = {"generated": figures[measure], "photographs": others[measure]}
            told[label] = {"measure": measure.replace("auc", "AUC"), **values}
    return {"label_control": told}


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
