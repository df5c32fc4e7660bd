"""The autoencoder: a stock one when plain, a closed-form start when asked, always the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from synfundus.errors import CheckpointError, ConfigError, DataError
from synfundus.models.autoencoder import LatentAutoencoder, build_autoencoder, fingerprint
from synfundus.models.autoencoder_objective import (
    AutoencoderObjective,
    PatchDiscriminator,
    discriminator_hinge_loss,
    generator_hinge_loss,
    kl_divergence,
)
from synfundus.models.linear_path import LinearPath
from synfundus.models.pixels import tensor_to_pixels
from synfundus.models.reconstruction_metrics import psnr, ssim
from synfundus.training.step import AutoencoderStep


def autoencoder_of(*, linear_path: bool = False, block_size_px: int = 1, seed: int = 0) -> LatentAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_autoencoder(
            image_size_px=32,
            block_size_px=block_size_px,
            latent_channels=4,
            block_out_channels=(8, 16, 16) if block_size_px == 1 else (16,),
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_attention=False,
            linear_path=linear_path,
        ).eval()


def images_of(count: int = 16, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Return smooth random images in [-1, 1]: coarse noise, enlarged."""
    coarse = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def fitted_autoencoder() -> LatentAutoencoder:
    autoencoder = autoencoder_of(linear_path=True)
    assert autoencoder.linear_path is not None
    autoencoder.linear_path.fit(images_of(64).chunk(4))
    return autoencoder


