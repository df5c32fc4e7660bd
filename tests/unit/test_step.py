"""The training step: a loss whose mean over ranks is that of the global batch, and normalised latents."""

from __future__ import annotations

import pytest
import torch
from tiny_pipeline import LATENT_MEAN, LATENT_STD, tiny_denoiser
from torch import Tensor

from synfundus.diffusion.parametrisation import PredictionType
from synfundus.diffusion.schedule import build_schedule
from synfundus.training.step import LatentDiffusionStep

SLOTS = 8


def step_of(prediction_type: PredictionType = "v_prediction", *, silent: bool = False) -> LatentDiffusionStep:
    denoiser = tiny_denoiser()
    if silent:
        torch.nn.init.zeros_(denoiser.unet.conv_out.weight)
        torch.nn.init.zeros_(denoiser.unet.conv_out.bias)
    return LatentDiffusionStep(
        denoiser,
        schedule=build_schedule(
            kind="cosine", num_timesteps=50, beta_start=0.001, beta_end=0.02, zero_terminal_snr=False
        ),
        prediction_type=prediction_type,
        min_snr_gamma=None,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
        channels_last=False,
    )


def batch_of(weights: list[float]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "moments": torch.randn(SLOTS, 4, 8, 8, generator=generator),
        "states": torch.randint(0, 3, (SLOTS, 3), generator=generator),
        "noise": torch.randn(SLOTS, 2, 8, 8, generator=generator),
        "posterior_noise": torch.randn(SLOTS, 2, 8, 8, generator=generator),
        "timestep": torch.randint(0, 50, (SLOTS,), generator=generator),
        "weights": torch.tensor(weights, dtype=torch.float32),
    }


@pytest.mark.parametrize("ranks", [2, 4, 8])
@torch.no_grad()
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch_where_samples_are_missing(ranks: int) -> None:
    step, batch = step_of(), batch_of([1, 0, 1, 1, 0, 0, 1, 1])
    whole, sums = step(batch, 0)
    parts = [step({name: rows.chunk(ranks)[rank] for name, rows in batch.items()}, 0) for rank in range(ranks)]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole)
    for name, value in sums.items():
        torch.testing.assert_close(torch.stack([part[name] for _, part in parts]).sum(), value)
    assert float(sums["images"]) == 5
    torch.testing.assert_close(whole, sums["loss"] / SLOTS)


@torch.no_grad()
def test_the_network_learns_latents_of_mean_zero_and_variance_one() -> None:
    """A network that says 0 is wrong by the latents themselves."""
    batch = batch_of([1] * SLOTS)
    batch["moments"][:, 2:] = -30.0  # a posterior without spread
    loss, _ = step_of("sample", silent=True)(batch, 0)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (LATENT_MEAN, LATENT_STD))
    torch.testing.assert_close(loss, ((batch["moments"][:, :2] - mean) / std).square().mean(), rtol=1e-4, atol=1e-4)
