from __future__ import annotations

from typing import Any

import pytest
from tiny_pipeline import SCHEMA, tiny_autoencoder

from synfundus.config.diffusion import DiffusionConfig
from synfundus.config.generation import SAMPLING_DEFAULTS, SampleConfig
from synfundus.diffusion.sampling import SamplerSettings, scheduler_for
from synfundus.stages import build
from synfundus.storage.manifest import ShardSet

PROPERTIES = {
    "latent_mean": [0.0],
    "latent_std": [1.0],
    "image_size_px": 32,
    "autoencoder_fingerprint": "0" * 64,
}
ADVICE = SamplerSettings("heun", 7, 1.5, (0.1, 0.9), 0.5)


@pytest.mark.parametrize("sampler", ["ddim", "heun", None])
def test_a_model_recommends_a_sampler_that_can_draw_from_it(sampler: Any) -> None:
    flow = DiffusionConfig(
        prediction_type="flow_velocity", zero_terminal_snr=False, min_snr_gamma=None, beta_schedule="scaled_linear"
    )
    latents = ShardSet("set", "latents", SCHEMA, (), properties=PROPERTIES)
    wanted = build.sampler_settings(SampleConfig(sampler=sampler, num_steps=9))
    setup = build.model_setup(flow, latents, tiny_autoencoder(), wanted)
    assert setup.recommended_sampling is not None
    assert setup.recommended_sampling.num_steps == 9
    assert setup.recommended_sampling.sampler == ("heun" if sampler == "heun" else "dpmpp")
    scheduler_for(setup.recommended_sampling.sampler, setup.schedule_settings)


def test_given_values_go_before_the_models_and_those_before_the_defaults() -> None:
    assert build.sampler_settings(SampleConfig()) == SamplerSettings(**SAMPLING_DEFAULTS)
    assert build.sampler_settings(SampleConfig(), ADVICE) == ADVICE
    mixed = build.sampler_settings(SampleConfig(guidance_scale=0.0, guidance_rescale=0.0), ADVICE)
    assert mixed == SamplerSettings("heun", 7, 0.0, (0.1, 0.9), 0.0)


@pytest.mark.parametrize("wrong", [{"sampler": "plms"}, {"guidance_interval": [0.5]}, {"num_steps": "many"}])
def test_a_recommendation_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    document = {**SAMPLING_DEFAULTS, **wrong}
    with pytest.raises((ValueError, TypeError, KeyError)):
        SamplerSettings.from_document(document)
    assert SamplerSettings.from_document(SAMPLING_DEFAULTS) == SamplerSettings(**SAMPLING_DEFAULTS)
