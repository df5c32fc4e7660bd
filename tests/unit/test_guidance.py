"""Guidance: what each kind does to a prediction, what it costs, and when it is the plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_data import UNGUIDED
from tiny_pipeline import LATENT_MEAN, LATENT_STD, SCHEDULE, SCHEMA, tiny_autoencoder, tiny_denoiser
from torch import Tensor

from synfundus.artifacts.model import Model, generate_batch, guidance_of
from synfundus.diffusion.guidance import guided_prediction, states_to_predict
from synfundus.diffusion.sampling import Denoiser, Guidance, SamplerSettings, sample_latents, scheduler_for
from synfundus.errors import ConfigError, DataError
from synfundus.seeding import keyed_normal

PLAIN = SamplerSettings("ddim", 4, 2.5, (0.0, 1.0), 0.0)
ROWS: list[dict[str, int | None]] = [{"dr_grade": 3, "is_gc": 1}, {"eye_side": 0}, {"is_gc": 0}]


def settings(**changes: Any) -> SamplerSettings:
    return SamplerSettings.from_document(PLAIN.to_document() | changes)


def states_of(rows: list[dict[str, int | None]] = ROWS) -> Tensor:
    return torch.tensor([SCHEMA.encode(row) for row in rows])


def latents(guidance: Guidance, *, denoise: Denoiser | None = None) -> Tensor:
    with torch.no_grad():
        return sample_latents(
            denoise or tiny_denoiser(),
            initial_noise=torch.from_numpy(keyed_normal(4, "sample", range(len(ROWS)), (2, 8, 8))),
            scheduler=scheduler_for("ddim", SCHEDULE),
            num_steps=4,
            states=states_of(),
            guidance=guidance,
        )


class Counting:
    """A network that notes how many rows each pass has."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.rows = inner, list[int]()

    def __call__(self, x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        self.rows.append(len(x_t))
        return self.inner(x_t, timestep, states)


def additive(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
    """A network in which labels act independently of each other: grade in tens, the second label in units."""
    effect = 10.0 * states[:, 0] + states[:, 1]
    return effect[:, None, None, None].float().expand_as(x_t)


def prediction(guidance: Guidance, states: Tensor, denoise: Denoiser = additive) -> list[float]:
    x_t, timestep = torch.zeros(len(states), 1, 2, 2), torch.zeros(len(states))
    return guided_prediction(denoise, x_t, timestep, states_to_predict(states, guidance), guidance)[:, 0, 0, 0].tolist()


def test_guidance_by_the_model_itself_is_none() -> None:
    network = tiny_denoiser()
    assert torch.equal(latents(Guidance(3.0, guide=network), denoise=network), latents(UNGUIDED))


def test_guidance_leads_from_the_guides_prediction_through_the_models() -> None:
    def weaker(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        return 0.5 * additive(x_t, timestep, states)

    assert prediction(Guidance(3.0, guide=weaker), torch.tensor([[2, 1]])) == [0.5 * 21 + 3 * 0.5 * 21]


def test_equal_weights_of_all_labels_are_plain_guidance() -> None:
    every = dict.fromkeys(SCHEMA.names, 2.5)
    plain = guidance_of(PLAIN, SCHEMA)
    assert guidance_of(settings(guidance_weight=every), SCHEMA) == plain
    assert guidance_of(settings(guidance_weight=every, guidance_scale=1.0), SCHEMA) == plain, "whatever the scale"
    assert torch.equal(latents(guidance_of(settings(guidance_weight={"is_gc": 2.5}), SCHEMA)), latents(plain))
    assert not torch.allclose(latents(guidance_of(settings(guidance_weight={"is_gc": 4.0}), SCHEMA)), latents(plain))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_where_labels_are_independent_each_has_its_own_weight(scale: float) -> None:
    guidance = guidance_of(settings(guidance_scale=scale, guidance_weight={"dr_grade": 3.0}), SCHEMA)
    assert prediction(guidance, torch.tensor([[2, 1, 0], [0, 1, 0]])) == [3.0 * 20 + scale * 1, scale * 1]


def test_negative_labels_that_are_unknown_are_plain_guidance_and_others_are_led_away_from() -> None:
    plain = latents(guidance_of(PLAIN, SCHEMA))
    assert torch.equal(latents(Guidance(2.5, negative=[0, 0, 0])), plain)
    away = guidance_of(settings(negative_label={"is_gc": 1}), SCHEMA)
    assert away.negative == [0, 2, 0]
    assert not torch.allclose(latents(away), plain)
    assert prediction(Guidance(3.0, negative=[1, 2, 0]), torch.tensor([[2, 1, 0]])) == [12 + 3 * (21 - 12)]
    without_grade = Guidance(1.0, negative=[1, 0, 0], label_weights={0: 2.0})
    assert prediction(without_grade, torch.tensor([[2, 1, 0]])) == [21 + (21 - 11)], (
        "without means as the negative has it"
    )


@pytest.mark.parametrize(
    ("guidance", "alone", "with_guide", "of_guide"),
    [
        (Guidance(1.0), [3], [3], []),
        (Guidance(2.0), [6], [3], [3]),
        (Guidance(0.0), [3], [], [3]),
        (Guidance(0.0, rescale=0.5), [6], [3], [3]),
        (Guidance(1.0, label_weights={0: 2.0}), [6], [6], []),
        (Guidance(2.0, label_weights={0: 1.0, 1: 3.0}), [6, 6], [6, 3], [3]),
    ],
)
def test_a_step_computes_no_prediction_that_it_does_not_need(
    guidance: Guidance, alone: list[int], with_guide: list[int], of_guide: list[int]
) -> None:
    network, guide = Counting(additive), Counting(additive)
    latents(guidance, denoise=network)
    assert network.rows == alone * 4
    network.rows.clear()
    latents(replace(guidance, guide=guide), denoise=network)
    assert (network.rows, guide.rows) == (with_guide * 4, of_guide * 4)


def test_outside_the_interval_no_weight_and_no_guide_costs_anything() -> None:
    network, guide = Counting(additive), Counting(additive)
    latents(Guidance(2.0, (0.5, 1.0), label_weights={0: 3.0}, guide=guide), denoise=network)
    assert network.rows == [3, 3, 6, 6]
    assert guide.rows == [3, 3]


def test_labels_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="is_pm"):
        guidance_of(settings(guidance_weight={"is_pm": 2.0}), SCHEMA)
    with pytest.raises(ConfigError, match="is_pm"):
        guidance_of(settings(negative_label={"is_pm": 1}), SCHEMA)
    with pytest.raises(DataError, match="is_gc"):
        guidance_of(settings(negative_label={"is_gc": 2}), SCHEMA)


def test_what_has_no_effect_is_not_in_the_document_so_that_earlier_folders_are_extended() -> None:
    assert sorted(PLAIN.to_document()) == [
        "guidance_interval",
        "guidance_rescale",
        "guidance_scale",
        "num_steps",
        "sampler",
    ]
    chosen = settings(guidance_weight={"is_gc": 4.0}, negative_label={"dr_grade": 0})
    assert SamplerSettings.from_document(chosen.to_document()) == chosen


@pytest.mark.parametrize("size", [1, 2])
def test_an_image_with_fresh_noise_at_each_step_does_not_depend_on_its_companions(size: int) -> None:
    denoiser = tiny_denoiser()
    model = Model(
        autoencoder=tiny_autoencoder(),
        denoiser=denoiser,
        schedule_settings=SCHEDULE,
        label_schema=SCHEMA,
        latent_mean=LATENT_MEAN,
        latent_std=LATENT_STD,
        image_size_px=32,
        latent_set_identity="1" * 64,
        autoencoder_fingerprint="2" * 64,
        latent_shape=(2, 8, 8),
        fingerprint="3" * 64,
        training_summary={},
        folder="",
    )

    def images(batch_size: int) -> np.ndarray[Any, Any]:
        batches = [
            generate_batch(
                model,
                ROWS,
                batch,
                batch_size=batch_size,
                seed=4,
                settings=settings(sampler="dpmpp_sde"),
                device=torch.device("cpu"),
            )
            for batch in range(-(-len(ROWS) // batch_size))
        ]
        return np.concatenate(batches)[: len(ROWS)].astype(int)

    whole, parts = images(len(ROWS)), images(size)
    assert np.abs(whole - parts).max() <= 1
    assert np.abs(whole[0] - whole[1]).max() > 1
