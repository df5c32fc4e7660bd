"""`synfundus export`: copy a trained model out of its run, checked part by part."""

from __future__ import annotations

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World, torch_device
from synfundus.errors import ConfigError
from synfundus.jobs import Summary, build
from synfundus.jobs.local_folder import UNFINISHED_NAME
from synfundus.jobs.pipeline_folder import DOCUMENT_NAME, find_pipeline, load_pipeline, resave_pipeline
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write the model of a run (``train.run_dir``) to a folder of its own (``sample.out``); rank 0 works.

    Returns:
        ``out``, ``fingerprint``, ``autoencoder_fingerprint``, ``image_size_px``.

    Raises:
        CheckpointError: The run has no model.
        ConfigError: The output folder holds something else.
    """
    source = find_pipeline(build.require(config.train.run_dir, flag="--run-dir", key="train.run_dir"))
    out = build.require(config.sample.out, flag="--out", key="sample.out")
    names = filesystem.list_names(out)
    if names and not {DOCUMENT_NAME, UNFINISHED_NAME} & set(names):
        raise ConfigError("the folder holds something else", where=out, hint="give another --out")
    pipeline = load_pipeline(source, device=torch_device(world))
    if world.rank == 0 and _place(out) != _place(source):
        resave_pipeline(out, pipeline)
        console.message(f"model {pipeline.fingerprint[:12]} written to {out}")
    world.barrier()
    return {
        "out": out,
        "fingerprint": pipeline.fingerprint,
        "autoencoder_fingerprint": pipeline.vae_fingerprint,
        "image_size_px": pipeline.image_size_px,
    }


def _place(url: str) -> str:
    """Return a location in the one way it can be compared."""
    return str(filesystem.local_path(url).resolve()) if filesystem.is_local(url) else url.rstrip("/")
