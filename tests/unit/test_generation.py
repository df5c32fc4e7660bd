"""From noise and labels to pixels: the inverse of what training does to latents, one image at a time."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from tiny_pipeline import SCHEDULE, SCHEMA
from torch import Tensor

from synfundus.artifacts.model import Model, generate_batch, generate_images
from synfundus.diffusion.sampling import SamplerSettings

MEAN, STD = (0.5, -0.25), (2.0, 0.5)
CLEAN = 3.0
SETTINGS = SamplerSettings("ddim", 3, 1.0, (0.0, 1.0), 0.0)
CPU = torch.device("cpu")


class Decoder:
    """Remembers the latents it is given."""

    downsample_factor = 4

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.given.append(latents.clone())
        return torch.zeros(len(latents), 3, 8, 8)


class Network:
    """Predicts the same clean latents for everything; remembers the first noise and the labels of each batch."""

    def __init__(self) -> None:
        self.noise: list[Tensor] = []
        self.states: list[Tensor] = []
        self.last = -1.0

    def __call__(self, x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        if float(timestep[0]) >= self.last:
            self.noise.append(x_t.clone())
            self.states.append(states.clone())
        self.last = float(timestep[0])
        return torch.full_like(x_t, CLEAN)


def model_of(decoder: Decoder, network: Network) -> Model:
    return Model(
        autoencoder=cast(Any, decoder),
        denoiser=cast(Any, network),
        schedule_settings=SCHEDULE | {"prediction_type": "sample"},
        label_schema=SCHEMA,
        latent_mean=MEAN,
        latent_std=STD,
        image_size_px=8,
        latent_set_identity="1" * 64,
        autoencoder_fingerprint="2" * 64,
        latent_shape=(2, 2, 2),
        fingerprint="3" * 64,
        training_summary={},
        folder="",
    )


def test_the_decoder_gets_latents_with_the_mean_and_spread_of_the_set() -> None:
    decoder, network = Decoder(), Network()
    model = model_of(decoder, network)
    images = generate_images(
        model,
        model.denoiser,
        initial_noise=np.random.default_rng(0).standard_normal((5, 2, 2, 2), dtype=np.float32),
        states=np.zeros((5, 3), dtype=np.int64),
        settings=SETTINGS,
        device=CPU,
    )
    assert images.shape == (5, 8, 8, 3)
    found = torch.cat(decoder.given)
    expected = torch.tensor([CLEAN * std + mean for mean, std in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(found, expected[None, :, None, None].expand(5, 2, 2, 2))
    # what training does gives the network's own latents back
    back = (found - torch.tensor(MEAN)[None, :, None, None]) / torch.tensor(STD)[None, :, None, None]
    torch.testing.assert_close(back, torch.full_like(back, CLEAN))


def batch(number: int, size: int, rows: list[dict[str, int | None]]) -> tuple[Tensor, list[list[int]]]:
    network = Network()
    model = model_of(Decoder(), network)
    generate_batch(model, rows, number, batch_size=size, seed=4, settings=SETTINGS, device=CPU)
    return network.noise[0], network.states[0].tolist()


def test_an_image_has_its_own_noise_and_labels_in_every_batch() -> None:
    rows: list[dict[str, int | None]] = [{"dr_grade": 4}, {"is_gc": 1}, {"eye_side": 0}]
    noise, states = batch(1, 2, rows)
    alone, own = batch(2, 1, rows)
    assert torch.equal(noise[0], alone[0])
    earlier, _ = batch(0, 2, rows)
    assert not any(torch.equal(one, noise[0]) for one in (*earlier, noise[1]))
    assert states == [SCHEMA.encode(rows[2]), [0, 0, 0]], "beyond the last row nothing is asked for"
    assert own == states[:1]
