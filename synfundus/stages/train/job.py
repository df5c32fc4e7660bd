"""`synfundus train`: the conditional latent-diffusion U-Net under ZeRO-2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.checkpoint_model import model_parts, save_setup
from synfundus.artifacts.ema_snapshots import has_snapshots, write_snapshot
from synfundus.artifacts.latent_set import LatentSets, load_sources, open_latent_sets, require_same_autoencoder
from synfundus.artifacts.model import ModelSetup
from synfundus.artifacts.model_folder import save_pipeline
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.measured import definite_channels_last
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig
from synfundus.diffusion.flow import ForwardProcess
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.errors import ConfigError
from synfundus.models.unet import ConditionalDenoiser, same_architecture
from synfundus.models.weight_files import replace_weights
from synfundus.shards.batches import BatchReader
from synfundus.stages import Summary, build, diffusion_setup
from synfundus.stages.measured_start import Rehearsed, settle_loop
from synfundus.stages.reading import latent_batches, latent_shape_of, set_names, training_loader
from synfundus.stages.run_identity import denoiser_identity
from synfundus.stages.start_report import report_start
from synfundus.stages.train.preview import draw_preview
from synfundus.stages.train.start import REPORT_NAME, Start, initial_denoiser, save_report
from synfundus.stages.trial_step import random_batch
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console
from synfundus.telemetry.run_files import read_run, series
from synfundus.training.draws import DiffusionDraws
from synfundus.training.ema import ShardedEma
from synfundus.training.loop_state import Periodic, TrainState
from synfundus.training.post_hoc_ema import Profile
from synfundus.training.step import LatentDiffusionStep
from synfundus.training.step_cost import denoiser_cost
from synfundus.training.stopping import StopFlag
from synfundus.training.trainer import Trainer
from synfundus.training.validation import held_out_loss

EYE_SIDE = "eye_side"


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Train, validate on held-out patients, export. Collective; resumes by itself.

    Returns:
        ``images_seen``, ``loss``, ``validation_loss``, ``images_per_s``, ``parameters``, ``engine``, ``export``.

    Raises:
        ManifestMismatch: The latents were made by another autoencoder than the one given, or are not of the kind the
            model to start from was trained on.
    """
    watchdog = build.watchdog(config.train.loop, config.launch, world)
    with watchdog.running():
        with watchdog.phase("the start"):
            training = _set_up(config, watchdog, world, console)
        return training.run()


def _set_up(config: RunConfig, watchdog: Watchdog, world: World, console: Console) -> _Training:
    """Open what the run needs and refuse what cannot work. Collective."""
    section = config.train
    sets = open_latent_sets(section.latents)
    latents = sets.combined
    run_url = build.require(section.run_dir, flag="--run-dir", key="train.run_dir")
    if config.train.diffusion.flip and not latents.properties["flip"]:
        raise ConfigError(
            "train.diffusion.flip is on, but the latents hold no mirrored moments",
            where=latents.url,
            hint="encode them with --flip, or turn train.diffusion.flip off",
        )
    autoencoder_folder = find_autoencoder(section.vae or load_sources(latents.url).autoencoder_url)
    autoencoder, fingerprint = open_autoencoder(autoencoder_folder, device=torch.device("cpu"), dtype=torch.float32)
    require_same_autoencoder(latents, fingerprint, where=autoencoder_folder)
    if config.train.loop.preview_every_images:
        diffusion_setup.check_sampler(config.sample.sampler, config.train.diffusion)
    start = initial_denoiser(config, latents, console)
    build.check_compilation(config.train.loop, world)
    # the last thing: a start that is refused must not leave its mark on the folder
    identity = denoiser_identity(config, latents) | start.identity
    directory = RunFolder(
        run_url, kind="diffusion", identity=identity, config=config.model_dump(mode="json"), world=world
    )
    setup = diffusion_setup.model_setup(config.train.diffusion, latents, autoencoder)
    on_rank_0(lambda: save_report(start, directory.path(REPORT_NAME)), world)
    on_rank_0(lambda: save_setup(run_url, setup, start.known(latents)), world)
    return _Training(config, sets, start, setup, directory, watchdog, world, console)