def reconstruct(autoencoder: LatentAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return autoencoder.decode(LatentAutoencoder.split(autoencoder.encode(pixels))[0])


def test_without_the_linear_path_the_autoencoder_is_the_stock_one_to_the_bit(tmp_path: Path) -> None:
    autoencoder = autoencoder_of()
    autoencoder.save_pretrained(tmp_path)
    stock = AutoencoderKL.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=False).eval()
    pixels = images_of(2)
    with torch.no_grad():
        posterior = stock.encode(pixels).latent_dist
        assert torch.equal(autoencoder.encode(pixels), torch.cat([posterior.mean, posterior.logvar], dim=1))
        assert torch.equal(autoencoder.decode(posterior.mean), stock.decode(posterior.mean).sample)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_a_folder_written_by_diffusers_alone_opens(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=7,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
    stock.save_pretrained(tmp_path)
    autoencoder = LatentAutoencoder.from_pretrained(tmp_path).eval()
    assert (autoencoder.latent_channels, autoencoder.downsample_factor) == (7, 2)
    with torch.no_grad():
        assert torch.equal(autoencoder.decode(torch.ones(1, 7, 4, 4)), stock.decode(torch.ones(1, 7, 4, 4)).sample)


def test_with_the_linear_path_stock_files_still_open_plainly(tmp_path: Path) -> None:
    fitted_autoencoder().save_pretrained(tmp_path)
    AutoencoderKL.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=False)
    assert {"linear_path.json", "linear_path.safetensors"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("linear_path", "block_size_px"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_saved_and_read_back_it_gives_the_same_moments_and_pixels(
    tmp_path: Path, linear_path: bool, block_size_px: int
) -> None:
    autoencoder = autoencoder_of(linear_path=linear_path, block_size_px=block_size_px)
    if autoencoder.linear_path is not None:
        autoencoder.linear_path.fit(images_of(64).chunk(4))
    autoencoder.save_pretrained(tmp_path)
    back = LatentAutoencoder.from_pretrained(tmp_path).eval()
    pixels = images_of(2)
    assert autoencoder.downsample_factor == back.downsample_factor == 4
    with torch.no_grad():
        assert autoencoder.encode(pixels).shape == (2, 8, 8, 8)
        assert torch.equal(autoencoder.encode(pixels), back.encode(pixels))
    assert torch.equal(reconstruct(autoencoder, pixels), reconstruct(back, pixels))


def test_untrained_with_the_linear_path_it_reconstructs_far_better_than_without() -> None:
    held_out = images_of(8, seed=1)
    with_path = float(psnr(reconstruct(fitted_autoencoder(), held_out), held_out, data_range=2.0).mean())
    without = float(psnr(reconstruct(autoencoder_of(), held_out), held_out, data_range=2.0).mean())
    assert with_path > without + 8


def test_untrained_residual_adds_exactly_nothing() -> None:
    autoencoder, pixels = fitted_autoencoder(), images_of(2)
    assert autoencoder.linear_path is not None
    mean, logvar = LatentAutoencoder.split(autoencoder.encode(pixels).detach())
    assert torch.equal(mean, autoencoder.linear_path.encode(pixels))
    assert float(logvar.max()) == float(logvar.min()) == -6.0
    assert torch.equal(autoencoder.decode(mean).detach(), autoencoder.linear_path.decode(mean))


def test_fitting_twice_gives_the_same_weights_and_latents_of_unit_scale() -> None:
    first, second = fitted_autoencoder(), fitted_autoencoder()
    assert first.linear_path is not None
    assert second.linear_path is not None
    for ours, theirs in zip(first.linear_path.buffers(), second.linear_path.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    latents = first.linear_path.encode(images_of(64))
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_more_channels_explain_more_variance_in_falling_order() -> None:
    shares = LinearPath(patch_size_px=4, latent_channels=6).fit(images_of(64).chunk(4))
    assert bool((shares[:-1] >= shares[1:]).all())
    assert 0.5 < float(shares.sum()) <= 1.0


def test_the_linear_path_stays_float32_in_a_bfloat16_model() -> None:
    autoencoder, pixels = fitted_autoencoder(), images_of(2)
    assert autoencoder.linear_path is not None
    before = autoencoder.linear_path.encode(pixels)
    autoencoder.bfloat16()
    assert {buffer.dtype for buffer in autoencoder.linear_path.buffers()} == {torch.float32}
    assert torch.equal(autoencoder.linear_path.encode(pixels), before)
    assert {parameter.dtype for parameter in autoencoder.parameters()} == {torch.bfloat16}
    assert torch.isfinite(reconstruct(autoencoder, pixels)).all()


@pytest.mark.parametrize("images", [[], [torch.full((4, 3, 32, 32), -1.0)]])
def test_a_linear_path_without_variance_to_fit_is_refused(images: list[torch.Tensor]) -> None:
    with pytest.raises(DataError):
        LinearPath(patch_size_px=4, latent_channels=4).fit(images)


def test_the_fingerprint_follows_weights_and_config_and_nothing_else(tmp_path: Path) -> None:
    autoencoder = fitted_autoencoder()
    autoencoder.save_pretrained(tmp_path / "a")
    LatentAutoencoder.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert fingerprint(autoencoder) == fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    others = {fingerprint(autoencoder), fingerprint(autoencoder_of(seed=1)), fingerprint(autoencoder_of(seed=0))}
    assert len(others) == 3
    with torch.no_grad():
        assert autoencoder.linear_path is not None
        autoencoder.linear_path.decode_bias[0] += 1e-3
    assert fingerprint(autoencoder) not in others


def test_folders_that_are_no_autoencoder_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json and diffusion_pytorch_model\.safetensors missing"):
        LatentAutoencoder.from_pretrained(tmp_path)
    autoencoder_of().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderDC"}))
    with pytest.raises(CheckpointError, match="AutoencoderDC"):
        LatentAutoencoder.from_pretrained(tmp_path)


def test_a_damaged_weights_file_is_refused(tmp_path: Path) -> None:
    autoencoder_of().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError):
        LatentAutoencoder.from_pretrained(tmp_path)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="34 x 34 px"):
        autoencoder_of().encode(torch.zeros(1, 3, 34, 34))
    with pytest.raises(ConfigError, match="linear path by 8 to 4"):
        LatentAutoencoder(network=autoencoder_of().network, linear_path=LinearPath(patch_size_px=8, latent_channels=4))
    with pytest.raises(ConfigError, match="1 to 3 are possible"):
        LinearPath(patch_size_px=1, latent_channels=4)


def test_sampling_the_posterior_scales_the_noise_by_its_standard_deviation() -> None:
    moments = torch.cat([torch.full((1, 2, 4, 4), 3.0), torch.full((1, 2, 4, 4), 2 * float(np.log(0.5)))], dim=1)
    noise = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LatentAutoencoder.sample_posterior(moments, noise), 3.0 + 0.5 * noise)


