"""`synfundus ema`: a weight average of any length, built from the snapshots of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from synfundus.artifacts.checkpoint_model import has_only_checkpoints, load_checkpoint_model
from synfundus.artifacts.ema_snapshots import FOLDER_NAME, Snapshot, find_snapshots, read_snapshot
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_export import check_out, resave_pipeline
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline, run_identity
from synfundus.config.generation import PostHocEmaConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import CheckpointError, ConfigError
from synfundus.models.weight_files import replace_weights
from synfundus.stages import Summary
from synfundus.stages.rehearsal import require_run
from synfundus.stages.verb import require
from synfundus.storage import filesystem
from synfundus.storage.writer_lock import write_alone
from synfundus.telemetry.console import Console
from synfundus.training.ema import Combination, Profile, combine

WORTH_A_WARNING = 0.1
"""Maximum relative distance between the reached and the requested profile, before a warning."""


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Build an average and write it as a model. One process.

    Returns:
        ``out``, ``fingerprint``, ``sigma_rel``, ``images_seen``, ``snapshots``, ``profile_error``.

    Raises:
        CheckpointError: No snapshots, damaged ones, or those of another network.
        ConfigError: A time the run has not reached, or an output folder with something else.
    """
    del world
    section = config.ema
    run_url, out, snapshots, wanted = _plan(section)
    write_alone(out)
    identity = run_identity(run_url)
    check_out(out, run=identity, training=_told(wanted))  # another writer may have been here meanwhile
    combination = combine([snapshot.profile for snapshot in snapshots], wanted)
    if combination.error > WORTH_A_WARNING:
        console.warning(
            f"with these {len(snapshots)} snapshots the average is {combination.error:.0%} away from the requested "
            "one; more snapshots, or widths on both sides of it, come closer"
        )
    pipeline = _run_model(run_url, console)
    weights = _weighted_sum(snapshots, combination, console)
    replace_weights(pipeline.denoiser, weights, where=filesystem.join(run_url, FOLDER_NAME))
    told = {**_told(wanted), "ema_profile_error": combination.error, "ema_snapshots": len(snapshots)}
    told = {**pipeline.training_summary, **told, "validation_loss": None}
    fingerprint = resave_pipeline(out, replace(pipeline, training_summary=told), run=identity)
    console.message(
        f"average of width {wanted.sigma_rel:g} at {wanted.images_seen:,} images from {len(snapshots)} snapshots, "
        f"{combination.error:.1%} from the ideal profile: {out}"
    )
    return {
        "out": out,
        "fingerprint": fingerprint,
        "sigma_rel": wanted.sigma_rel,
        "images_seen": wanted.images_seen,
        "snapshots": len(snapshots),
        "profile_error": combination.error,
    }


def _plan(section: PostHocEmaConfig) -> tuple[str, str, list[Snapshot], Profile]:
    """Return the run, the folder to write, the snapshots, and the average they are to give."""
    run_url = require(section.run_dir, flag="--run-dir", key="ema.run_dir")
    if section.sigma_rel is None:
        raise ConfigError("--sigma-rel is missing (ema.sigma_rel)", hint="for example --sigma-rel 0.10")
    require_run(run_url)
    snapshots = find_snapshots(run_url)
    wanted = _wanted(snapshots, section.sigma_rel, section.at_images)
    name = f"sigma-rel-{wanted.sigma_rel:.4f}-images-{wanted.images_seen:012d}"
    out = section.out or filesystem.join(run_url, f"export-{name}")
    check_out(out, run=run_identity(run_url), training=_told(wanted))
    return run_url, out, snapshots, wanted


def _told(wanted: Profile) -> dict[str, Any]:
    """Return what tells an average from the other models of its run."""
    return {"images_seen": wanted.images_seen, "ema_sigma_rel": wanted.sigma_rel, "weights": "averaged"}


def rehearse(section: PostHocEmaConfig) -> str:
    """Describe the average that would be built, with the errors of the run; writes nothing."""
    _, out, snapshots, wanted = _plan(section)
    return f"# average\nat {wanted.images_seen:,} images from {len(snapshots)} snapshots: {out}\n\n"


def _run_model(run_url: str, console: Console) -> Model:
    """Return the run's model, whose weights will be replaced: the export, or else that of a checkpoint."""
    if has_only_checkpoints(run_url):
        return load_checkpoint_model(run_url, name=None, weights="raw", console=console)
    return load_pipeline(find_pipeline(run_url), device=torch.device("cpu"))


def _wanted(snapshots: list[Snapshot], sigma_rel: float, at_images: int | None) -> Profile:
    last = snapshots[-1].profile.images_seen
    if at_images is not None and at_images > last:
        raise ConfigError(
            f"the last snapshot is of {last:,} images; an average at {at_images:,} is not possible",
            where="ema.at_images",
        )
    return Profile(at_images or last, sigma_rel)


def _weighted_sum(snapshots: list[Snapshot], combination: Combination, console: Console) -> dict[str, Tensor]:
    """Add up the snapshots in float64, with one in memory at a time."""
    total: dict[str, Tensor] = {}
    with console.progress("reading snapshots", total=len(snapshots), unit="files") as bar:
        for snapshot, factor in zip(snapshots, combination.factors, strict=True):
            weights = read_snapshot(snapshot)
            if total and {name: tensor.shape for name, tensor in weights.items()} != {
                name: tensor.shape for name, tensor in total.items()
            }:
                raise CheckpointError("this snapshot is of another network than the first", where=snapshot.url)
            for name, tensor in weights.items():
                share = tensor.double() * float(factor)
                total[name] = total[name].add_(share) if name in total else share
            bar.advance()
    return {name: tensor.float() for name, tensor in total.items()}
