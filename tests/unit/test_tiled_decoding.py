"""Tiles of latents make the image that the whole makes: exactly where the decoder is local, nearly where it is not."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_pipeline import LATENT_MEAN, LATENT_STD, SCHEDULE, SCHEMA, tiny_autoencoder
from torch.nn import functional

from synfundus.artifacts.model import ModelSetup, decode_images
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.tiled_decoding import decode_in_tiles, tile_starts


def latents() -> torch.Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("edge", "tile"), [(8, 3), (8, 7), (64, 32), (128, 32), (65, 16), (9, 2)])
def test_tiles_cover_the_edge_and_overlap_by_a_quarter(edge: int, tile: int) -> None:
    starts = tile_starts(edge, tile)
    assert (starts[0], starts[-1] + tile) == (0, edge)
    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(0 < step <= max(1, tile - round(tile / 4)) for step in steps)


@pytest.mark.parametrize("tile_px", [8, 12, 28])
def test_a_decoder_that_sees_each_latent_alone_is_exact_in_tiles(tile_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: object, given: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(given[:, [0, 1, 0]], scale_factor=4)

    monkeypatch.setattr(LatentAutoencoder, "decode", decode)
    tiled = decode_in_tiles(tiny_autoencoder(), latents(), tile_px=tile_px)
    torch.testing.assert_close(tiled, decode(None, latents()))


@torch.no_grad()
def test_tiles_make_nearly_the_same_image() -> None:
    """Group norms see a tile; a decoder of random weights given noise is their worst case: .33 of the contrast."""
    autoencoder = tiny_autoencoder(linear_path=False)
    whole = autoencoder.decode(latents())
    difference = decode_in_tiles(autoencoder, latents(), tile_px=24) - whole
    assert 0 < float(difference.abs().mean()) < 0.4 * float(whole.std())


@torch.no_grad()
def test_an_image_that_fits_into_one_tile_is_decoded_as_a_whole() -> None:
    autoencoder = tiny_autoencoder()
    assert torch.equal(decode_in_tiles(autoencoder, latents(), tile_px=32), autoencoder.decode(latents()))
    setup = ModelSetup(
        autoencoder=autoencoder,
        schedule_settings=SCHEDULE,
        label_schema=SCHEMA,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
        image_size_px=32,
        latent_set_identity="1" * 64,
        autoencoder_fingerprint="2" * 64,
    )
    images = [decode_images(setup, latents(), tile_px=tile_px) for tile_px in (0, 32, 16)]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()