def test_kl_divergence_equals_that_of_torch_distributions() -> None:
    moments = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, logvar = LatentAutoencoder.split(moments)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(kl_divergence(moments), wanted)


SCIKIT_IMAGE = {
    0.02: ((40.553343, 0.994293), (40.460276, 0.991442), (40.604929, 0.993713)),
    0.3: ((17.490392, 0.554495), (17.376030, 0.482827), (17.544986, 0.534768)),
}
"""PSNR and SSIM of the images below by scikit-image 0.26 in fp64: ``peak_signal_noise_ratio``, and
``structural_similarity`` with gaussian_weights, sigma 1.5 and use_sample_covariance False, as the SSIM paper has it."""


@pytest.mark.parametrize("noise", list(SCIKIT_IMAGE))
def test_psnr_and_ssim_equal_those_of_scikit_image(noise: float) -> None:
    reference = images_of(3, size=48)
    spoiled = (reference + noise * torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(4))).clamp(-1, 1)
    wanted_psnr, wanted_ssim = zip(*SCIKIT_IMAGE[noise], strict=True)
    assert psnr(spoiled, reference, data_range=2.0).tolist() == pytest.approx(wanted_psnr, rel=1e-5)
    assert ssim(spoiled, reference, data_range=2.0).tolist() == pytest.approx(wanted_ssim, abs=1e-4)


def test_equal_images_have_ssim_one_and_no_structural_gradient() -> None:
    reference = images_of(2)
    leaf = reference.clone().requires_grad_()
    similarity = ssim(leaf, reference, data_range=2.0)
    torch.testing.assert_close(similarity.detach(), torch.ones(2))
    torch.autograd.backward(similarity.sum())
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) < 1e-3


def objective_of(*, adversarial: bool = True, start_images: int = 100) -> AutoencoderObjective:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        discriminator = PatchDiscriminator(base_channels=8, num_layers=2, norm_num_groups=4) if adversarial else None
    return AutoencoderObjective(
        autoencoder=autoencoder_of(),
        discriminator=discriminator,
        l1_weight=1.0,
        structural_weight=0.25,
        kl_weight=1e-3,
        adversarial_weight=0.1,
        adversarial_start_images=start_images,
    )


def test_the_objective_is_the_weighted_sum_of_the_parts_it_reports() -> None:
    loss, parts = objective_of()(images_of(4), posterior_noise=torch.zeros(4, 4, 8, 8), images_seen=100)
    wanted = (
        parts["l1"]
        + 0.25 * parts["structural"]
        + 1e-3 * parts["kl"]
        + 0.1 * parts["generator"]
        + parts["discriminator"] / 128
    )
    torch.testing.assert_close(loss.detach(), wanted)
    assert not any(part.requires_grad for part in parts.values())


def test_the_discriminator_joins_only_after_the_warm_up() -> None:
    objective = objective_of()
    _, early = objective(images_of(4), posterior_noise=torch.zeros(4, 4, 8, 8), images_seen=99)
    _, late = objective(images_of(4), posterior_noise=torch.zeros(4, 4, 8, 8), images_seen=100)
    assert "generator" not in early
    assert {"generator", "discriminator"} <= set(late)


def test_the_discriminator_takes_no_part_of_the_clip_norm_and_learns_as_fast() -> None:
    objective = objective_of()
    discriminator = objective.discriminator
    assert discriminator is not None
    loss, _ = objective(images_of(4), posterior_noise=torch.zeros(4, 4, 8, 8), images_seen=100)
    torch.autograd.backward(loss)
    norms = [
        torch.nn.utils.get_total_norm([one.grad for one in part.parameters() if one.grad is not None])
        for part in (objective.codec, discriminator)
    ]
    assert 0 < float(norms[1]) < 0.1 * float(norms[0])
    before = [one.detach().clone() for one in discriminator.parameters()]
    torch.optim.AdamW(discriminator.parameters(), lr=1e-3, weight_decay=0.0).step()
    moved = [(one.detach() - was).abs().median() for one, was in zip(discriminator.parameters(), before, strict=True)]
    assert min(moved) > 0.99e-3  # a first step of AdamW is the learning rate, unless eps counts


