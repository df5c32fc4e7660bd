"""`synfundus train-vae`: an autoencoder that reconstructs the RGB image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from synfundus.artifacts.autoencoder_folder import autoencoder_parts, save_autoencoder
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.schema import RunConfig
from synfundus.config.training import AutoencoderLossConfig, LoopConfig, TrainVaeConfig
from synfundus.distributed.world import World, torch_device
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.autoencoder_objective import AutoencoderObjective
from synfundus.models.weight_files import replace_weights
from synfundus.pictures.sheets import patients_note
from synfundus.shards.batches import BatchReader
from synfundus.stages import Summary, build, training_setup
from synfundus.stages.reading import image_batches
from synfundus.stages.run_weights import RunWeights
from synfundus.stages.train_vae.held_out import draw_reconstructions, judge_reconstructions
from synfundus.stages.train_vae.start import check_start, identity_of, initial_autoencoder
from synfundus.stages.training_run import Outcome, Row, Shared, Training, TrainingRun
from synfundus.stages.verb import require
from synfundus.stages.vessel_detail import describe_vessels, lost_vessels
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.draws import AutoencoderDraws
from synfundus.training.progress import StepCost
from synfundus.training.step import AutoencoderStep
from synfundus.training.step_cost import autoencoder_cost
from synfundus.training.validation import judged_on, knows_patients, warn_of_no_val


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Train, evaluate on held-out images, export. Collective; resumes by itself.

    Returns:
        ``images_seen``, ``export``, ``judged_on``, and the figures of `judge_reconstructions`.
    """
    shared = Shared(config.seed, config.launch, config.telemetry, config.model_dump(mode="json"))
    watchdog = training_setup.watchdog(config.train_vae.loop, config.launch, world)
    with watchdog.running():
        with watchdog.phase("the start"):
            training = _set_up(config.train_vae, shared, world, console)
            training_run = TrainingRun(training, watchdog=watchdog, world=world, console=console)
        return training_run.run()


def _set_up(section: TrainVaeConfig, shared: Shared, world: World, console: Console) -> AutoencoderTraining:
    """Open what the run needs and refuse what cannot work. Collective."""
    image_set = load_shard_set(require(section.data, flag="--data", key="train_vae.data"), kind="images")
    run_url = require(section.run_dir, flag="--run-dir", key="train_vae.run_dir")
    check_start(section, run_url)
    training_setup.check_compilation(section.loop, world)
    identity = identity_of(section, image_set, seed=shared.seed)
    judged = judged_on((image_set,), patients=knows_patients(image_set))
    warn_of_no_val(judged, console)
    directory = RunFolder(run_url, kind="vae", identity=identity, config=shared.document, world=world, judged_on=judged)
    autoencoder = initial_autoencoder(section, image_set, directory, world, console, seed=shared.seed)
    return AutoencoderTraining(section, shared, image_set, autoencoder, directory, world, console)


