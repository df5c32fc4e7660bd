"""`synfundus export`: copy a trained model out of its run, checked part by part, or make one of a checkpoint."""

from __future__ import annotations

import torch

from synfundus.artifacts.checkpoint_model import has_only_checkpoints, load_checkpoint_model, newest_images
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import DOCUMENT_NAME, find_pipeline, load_pipeline, resave_pipeline
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.stages import Summary, build
from synfundus.storage import filesystem
from synfundus.storage.local_folder import UNFINISHED_NAME
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
    run_url = build.require(config.export.run_dir, flag="--run-dir", key="export.run_dir")
    out = build.require(config.export.out, flag="--out", key="export.out")
    names = filesystem.list_names(out)
    if names and not {DOCUMENT_NAME, UNFINISHED_NAME} & set(names):
        raise ConfigError("the folder holds something else", where=out, hint="give another --out")
    pipeline = _model(config, run_url, console)
    fingerprint = pipeline.fingerprint
    if _place(out) != _place(pipeline.folder):
        fingerprint = resave_pipeline(out, pipeline)
        console.message(f"model {fingerprint[:12]} written to {out}")
    return {
        "out": out,
        "fingerprint": fingerprint,
        "autoencoder_fingerprint": pipeline.autoencoder_fingerprint,
        "image_size_px": pipeline.image_size_px,
    }


def _model(config: RunConfig, run_url: str, console: Console) -> Model:
    """Return the finished model of a run, or that of a checkpoint where one is asked for or the run has not ended."""
    wanted = config.export
    if wanted.checkpoint is None and wanted.weights == "averaged" and not has_only_checkpoints(run_url):
        pipeline = load_pipeline(find_pipeline(run_url), device=torch.device("cpu"))
        newest = newest_images(run_url)
        if newest > int(pipeline.training_summary.get("images_seen") or 0):
            console.warning(
                f"the run has gone on since this model was exported, to {newest:,} images: see --checkpoint"
            )
        return pipeline
    return load_checkpoint_model(run_url, name=wanted.checkpoint, weights=wanted.weights, console=console)


def _place(url: str) -> str:
    """Return a location in the one way it can be compared."""
    return str(filesystem.local_path(url).resolve()) if filesystem.is_local(url) else url.rstrip("/")