class _Training:
    """Wires one training run together; rank 0 has the autoencoder, in fp32 on the CPU, for previews and the export."""

    def __init__(
        self,
        config: RunConfig,
        sets: LatentSets,
        start: Start,
        setup: ModelSetup,
        directory: RunFolder,
        watchdog: Watchdog,
        world: World,
        console: Console,
    ) -> None:
        self._config = config
        self._sets = sets
        self._set = latents = sets.combined
        self._start, denoiser = start, start.denoiser
        self._setup = setup if world.rank == 0 else None
        self._directory, self._watchdog = directory, watchdog
        self._world, self._no_timeout = (
            world,
            without_timeout(world),
        )  # the second while rank 0 validates or draws
        self._flag = StopFlag()
        self._console = console
        self._loop = config.train.loop
        self._device = torch_device(world)
        self._schedule: ForwardProcess = diffusion_setup.forward_process(config.train.diffusion)
        self._latent_shape = latent_shape_of(latents)
        self._cost = denoiser_cost(
            denoiser,
            latent_shape=self._latent_shape,
            num_labels=len(latents.label_schema.labels),
            kernels=build.kernels(self._loop),
            world=world,
        )
        build.arithmetic(self._loop, world, console)
        build.attention(
            denoiser.unet,
            config.launch,
            dtype=build.torch_dtype(self._loop.precision),
            world=world,
            console=console,
        )
        if self._loop.gradient_checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
        build.compiled(denoiser, self._loop, console)
        self._parameters = sum(parameter.numel() for parameter in denoiser.parameters())
        self._loop = self._settled(denoiser)
        self._batch = build.batch_plan(self._loop, world.size)
        self._zero: ZeroEngine = build.engine(
            self._step(denoiser),
            denoiser,
            loop=self._loop,
            optim=config.train.optim,
            launch=config.launch,
            batch=self._batch,
            world=world,
        )
        self._ema: ShardedEma = build.ema(config.train.ema, self._zero, sigma_rel=config.train.ema.sigma_rel)
        self._last_row: Mapping[str, float] = {}
        self._validation_loss = float("nan")

    def _settled(self, denoiser: ConditionalDenoiser) -> LoopConfig:
        """Return the loop section with what is measured at start. Collective."""
        num_labels = len(self._set.label_schema.labels)

        def draw(count: int) -> Mapping[str, Tensor]:
            return random_batch(
                self._config.train.diffusion, count, self._latent_shape, self._device, num_labels=num_labels
            )

        return settle_loop(
            self._loop,
            self._config.launch,
            Rehearsed(denoiser, self._step_in, draw, num_averages=1 + len(self._config.train.ema.sigma_rel)),
            directory=self._directory,
            world=self._world,
            console=self._console,
            section="train.loop",
        )

    def _step(self, denoiser: ConditionalDenoiser) -> LatentDiffusionStep:
        return self._step_in(denoiser, definite_channels_last(self._loop))

    def _step_in(self, denoiser: ConditionalDenoiser, channels_last: bool) -> LatentDiffusionStep:
        section = self._config.train.diffusion
        mean, std = diffusion_setup.latent_statistics(section, self._set.properties)
        return LatentDiffusionStep(
            denoiser,
            schedule=self._schedule,
            prediction_type=section.prediction_type,
            min_snr_gamma=section.min_snr_gamma,
            latent_mean=mean,
            latent_std=std,
            channels_last=channels_last,
        )

    def run(self) -> Summary:
        """Resume, train, validate, export. Collective."""
        loop = self._loop
        report_start(
            self._console, parameters=self._parameters, zero=self._zero, loop=loop, batch=self._batch, world=self._world
        )
        with self._watchdog.phase("the reading of a checkpoint"):
            state = self._directory.resume(zero=self._zero, average=self._ema, console=self._console)
            if state.images_seen:
                on_rank_0(self._recall, self._world)
            parts = model_parts(self._start.denoiser)
            saver = self._directory.saver(
                state,
                zero=self._zero,
                average=self._ema,
                settings=build.saver_settings(loop, self._config.launch),
                watchdog=self._watchdog,
                parts=parts,
            )
            sinks = self._directory.sinks(
                resume_images=state.images_seen,
                tensorboard=self._config.telemetry.tensorboard,
                wandb_project=self._config.telemetry.wandb_project,
                console=self._console,
            )
            reader = self._batches("train", self._draws(self._config.train.diffusion.flip))
            loader = training_loader(reader, loop, self._world, start_images=state.images_seen)

        def write_metrics(row: Mapping[str, float]) -> None:
            self._last_row = row
            sinks.write(row)

        def save(state: TrainState) -> None:
            saver.save(state.images_seen, state.to_document())

        def validate(state: TrainState) -> None:
            row = self._validate(state)
            self._validation_loss = row["validation_loss"]
            on_rank_0(lambda: sinks.write({"images_seen": state.images_seen, **row}), self._world)

        trainer = Trainer(
            engine=self._zero,
            loader=loader,
            ema=self._ema,
            lr=build.lr_plan(self._config.train.optim, self._loop),
            settings=build.loop_settings(self._loop, self._batch, seed=self._config.seed),
            state=state,
            world=self._world,
            console=self._console,
            write_metrics=write_metrics,
            write_ledger=self._directory.append_ledger,
            set_names=set_names(self._sets.sets),
            periodic=self._periodic(save, validate),
            saver=saver,
            watchdog=self._watchdog,
            rewind=lambda: self._directory.rewind(zero=self._zero, average=self._ema, console=self._console),
            flag=self._flag,
            cost=self._cost,
        )
        try:
            state = trainer.fit()
        finally:
            with self._watchdog.phase("the closing of the metrics"):
                loader.close()
                sinks.close()
        with self._watchdog.phase("the export"):
            return self._finish(state)

    def _periodic(
        self, save: Callable[[TrainState], None], validate: Callable[[TrainState], None]
    ) -> Sequence[Periodic]:
        loop, averages = self._loop, self._config.train.ema
        every, draw_every = loop.validate_every_images, loop.preview_every_images
        snapshot_every, widths = averages.snapshot_every_images, bool(averages.sigma_rel)
        return [
            Periodic("validation", every, validate, at_end=True, done=self._has_validated),
            # before the checkpoint: a run that goes on from one has the snapshots that lead up to it
            Periodic("snapshots", snapshot_every, self._snapshot, at_end=widths, done=self._has_snapshots),
            Periodic("checkpoint", loop.checkpoint_every_images, save, at_end=True, log_before=True),
            Periodic("preview", draw_every, self._preview, at_end=draw_every > 0, done=self._has_preview),
        ]

    def _recall(self) -> None:
        """Take the figures from the rows that are there: a run that goes on may have nothing left to train."""
        view = read_run(self._directory.url)
        self._last_row = view.rows[-1] if view.rows else {}
        if judged := series(view.validation, "validation_loss"):
            self._validation_loss = judged[-1][1]

    def _draws(self, flip: bool) -> DiffusionDraws:
        section, names = self._config.train.diffusion, self._set.label_schema.names
        return DiffusionDraws(
            seed=self._config.seed,
            num_timesteps=section.num_train_timesteps,
            flow_time=diffusion_setup.flow_time(section),
            label_drop_prob=section.label_drop_prob,
            single_label_drop_prob=section.single_label_drop_prob,
            flip=flip,
            eye_side_column=names.index(EYE_SIDE) if EYE_SIDE in names else None,
        )

    def _batches(self, split: str, draws: DiffusionDraws) -> BatchReader:
        with_flip = self._config.train.diffusion.flip and split == "train"
        return latent_batches(self._sets, split=split, seed=self._config.seed, with_flip=with_flip, augment=draws)

    def _averaged_denoiser(self) -> ConditionalDenoiser | None:
        """Return the averaged network in fp32 on rank 0, None elsewhere. Collective."""
        denoiser = self._denoiser_of(self._ema.partitions)
        return denoiser if denoiser is None else denoiser.to(self._device)

    def _denoiser_of(self, partitions: Sequence[Tensor]) -> ConditionalDenoiser | None:
        """Return a network of its own with these weights, fp32, on rank 0's CPU; None elsewhere. Collective."""
        named = self._zero.gather_named(partitions)
        if named is None:
            return None
        denoiser = same_architecture(self._start.denoiser)
        replace_weights(denoiser, named, where=self._directory.url)
        return denoiser.eval().requires_grad_(False)

    def _interruptible(self, denoiser: ConditionalDenoiser | None) -> ConditionalDenoiser | None:
        """Have a network look for a signal before each pass."""
        if denoiser is not None:
            denoiser.register_forward_pre_hook(lambda *_: self._flag.check())
        return denoiser

    def _validate(self, state: TrainState) -> dict[str, float]:
        """Measure the averaged weights on held-out patients, with the same noise every time. Collective."""
        split = "val" if self._set.num_samples("val") else "train"
        denoiser = self._interruptible(self._averaged_denoiser())

        def work() -> dict[str, float]:
            if denoiser is None:
                return {}
            return held_out_loss(
                self._step(denoiser),
                self._batches(split, self._draws(False)),
                images=min(self._loop.validation_images, self._set.num_samples(split)),
                batch_size=self._batch.micro_batch_size,
                images_seen=state.images_seen,
                where=f"{self._set.url}, split {split}",
                console=self._console,
            )

        return on_rank_0(work, self._no_timeout)

    def _has_validated(self, state: TrainState) -> bool:
        return self._directory.has_judged(state.images_seen, "validation_loss")

    def _has_snapshots(self, state: TrainState) -> bool:
        return has_snapshots(self._directory.url, [Profile(state.images_seen, width) for width in self._ema.power])

    def _snapshot(self, state: TrainState) -> None:
        """Keep the power-function averages as they are now. Collective."""
        for width, slices in self._ema.power.items():
            profile = Profile(state.images_seen, width)
            write_snapshot(self._directory.url, self._zero.gather_named(slices), profile, self._world)

    def _preview(self, state: TrainState) -> None:
        """Draw grids with fixed seeds from the averaged and from the raw weights. Collective."""
        weights = {"averaged weights": self._ema.partitions, "raw weights": self._zero.masters()}
        denoisers = {name: self._interruptible(self._denoiser_of(slices)) for name, slices in weights.items()}
        on_rank_0(lambda: self._draw_preview(denoisers, state), self._no_timeout)

    def _preview_path(self, state: TrainState) -> str:
        return self._directory.path("previews", f"images-{state.images_seen:012d}.png")

    def _has_preview(self, state: TrainState) -> bool:
        return filesystem.exists(self._preview_path(state))

    def _draw_preview(self, denoisers: Mapping[str, ConditionalDenoiser | None], state: TrainState) -> None:
        if self._setup is not None:
            data = draw_preview(
                self._setup,
                denoisers={name: denoiser for name, denoiser in denoisers.items() if denoiser is not None},
                settings=diffusion_setup.sampler_settings(self._config.sample),
                latent_shape=self._latent_shape,
                title=f"{state.images_seen:,} images seen",
                device=self._device,
            )
            filesystem.write_bytes(self._preview_path(state), data)

    def _finish(self, state: TrainState) -> Summary:
        """Export the averaged model as a pipeline folder. Collective."""
        summary: Summary = {
            "images_seen": state.images_seen,
            "quarantined_images": state.quarantined_images,
            "skipped_steps": state.skipped_steps,
            "loss": self._last_row.get("loss"),
            "images_per_s": self._last_row.get("images_per_s"),
            "validation_loss": None if math.isnan(self._validation_loss) else self._validation_loss,
            "parameters": self._parameters,
            "engine": self._zero.optimizer_name,
            "zero_stage": self._zero.zero_stage,
            "export": self._directory.path("export"),
        }
        denoiser = self._averaged_denoiser()
        on_rank_0(lambda: self._export(denoiser, summary), self._world)
        return summary

    def _export(self, denoiser: ConditionalDenoiser | None, summary: Summary) -> None:
        if denoiser is not None and self._setup is not None:
            self._setup.autoencoder.cpu()
            figures = {key: value for key, value in summary.items() if key != "export"}
            save_pipeline(
                self._directory.path("export"),
                denoiser=denoiser.cpu(),
                setup=self._setup,
                training_summary=figures | self._start.known(self._set),
            )
            self._console.message(f"trained on {summary['images_seen']:,} images; exported to {summary['export']}")
