"""`synfundus train`: the conditional latent-diffusion U-Net under ZeRO-2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.checkpoint_model import model_parts, save_setup
from synfundus.artifacts.latent_set import (
    LatentSets,
    keeps_patients_apart,
    load_sources,
    open_latent_sets,
    require_same_autoencoder,
)
from synfundus.artifacts.model import ModelSetup
from synfundus.artifacts.model_export import save_pipeline
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.auto import definite_channels_last
from synfundus.config.diffusion import TrainConfig
from synfundus.config.generation import SampleConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig
from synfundus.distributed.agreement import on_rank_0, require_same, share_out
from synfundus.distributed.world import World, torch_device
from synfundus.models.unet import ConditionalDenoiser, same_architecture
from synfundus.models.weight_files import replace_weights
from synfundus.shards.batches import BatchReader
from synfundus.stages import Summary, build, training_setup
from synfundus.stages.reading import EYE_SIDE, check_flip, latent_batches, latent_shape_of
from synfundus.stages.run_weights import RunWeights, Weights
from synfundus.stages.train.preview import PREVIEW_IMAGES, draw_preview, preview_images
from synfundus.stages.train.start import Start, identity_of, initial_denoiser
from synfundus.stages.training_run import Outcome, Row, Shared, Training, TrainingRun
from synfundus.stages.trial_step import random_batch
from synfundus.stages.verb import require
from synfundus.telemetry.console import Console
from synfundus.telemetry.run_files import read_run, series
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.draws import DiffusionDraws
from synfundus.training.progress import StepCost
from synfundus.training.step import LatentDiffusionStep
from synfundus.training.step_cost import denoiser_cost
from synfundus.training.validation import JudgedBatch, held_out_loss, judge_batches, judged_on, warn_of_no_val


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Train, validate on held-out images, export. Collective; resumes by itself.

    Returns:
        ``images_seen``, ``loss``, ``validation_loss``, ``images_per_s``, ``parameters``, ``engine``, ``export``.

    Raises:
        ManifestMismatch: The latents were encoded by another autoencoder than the given one, or are not of the kind the
            model to start from was trained on.
    """
    shared = Shared(config.seed, config.launch, config.telemetry, config.model_dump(mode="json"))
    watchdog = training_setup.watchdog(config.train.loop, config.launch, world)
    with watchdog.running():
        with watchdog.phase("the start"):
            training = _set_up(config.train, config.sample, shared, world, console)
            training_run = TrainingRun(training, watchdog=watchdog, world=world, console=console)
        return training_run.run()


def _set_up(
    section: TrainConfig, sample: SampleConfig, shared: Shared, world: World, console: Console
) -> DiffusionTraining:
    """Open the inputs of the run and check them. Collective."""
    sets = open_latent_sets(section.latents)
    latents = sets.combined
    run_url = require(section.run_dir, flag="--run-dir", key="train.run_dir")
    if section.diffusion.flip:
        check_flip(latents, run_url, console)
    autoencoder_folder = find_autoencoder(section.vae or load_sources(latents.url).autoencoder_url)
    autoencoder, fingerprint = open_autoencoder(autoencoder_folder, device=torch.device("cpu"), dtype=torch.float32)
    require_same_autoencoder(latents, fingerprint, where=autoencoder_folder)
    if section.loop.preview_every_images:
        build.check_sampler(build.sampler_settings(sample).sampler, section.diffusion)
    start = initial_denoiser(section, latents, console, seed=shared.seed)
    require_same({"the weights to start from": start.fingerprint}, world)  # of a folder that each host may have
    start = replace(start, judged_on=judged_on(sets.sets, patients=keeps_patients_apart(sets.sets)))
    warn_of_no_val(start.judged_on, console)
    if doubt := build.unweighted_start(section.diffusion):
        console.warning(doubt)
    training_setup.check_compilation(section.loop, world)
    # last: a refused start must not claim the folder
    identity = identity_of(section, latents, start.identity, seed=shared.seed)
    judged = {"kind": "diffusion", "judged_on": start.judged_on}
    directory = RunFolder(run_url, **judged, identity=identity, config=shared.document, world=world)
    sampler = build.sampler_settings(sample, schema=latents.label_schema)
    setup = build.model_setup(section.diffusion, latents, autoencoder, sampler)
    given = start.report
    on_rank_0(lambda: None if given is None else directory.record_start(given), world)
    on_rank_0(lambda: save_setup(run_url, setup, start.known(latents, flip=section.diffusion.flip)), world)
    return DiffusionTraining(section, sample, shared, sets, start, setup, directory, world, console)


