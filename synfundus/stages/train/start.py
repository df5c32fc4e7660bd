"""The initial weights of a run of `train`: random by the seed, of an exported model, or of a foreign U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from synfundus.artifacts.latent_set import require_same_autoencoder, trained_on
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.config.diffusion import DiffusionConfig, TrainConfig
from synfundus.errors import CheckpointError, ConfigError, ManifestMismatch
from synfundus.labels.schema import LabelSchema, difference
from synfundus.models.unet import ConditionalDenoiser
from synfundus.seeding import derive_key
from synfundus.stages import build
from synfundus.stages.reading import latent_shape_of
from synfundus.stages.starting_weights import DRAWN
from synfundus.stages.train.drawn import load_drawn
from synfundus.stages.train.foreign_unet import announce, find_foreign_unet, open_foreign_unet
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        denoiser: The network.
        identity: Its part of the run's identity, which must not change at a resume.
        report: Which weights were given, and how foreign ones were adapted; None where there are none.
        judged_on: What the validation figures of the run are of.
    """

    denoiser: ConditionalDenoiser
    identity: dict[str, Any]
    report: dict[str, Any] | None = None
    judged_on: str = ""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the given weights; empty where there are none."""
        return str((self.report or {}).get("fingerprint", ""))

    def known(self, latents: ShardSet, *, flip: bool) -> dict[str, Any]:
        """Return the figures of a model card that do not depend on the training but for its ``flip``."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.denoiser.parameters()),
            "training_images": latents.num_samples("train"),
            "judged_on": self.judged_on,
            "photographs": trained_on(latents, flip=flip),
            **({"started_from": self.fingerprint} if self.fingerprint else {}),
        }