class AutoencoderTraining(Training[AutoencoderObjective]):
    """What `TrainingRun` needs to train an autoencoder."""

    name = "train_vae"
    figure = "psnr_db"
    preview_at_end = False
    widths = ()
    snapshot_every_images = 0

    def __init__(
        self,
        section: TrainVaeConfig,
        shared: Shared,
        image_set: ShardSet,
        autoencoder: LatentAutoencoder,
        directory: RunFolder,
        world: World,
        console: Console,
    ) -> None:
        self.section, self.shared, self.directory, self.sets = section, shared, directory, (image_set,)
        # before kernels are chosen and the engine changes types
        self._untouched = copy.deepcopy(autoencoder) if world.rank == 0 else None
        self.trained, self.backbone = _objective(autoencoder, section.loss, seed=shared.seed), autoencoder.network
        self.judge_at_end = section.loop.validate_every_images > 0
        self._set, self._autoencoder = image_set, autoencoder
        self._size_px = int(image_set.properties["image_size_px"])
        edge = self._size_px // autoencoder.downsample_factor
        self._latent_shape = (autoencoder.latent_channels, edge, edge)
        self._world, self._device, self._console = world, torch_device(world), console

    def cost(self) -> StepCost | None:
        """Count the autoencoder, without a discriminator."""
        kernels = training_setup.kernels(self.section.loop)
        return autoencoder_cost(self._autoencoder, image_size_px=self._size_px, kernels=kernels, world=self._world)

    def step(self, trained: AutoencoderObjective, channels_last: bool) -> AutoencoderStep:
        """Return the step: pixels, reconstruction, loss."""
        return AutoencoderStep(trained, channels_last=channels_last)

    def trial_batch(self, count: int) -> Mapping[str, Tensor]:
        """Return random images."""
        generator = torch.Generator().manual_seed(0)
        size = self._size_px
        pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
        noise = torch.randn(count, *self._latent_shape, generator=generator)
        batch = {"pixels": pixels, "posterior_noise": noise, "weights": torch.ones(count)}
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def batches(self) -> BatchReader:
        """Return images of the training split with their posterior noise."""
        seed = self.shared.seed
        draws = AutoencoderDraws(seed=seed, latent_shape=self._latent_shape)
        return image_batches(self._set, split="train", seed=seed, augment=draws)

    def parts(self) -> Sequence[ModelPart]:
        """Return the autoencoder."""
        return autoencoder_parts(self._autoencoder)

    def judge(
        self, weights: RunWeights, *, loop: LoopConfig, images_seen: int, check: Callable[[], None]
    ) -> Callable[[], Row]:
        """Return what judges held-out reconstructions, of the fp32 weights that an export has."""
        averaged = weights.full("averaged") or {}
        return lambda: judge_reconstructions(
            self._network(averaged), self._set, count=loop.validation_images, console=self._console, check=check
        )

    def preview(self, weights: RunWeights, *, images_seen: int, check: Callable[[], None]) -> Callable[[], bytes]:
        """Return what draws held-out originals over their reconstructions."""
        averaged = weights.full("averaged") or {}
        return lambda: draw_reconstructions(self._network(averaged), self._set)

    def export(self, weights: RunWeights, outcome: Outcome) -> Callable[[], Summary]:
        """Return what writes the averaged autoencoder, and judges it unless that was just done."""
        averaged = weights.full("averaged") or {}
        return lambda: self._export(averaged, outcome)

    def _network(self, weights: Mapping[str, Tensor]) -> LatentAutoencoder:
        """Return an autoencoder with these weights on the device. On rank 0."""
        autoencoder = copy.deepcopy(self._untouched)
        assert autoencoder is not None
        own = {name.removeprefix("codec."): tensor for name, tensor in weights.items() if name.startswith("codec.")}
        replace_weights(autoencoder, own, where=self.directory.url)
        return autoencoder.eval().requires_grad_(False).to(self._device)

    def _export(self, weights: Mapping[str, Tensor], outcome: Outcome) -> Summary:
        network = self._network(weights)
        folder = self.directory.path("export", "vae")
        save_autoencoder(network, folder)
        figures = outcome.judged or judge_reconstructions(
            network, self._set, count=self.section.loop.validation_images, console=self._console
        )
        picture = self.directory.path("export", "reconstructions.png")
        filesystem.write_bytes(picture, draw_reconstructions(network, self._set))
        note = patients_note(self._set.properties)
        self._console.message(f"picture: {picture}{note and f' ({note})'}")
        judged = judged_on((self._set,), patients=knows_patients(self._set))
        self._console.message(
            f"autoencoder on {judged}: PSNR {figures['psnr_db']:.2f} dB, "
            f"SSIM {figures['ssim']:.3f}, {describe_vessels(figures)}; exported to {folder}"
        )
        if warning := lost_vessels(figures):
            self._console.warning(warning)
        return {"images_seen": outcome.state.images_seen, "export": folder, "judged_on": judged, **figures}


def _objective(autoencoder: LatentAutoencoder, loss: AutoencoderLossConfig, *, seed: int) -> AutoencoderObjective:
    return AutoencoderObjective(
        autoencoder=autoencoder,
        discriminator=build.discriminator(loss, seed=seed),
        l1_weight=loss.l1_weight,
        structural_weight=loss.structural_weight,
        kl_weight=loss.kl_weight,
        adversarial_weight=loss.adversarial_weight,
        adversarial_start_images=loss.adversarial_start_images,
    )