class DiffusionTraining(Training[ConditionalDenoiser]):
    """The training of a denoiser; the autoencoder is in fp32 on the CPU."""

    name = "train"
    figure = "validation_loss"
    judge_at_end = True

    def __init__(
        self,
        section: TrainConfig,
        sample: SampleConfig,
        shared: Shared,
        sets: LatentSets,
        start: Start,
        setup: ModelSetup,
        directory: RunFolder,
        world: World,
        console: Console,
    ) -> None:
        self.section, self.shared, self.directory, self.sets = section, shared, directory, sets.sets
        self.widths, self.snapshot_every_images = section.ema.sigma_rel, section.ema.snapshot_every_images
        self.trained, self.backbone = start.denoiser, start.denoiser.unet
        self.preview_at_end = section.loop.preview_every_images > 0
        self._objective, self._start = section.diffusion, start
        self._sampler = build.sampler_settings(sample, schema=sets.combined.label_schema)
        self._sets, self._set = sets, sets.combined
        self._schedule = build.forward_process(section.diffusion)
        self._statistics = setup.latent_mean, setup.latent_std
        self._setup = setup
        self._latent_shape = latent_shape_of(sets.combined)
        self._num_labels = len(sets.combined.label_schema.labels)
        self._world, self._device, self._console = world, torch_device(world), console

    def cost(self) -> StepCost | None:
        """Return the cost of U-Net and conditioner."""
        return denoiser_cost(
            self.trained,
            latent_shape=self._latent_shape,
            num_labels=self._num_labels,
            kernels=training_setup.kernels(self.section.loop),
            world=self._world,
        )

    def step(self, trained: ConditionalDenoiser, channels_last: bool) -> LatentDiffusionStep:
        """Return the step: moments, latents, noise, prediction, loss."""
        mean, std = self._statistics
        return LatentDiffusionStep(
            trained,
            schedule=self._schedule,
            prediction_type=self._objective.prediction_type,
            min_snr_gamma=self._objective.min_snr_gamma,
            latent_mean=mean,
            latent_std=std,
            channels_last=channels_last,
        )

    def trial_batch(self, count: int) -> Mapping[str, Tensor]:
        """Return random latents with all labels unknown."""
        return random_batch(self._objective, count, self._latent_shape, self._device, num_labels=self._num_labels)

    def batches(self) -> BatchReader:
        """Return latents of the training split with their random draws."""
        return self._read("train", flip=self._objective.flip, all_labels=False)

    def _read(self, split: str, *, flip: bool, all_labels: bool) -> BatchReader:
        objective, names = self._objective, self._set.label_schema.names
        draws = DiffusionDraws(
            seed=self.shared.seed,
            num_timesteps=objective.num_train_timesteps,
            flow_time=build.flow_time(objective),
            label_drop_prob=objective.label_drop_prob,
            single_label_drop_prob=objective.single_label_drop_prob,
            flip=flip,
            eye_side_column=names.index(EYE_SIDE) if EYE_SIDE in names else None,
            all_labels=all_labels,
        )
        return latent_batches(self._sets, split=split, seed=self.shared.seed, with_flip=flip, augment=draws)

    def parts(self) -> Sequence[ModelPart]:
        """Return U-Net and conditioner."""
        return model_parts(self.trained)

    def judge(
        self, weights: RunWeights, *, loop: LoopConfig, images_seen: int, check: Callable[[], None]
    ) -> Callable[[], Row]:
        """Compute the loss on held-out images, with the same noise every time, a share of them on each rank."""
        drops = self._objective.label_drop_prob > 0 or self._objective.single_label_drop_prob > 0
        split = "val" if self._set.num_samples("val") else "train"
        images = min(loop.validation_images, self._set.num_samples(split))
        size = training_setup.batch_plan(loop, self._world.size).micro_batch_size
        batches = [range(first, min(first + size, images)) for first in range(0, images, size)]

        def share(mine: Sequence[range]) -> list[JudgedBatch]:
            return judge_batches(
                self.step(self.trained, definite_channels_last(loop)),
                self._read(split, flip=False, all_labels=drops),
                mine,
                device=self._device,
                images_seen=images_seen,
            )

        with weights.holding("averaged", check):
            judged = share_out(batches, share, weights.world)
        return lambda: held_out_loss(judged, where=f"{self._set.url}, split {split}", console=self._console)

    def preview(self, weights: RunWeights, *, images_seen: int, check: Callable[[], None]) -> Callable[[], bytes]:
        """Draw grids with fixed seeds, a share of the images on each rank."""

        def share(mine: Sequence[int]) -> list[NDArray[np.uint8]]:
            return preview_images(self._setup, self.trained, mine, settings=self._sampler, device=self._device)

        images: dict[Weights, list[NDArray[np.uint8]]] = {"averaged": [], "raw": []}
        for which in images:
            with weights.holding(which, check):
                images[which] = share_out(range(PREVIEW_IMAGES), share, weights.world)
        return lambda: draw_preview(self._setup.label_schema, images, title=f"{images_seen:,} images seen")

    def export(self, weights: RunWeights, outcome: Outcome) -> Callable[[], Summary]:
        """Return what writes the averaged model, fp32, as a pipeline folder."""
        averaged = weights.full("averaged") or {}
        return lambda: self._export(averaged, outcome)

    def _export(self, averaged: Mapping[str, Tensor], outcome: Outcome) -> Summary:
        network = same_architecture(self.trained).eval().requires_grad_(False)
        replace_weights(network, averaged, where=self.directory.url)
        view = read_run(self.directory.url)  # for a run with nothing left to train
        row = outcome.row or (view.rows[-1] if view.rows else {})
        losses = [loss for _, loss in series(view.validation, self.figure)] or [math.nan]
        validation_loss = outcome.judged.get(self.figure, losses[-1])
        summary: Summary = {
            "images_seen": outcome.state.images_seen,
            "quarantined_images": outcome.state.quarantined_images,
            "skipped_steps": outcome.state.skipped_steps,
            "loss": row.get("loss"),
            "images_per_s": row.get("images_per_s"),
            "validation_loss": None if math.isnan(validation_loss) else validation_loss,
            "parameters": outcome.parameters,
            "engine": outcome.engine,
            "zero_stage": outcome.zero_stage,
        }
        folder = self.directory.path("export")
        figures = summary | self._start.known(self._set, flip=self._objective.flip)
        save_pipeline(folder, denoiser=network, setup=self._setup, training_summary=figures)
        self._console.message(f"trained on {summary['images_seen']:,} images; exported to {folder}")
        return summary | {"export": folder}