def test_each_adversary_moves_only_its_own_weights() -> None:
    discriminator = objective_of().discriminator
    assert discriminator is not None
    reconstruction = images_of(2).requires_grad_()
    torch.autograd.backward(generator_hinge_loss(discriminator, reconstruction).sum())
    assert reconstruction.grad is not None
    assert float(reconstruction.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    fresh = images_of(2, seed=5).requires_grad_()
    torch.autograd.backward(discriminator_hinge_loss(discriminator, images_of(2), fresh).sum())
    assert fresh.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_the_discriminator_learns_to_tell_two_kinds_of_images_apart() -> None:
    discriminator = objective_of().discriminator
    assert discriminator is not None
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    real, fake = images_of(8), torch.zeros(8, 3, 32, 32)
    losses = []
    for _ in range(15):
        loss = discriminator_hinge_loss(discriminator, real, fake).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_an_empty_slot_of_weight_zero_does_not_count() -> None:
    objective, pixels = objective_of(adversarial=False), images_of(4)
    noise = torch.zeros(4, 4, 8, 8)
    spoiled = pixels.clone()
    spoiled[2] = 1.0
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0])
    clean, _ = objective(pixels, posterior_noise=noise, images_seen=0, weights=weights)
    other, _ = objective(spoiled, posterior_noise=noise, images_seen=0, weights=weights)
    torch.testing.assert_close(clean, other)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_after_an_empty_slot_the_gradient_does_not_depend_on_how_the_batch_is_split(parts: int) -> None:
    """As in the step of the diffusion: the mean over micro-batches is the sum over the good slots by all slots."""
    objective, pixels = objective_of(adversarial=False), images_of(8)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    step = AutoencoderStep(objective, channels_last=False)
    noise = torch.randn(8, 4, 8, 8)
    batch = {"pixels": torch.as_tensor(tensor_to_pixels(pixels)), "posterior_noise": noise, "weights": weights}

    def gradient(rows: list[torch.Tensor], scale: float) -> tuple[torch.Tensor, float]:
        objective.zero_grad()
        total = 0.0
        for chosen in rows:
            loss, sums = step({name: value[chosen] for name, value in batch.items()}, 0)
            torch.autograd.backward(loss * scale / len(rows))
            total += float(sums["loss"])
        return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]), total

    good, summed = gradient([weights.nonzero()[:, 0]], 7 / 8)
    split, also_summed = gradient(list(torch.arange(8).chunk(parts)), 1.0)
    torch.testing.assert_close(split, good, rtol=1e-3, atol=1e-6)
    assert also_summed == pytest.approx(summed)


def test_training_improves_the_reconstruction() -> None:
    objective, pixels = objective_of(adversarial=False), images_of(8)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, _ = objective(pixels, posterior_noise=torch.zeros(8, 4, 8, 8), images_seen=0)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


class _Brightness(torch.nn.Module):
    """A discriminator whose score is known: three times the mean of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.gain * pixels.mean(dim=(1, 2, 3), keepdim=True)


def test_the_adversarial_losses_have_the_signs_of_a_hinge() -> None:
    """Scores are high for photographs: the generator wants them for its images, the discriminator the contrary."""
    bright, dark = torch.full((2, 3, 8, 8), 0.5), torch.full((2, 3, 8, 8), -0.5)
    judge = _Brightness()
    torch.testing.assert_close(generator_hinge_loss(judge, bright), torch.full((2,), -1.5))
    torch.testing.assert_close(generator_hinge_loss(judge, dark), torch.full((2,), 1.5))
    torch.testing.assert_close(discriminator_hinge_loss(judge, bright, dark), torch.zeros(2))  # beyond both margins
    torch.testing.assert_close(discriminator_hinge_loss(judge, dark, bright), torch.full((2,), 2.5))
    torch.testing.assert_close(discriminator_hinge_loss(judge, 0 * dark, 0 * dark), torch.ones(2))
