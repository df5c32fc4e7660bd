"""`synfundus train-vae`: an autoencoder that reconstructs the RGB image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from synfundus.artifacts.autoencoder_folder import (
    CONFIG_NAME,
    autoencoder_parts,
    check_autoencoder,
    find_autoencoder,
    open_autoencoder,
    save_autoencoder,
)
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.measured import definite_channels_last
from synfundus.config.schema import RunConfig
from synfundus.config.training import LoopConfig, TrainVaeConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.errors import ConfigError, DataError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.autoencoder_objective import AutoencoderObjective
from synfundus.models.discriminator import PatchDiscriminator
from synfundus.models.pixels import pixels_to_tensor, tensor_to_pixels
from synfundus.models.reconstruction_metrics import psnr, ssim
from synfundus.models.weight_files import replace_weights
from synfundus.pictures.sheets import contact_sheet, encode_png
from synfundus.shards.ledger import Quarantined
from synfundus.shards.loader import BatchLoader
from synfundus.stages import Summary, build
from synfundus.stages.measured_start import Rehearsed, settle_loop
from synfundus.stages.reading import image_batches, set_names, training_loader
from synfundus.stages.run_identity import autoencoder_identity
from synfundus.stages.start_report import report_start
from synfundus.storage import filesystem
from synfundus.storage.local_folder import folder_to_read
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console
from synfundus.training.draws import AutoencoderDraws
from synfundus.training.ema import ShardedEma
from synfundus.training.loop_state import Periodic, TrainState
from synfundus.training.step import AutoencoderStep
from synfundus.training.step_cost import autoencoder_cost
from synfundus.training.stopping import StopFlag
from synfundus.training.trainer import Trainer
from synfundus.training.validation import warn_of_damage

_EVALUATION_PIXELS, _EVALUATION_BATCH = 2**22, 16
"""At most so many at a time: decoded in fp32 a layer of four images of 1,024 px is 4 GiB."""
_GRID_IMAGES = 8


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Train, evaluate on held-out patients, export. Collective; resumes by itself.

    Returns:
        ``images_seen``, ``psnr_db``, ``ssim``, ``export``.
    """
    watchdog = build.watchdog(config.train_vae.loop, config.launch, world)
    with watchdog.running():
        with watchdog.phase("the start"):
            training = _set_up(config, watchdog, world, console)
        return training.run()


def _set_up(config: RunConfig, watchdog: Watchdog, world: World, console: Console) -> _Training:
    """Open what the run needs and refuse what cannot work. Collective."""
    section = config.train_vae
    image_set = load_shard_set(build.require(section.data, flag="--data", key="train_vae.data"), kind="images")
    run_url = build.require(section.run_dir, flag="--run-dir", key="train_vae.run_dir")
    if section.init_from and not filesystem.exists(filesystem.join(run_url, "init", CONFIG_NAME)):
        _check_start(
            find_autoencoder(section.init_from), section
        )  # a start that is refused leaves no mark on the folder
    build.check_compilation(section.loop, world)
    directory = RunFolder(
        run_url,
        kind="vae",
        identity=autoencoder_identity(config, image_set),
        config=config.model_dump(mode="json"),
        world=world,
    )
    autoencoder = _initial_autoencoder(config, image_set, directory, world, console)
    return _Training(config, image_set, autoencoder, directory, watchdog, world, console)


def _check_start(folder: str, section: TrainVaeConfig) -> None:
    """Refuse a start from weights that cannot be trained as configured.

    Raises:
        CheckpointError: Not an autoencoder that can be used.
        ConfigError: One of a class that cannot recompute activations, which was asked for.
    """
    found = check_autoencoder(folder)["_class_name"]
    if found == "AutoencoderDC" and section.loop.gradient_checkpointing:
        raise ConfigError(
            "AutoencoderDC cannot recompute its activations",
            where="train_vae.loop.gradient_checkpointing",
            hint="turn it off and use a smaller train_vae.loop.micro_batch_size",
        )