def identity_of(section: TrainConfig, latents: ShardSet, own: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return the identity of a run; ``own`` is the part of its start."""
    return {"seed": seed, "latents": latents.identity, **section.identity_document(), **own}


def initial_denoiser(section: TrainConfig, latents: ShardSet, console: Console, *, seed: int) -> Start:
    """Return the initial network of a run, the same on every rank and at every start.

    Raises:
        CheckpointError: There is no model to start from, or it is unreadable.
        ConfigError: Another network than the configured one, or one that cannot be adapted.
        ManifestMismatch: An exported model of other latents or labels.
    """
    init_from = section.init_from
    identity: dict[str, Any] = {"init_from": init_from, "unet": section.unet.model_dump(mode="json")}
    if not init_from:
        return Start(_fresh(section, latents, seed=seed), identity)
    if init_from == DRAWN:
        fresh = _fresh(section, latents, seed=seed)
        given = load_drawn(fresh, section.unet, latents, console)
        _warn_of_objective(objective_differences(given, section.diffusion), init_from, console)
        return Start(fresh, identity, {"source": init_from, "fingerprint": given.fingerprint})
    folder, is_foreign = find_start(init_from)
    if is_foreign:
        return _foreign(section, latents, folder, console, seed=seed)
    given = load_pipeline(folder, device=torch.device("cpu"))
    require_same_latents(
        latents,
        autoencoder=given.autoencoder_fingerprint,
        latent_shape=given.latent_shape,
        schema=given.label_schema,
        where=folder,
    )
    scales = scale_differences(given, section.diffusion, latents)
    _warn_of_objective([*objective_differences(given, section.diffusion), *scales], init_from, console)
    fresh = _fresh(section, latents, seed=seed)
    try:
        fresh.load_state_dict(given.denoiser.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"train.init_from holds another network: {str(error).splitlines()[-1].strip()}",
            where=init_from,
            hint="configure the same unet section",
        ) from error
    console.message(f"starts from the weights of model {given.fingerprint[:12]} in {given.folder}")
    return Start(fresh, identity, {"source": init_from, "fingerprint": given.fingerprint})


def find_start(init_from: str) -> tuple[str, bool]:
    """Return the folder of the model to start from, and whether it is a foreign U-Net.

    Raises:
        CheckpointError: There is none.
    """
    if not _is_ours(init_from):
        if (folder := find_foreign_unet(init_from)) is not None:
            return folder, True
        if filesystem.is_dir(init_from):
            raise CheckpointError(
                "no model here to start from",
                where=init_from,
                hint="give a run of `synfundus train`, its export, or a folder of a diffusers U-Net (config.json and "
                "safetensors, also below unet/)",
            )
    return find_pipeline(init_from), False


def _fresh(section: TrainConfig, latents: ShardSet, *, seed: int) -> ConditionalDenoiser:
    return build.denoiser(section.unet, seed=seed, schema=latents.label_schema, latent_shape=latent_shape_of(latents))


def _is_ours(location: str) -> bool:
    """Whether a location holds a model or run of synfundus, complete or not: those are opened as such or refused."""
    names = {"synfundus.json", "export", "checkpoints", "run.json"}
    return any(filesystem.exists(filesystem.join(location, name)) for name in names)


def _foreign(section: TrainConfig, latents: ShardSet, folder: str, console: Console, *, seed: int) -> Start:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "denoiser") % 2**63)
        start = open_foreign_unet(
            folder, schema=latents.label_schema, latent_shape=latent_shape_of(latents), dropout=section.unet.dropout
        )
    announce(start, folder, section.diffusion, console)
    identity = {"init_from": section.init_from, "init_fingerprint": start.fingerprint, "unet": start.architecture}
    report = {
        "source": section.init_from,
        "fingerprint": start.fingerprint,
        "architecture": start.architecture,
        "scheduler": start.scheduler,
        **asdict(start.adaptation),
    }
    return Start(start.denoiser, identity, report)


_MOST_RESCALED = 1.1
"""Channels whose scale differs by more are told."""


def _warn_of_objective(differences: Sequence[str], init_from: str, console: Console) -> None:
    if differences:
        console.warning(
            f"the model in {init_from} was trained with another objective than this run: {'; '.join(differences)}; "
            "it has to learn that anew"
        )


def objective_differences(given: Model, section: DiffusionConfig) -> list[str]:
    """List how the objective of a model to start from differs from the run's, what is predicted first."""
    theirs, ours = given.schedule_settings, build.schedule_settings(section)
    keys = ["prediction_type", *(key for key in ours if key in theirs and key != "prediction_type")]
    return [f"{key} {theirs[key]!r} there, {ours[key]!r} here" for key in keys if theirs[key] != ours[key]]


def scale_differences(given: Model, section: DiffusionConfig, latents: ShardSet) -> list[str]:
    """Say how the scale of a model's latents differs from the run's; a list of one, or of none."""
    _, std = build.latent_statistics(section, latents.properties)
    ratios = [mine / other for mine, other in zip(std, given.latent_std, strict=True)]
    if max(*ratios, *(1 / ratio for ratio in ratios)) <= _MOST_RESCALED:
        return []
    scales = (", ".join(f"{value:.3g}" for value in values) for values in (given.latent_std, std))
    return ["latents are divided by {} there, {} here".format(*scales)]


def require_same_latents(
    latents: ShardSet, *, autoencoder: str, latent_shape: tuple[int, int, int], schema: LabelSchema, where: str
) -> None:
    """Check that a model to start from was trained on latents of this kind.

    Args:
        latents: What the run trains on.
        autoencoder: Fingerprint of the model's autoencoder.
        latent_shape: ``(c, lh, lw)`` of the model.
        schema: Its labels.
        where: Its folder.

    Raises:
        ManifestMismatch: Another autoencoder, size or label schema; names both sides.
    """
    require_same_autoencoder(latents, autoencoder, where=where)
    if latent_shape != latent_shape_of(latents):
        raise ManifestMismatch(
            f"the model to start from takes latents of {latent_shape}, those in {latents.url} are "
            f"{latent_shape_of(latents)}",
            where=where,
        )
    if changed := difference(schema, latents.label_schema):
        raise ManifestMismatch(
            f"the model to start from has other labels than the latents in {latents.url}: {changed}", where=where
        )