def train_images(
    image_set: ShardSet, *, split: str, count: int, seed: int, damaged: list[Quarantined] | None = None
) -> Iterator[Tensor]:
    """Yield the first ``count`` images of a split in reading order, ``[n, 3, h, w]`` in [-1, 1], in batches.

    Those that cannot be used are left out, and added to ``damaged``.
    """
    reader = image_batches(image_set, split=split, seed=seed, augment=None)
    total = min(count, reader.plan.set_sizes[0])
    most = max(1, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // int(image_set.properties["image_size_px"]) ** 2))
    for first in range(0, total, most):
        batch = reader.read(np.arange(first, min(first + most, total), dtype=np.int64))
        if damaged is not None:
            damaged += batch.quarantined
        yield pixels_to_tensor(batch.arrays["pixels"][batch.weights > 0])
    reader.close()


def _initial_autoencoder(
    config: RunConfig, image_set: ShardSet, directory: RunFolder, world: World, console: Console
) -> LatentAutoencoder:
    """Return the autoencoder a run starts from; kept in the run, so every start begins with the same. Collective."""
    folder = directory.path("init")

    def write() -> None:
        if filesystem.exists(filesystem.join(folder, CONFIG_NAME)):
            return  # an autoencoder folder is there as a whole or not at all
        section = config.train_vae
        if section.init_from:
            autoencoder, _ = open_autoencoder(
                find_autoencoder(section.init_from), device=torch.device("cpu"), dtype=torch.float32
            )
        else:
            size = int(image_set.properties["image_size_px"])
            autoencoder = build.autoencoder(section.autoencoder, image_size_px=size, seed=config.seed)
        if autoencoder.linear_path is not None and not section.init_from:
            images = train_images(
                image_set, split="train", count=section.autoencoder.linear_path_fit_images, seed=config.seed
            )
            share = float(autoencoder.linear_path.fit(images).sum())
            console.message(f"linear path fitted: {100 * share:.1f} % of the variance of the training images")
        save_autoencoder(autoencoder, folder)

    on_rank_0(write, world)
    with folder_to_read(folder) as local:
        return LatentAutoencoder.from_pretrained(local)


def _preview_name(state: TrainState) -> str:
    return f"previews/images-{state.images_seen:012d}.png"


class _Training:
    """Wires one training run together."""

    def __init__(
        self,
        config: RunConfig,
        image_set: ShardSet,
        autoencoder: LatentAutoencoder,
        directory: RunFolder,
        watchdog: Watchdog,
        world: World,
        console: Console,
    ) -> None:
        self._config = config
        self._set = image_set
        self._directory, self._watchdog = directory, watchdog
        self._world, self._no_timeout = (
            world,
            without_timeout(world),
        )  # the second while rank 0 validates or draws
        self._flag = StopFlag()
        self._figures: Mapping[str, float] = {}
        self._console = console
        self._loop = config.train_vae.loop
        self._device = torch_device(world)
        # before kernels are chosen and the engine changes types
        self._untouched = copy.deepcopy(autoencoder) if world.rank == 0 else None
        size = int(image_set.properties["image_size_px"])
        self._cost = autoencoder_cost(autoencoder, image_size_px=size, kernels=build.kernels(self._loop), world=world)
        build.arithmetic(self._loop, world, console)
        build.attention(
            autoencoder.network,
            config.launch,
            dtype=build.torch_dtype(self._loop.precision),
            world=world,
            console=console,
        )
        if self._loop.gradient_checkpointing:
            autoencoder.network.enable_gradient_checkpointing()
        build.compiled(autoencoder, self._loop, console)
        self._autoencoder = autoencoder
        objective = self._objective(autoencoder)
        self._loop = self._settled(objective)
        self._batch = build.batch_plan(self._loop, world.size)
        self._parameters = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
        self._zero: ZeroEngine = build.engine(
            AutoencoderStep(objective, channels_last=definite_channels_last(self._loop)),
            objective,
            loop=self._loop,
            optim=config.train_vae.optim,
            launch=config.launch,
            batch=self._batch,
            world=world,
        )
        self._ema: ShardedEma = build.ema(config.train_vae.ema, self._zero)

    def _settled(self, objective: AutoencoderObjective) -> LoopConfig:
        """Return the loop section with what is measured at start. Collective."""
        size, autoencoder = int(self._set.properties["image_size_px"]), objective.codec
        edge = size // autoencoder.downsample_factor

        def draw(count: int) -> Mapping[str, Tensor]:
            generator = torch.Generator().manual_seed(0)
            pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
            noise = torch.randn(count, autoencoder.latent_channels, edge, edge, generator=generator)
            batch = {"pixels": pixels, "posterior_noise": noise, "weights": torch.ones(count)}
            return {name: tensor.to(self._device) for name, tensor in batch.items()}

        return settle_loop(
            self._loop,
            self._config.launch,
            Rehearsed(objective, lambda own, layout: AutoencoderStep(own, channels_last=layout), draw, num_averages=1),
            directory=self._directory,
            world=self._world,
            console=self._console,
            section="train_vae.loop",
        )

    def _objective(self, autoencoder: LatentAutoencoder) -> AutoencoderObjective:
        loss = self._config.train_vae.loss
        discriminator = None
        if loss.adversarial_weight > 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._config.seed)
                discriminator = PatchDiscriminator(
                    base_channels=build.DISCRIMINATOR_CHANNELS, num_layers=3, norm_num_groups=16
                )
        return AutoencoderObjective(
            autoencoder=autoencoder,
            discriminator=discriminator,
            l1_weight=loss.l1_weight,
            structural_weight=loss.structural_weight,
            kl_weight=loss.kl_weight,
            adversarial_weight=loss.adversarial_weight,
            adversarial_start_images=loss.adversarial_start_images,
        )

    def run(self) -> Summary:
        """Resume, train, evaluate, export. Collective."""
        zero, loop = self._zero, self._loop
        report_start(
            self._console, parameters=self._parameters, zero=zero, loop=loop, batch=self._batch, world=self._world
        )
        with self._watchdog.phase("the reading of a checkpoint"):
            state = self._directory.resume(zero=self._zero, average=self._ema, console=self._console)
            parts = autoencoder_parts(self._autoencoder)
            saver = self._directory.saver(
                state,
                zero=self._zero,
                average=self._ema,
                settings=build.saver_settings(self._loop, self._config.launch),
                watchdog=self._watchdog,
                parts=parts,
            )
            sinks = self._directory.sinks(
                resume_images=state.images_seen,
                tensorboard=self._config.telemetry.tensorboard,
                wandb_project=self._config.telemetry.wandb_project,
                console=self._console,
            )
            loader, every = self._train_loader(state), self._loop.validate_every_images

        def save(state: TrainState) -> None:
            saver.save(state.images_seen, state.to_document())

        def validate(state: TrainState) -> None:
            autoencoder = self._averaged_autoencoder()

            def work() -> None:
                if autoencoder is not None:
                    self._figures = self._evaluate(autoencoder, self._flag.check)
                    sinks.write({"images_seen": state.images_seen, **self._figures})

            on_rank_0(work, self._no_timeout)

        trainer = Trainer(
            engine=self._zero,
            loader=loader,
            ema=self._ema,
            lr=build.lr_plan(self._config.train_vae.optim, self._loop),
            settings=build.loop_settings(self._loop, self._batch, seed=self._config.seed),
            state=state,
            world=self._world,
            console=self._console,
            write_metrics=sinks.write,
            write_ledger=self._directory.append_ledger,
            set_names=set_names([self._set]),
            periodic=[
                # before the checkpoint: a run that goes on from there does not write this row again
                Periodic("validation", every, validate, at_end=every > 0, done=self._has_validated),
                Periodic("checkpoint", self._loop.checkpoint_every_images, save, at_end=True, log_before=True),
                Periodic("preview", self._loop.preview_every_images, self._preview, done=self._has_preview),
            ],
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
            return self._finish(state, self._figures)

    def _train_loader(self, state: TrainState) -> BatchLoader:
        size = int(self._set.properties["image_size_px"]) // self._autoencoder.downsample_factor
        draws = AutoencoderDraws(seed=self._config.seed, latent_shape=(self._autoencoder.latent_channels, size, size))
        reader = image_batches(self._set, split="train", seed=self._config.seed, augment=draws)
        return training_loader(reader, self._loop, self._world, start_images=state.images_seen)

    def _averaged_autoencoder(self) -> LatentAutoencoder | None:
        """Return a autoencoder with the averaged weights in fp32 on rank 0, None elsewhere. Collective."""
        named = self._zero.gather_named(self._ema.partitions)
        if named is None or self._untouched is None:
            return None
        autoencoder = copy.deepcopy(self._untouched)
        weights = {name.removeprefix("codec."): tensor for name, tensor in named.items() if name.startswith("codec.")}
        replace_weights(autoencoder, weights, where=self._directory.url)
        return autoencoder.eval().requires_grad_(False).to(self._device)

    def _has_validated(self, state: TrainState) -> bool:
        return self._directory.has_judged(state.images_seen, "psnr_db")

    def _has_preview(self, state: TrainState) -> bool:
        return filesystem.exists(self._directory.path(_preview_name(state)))

    def _preview(self, state: TrainState) -> None:
        autoencoder = self._averaged_autoencoder()

        def work() -> None:
            if autoencoder is not None:
                self._draw(autoencoder, _preview_name(state))

        on_rank_0(work, self._no_timeout)

    def _draw(self, autoencoder: LatentAutoencoder, name: str) -> None:
        """Draw held-out originals over their reconstructions."""
        images = torch.cat(list(train_images(self._set, split=self._held_out, count=_GRID_IMAGES, seed=0)))
        with torch.no_grad():
            mean, _ = LatentAutoencoder.split(autoencoder.encode(images.to(self._device)))
            restored = autoencoder.decode(mean)
        pictures = [*tensor_to_pixels(images), *tensor_to_pixels(restored)]
        sheet = contact_sheet(
            pictures,
            captions=[""] * len(pictures),
            columns=len(images),
            tile_px=images.shape[-1],
            title=f"{self._held_out}: originals above, reconstructions below",
        )
        filesystem.write_bytes(self._directory.path(name), encode_png(sheet, text={}, compress_level=6))

    @property
    def _held_out(self) -> str:
        """The split to judge on: val, or train where the set has no other."""
        return "val" if self._set.num_samples("val") else "train"

    def _evaluate(
        self, autoencoder: LatentAutoencoder, look_up: Callable[[], None] = lambda: None
    ) -> Mapping[str, float]:
        """Return PSNR and SSIM of reconstructions from the posterior mean, averaged over held-out images.

        Args:
            autoencoder: To be judged.
            look_up: Called before every batch; it may raise.
        """
        split, count = self._held_out, self._loop.validation_images
        decibels, similarity, number = 0.0, 0.0, 0
        total = min(count, self._set.num_samples(split))
        damaged: list[Quarantined] = []
        with torch.no_grad(), self._console.progress("evaluating", total=total, unit="images") as bar:
            for images in train_images(self._set, split=split, count=count, seed=0, damaged=damaged):
                look_up()
                if not len(images):
                    continue
                target = images.to(self._device)
                mean, _ = LatentAutoencoder.split(autoencoder.encode(target))
                restored = autoencoder.decode(mean).float().clamp(-1, 1)
                decibels += float(psnr(restored, target, data_range=2.0).sum())
                similarity += float(ssim(restored, target, data_range=2.0).sum())
                number += len(images)
                bar.advance(len(images))
        warn_of_damage(damaged, self._console)
        if not number:
            raise DataError("no image to judge the autoencoder on is readable", where=f"{self._set.url}, split {split}")
        return {"psnr_db": decibels / number, "ssim": similarity / number, "evaluated_images": number}

    def _finish(self, state: TrainState, figures: Mapping[str, float]) -> Summary:
        """Export the averaged weights, and judge them on held-out patients unless that was just done. Collective."""
        autoencoder = self._averaged_autoencoder()
        figures = on_rank_0(lambda: {} if autoencoder is None else self._export(autoencoder, figures), self._world)
        return {"images_seen": state.images_seen, "export": self._directory.path("export", "vae"), **figures}

    def _export(self, autoencoder: LatentAutoencoder, figures: Mapping[str, float]) -> Mapping[str, float]:
        folder = self._directory.path("export", "vae")
        save_autoencoder(autoencoder.cpu(), folder)
        autoencoder.to(self._device)
        figures = figures or self._evaluate(autoencoder)
        self._draw(autoencoder, "export/reconstructions.png")
        self._console.message(
            f"autoencoder on held-out {self._held_out} images: PSNR {figures['psnr_db']:.2f} dB, "
            f"SSIM {figures['ssim']:.3f}; exported to {folder}"
        )
        return figures
