"""Drawing images against the loop of diffusers' pipelines: same network, noise, labels, batch and decoder.

``python -m benchmarks.sample --model RUN --images SET``. Theirs: ``for t in scheduler.timesteps`` with both halves of
classifier-free guidance in one batch at every step, then ``decode``. Ours is `generate_batch` without writing files.
Three lines: plain (the model's sampler and steps on both sides); with guidance in the middle half of the way; and with
the fundus presets' sampler and steps against 50 of DDIM. Agreement is a judge's, with the labels asked for.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import interleaved, rate, report
from benchmarks.sampler_curve import CPU, agreement, trained_judge
from synfundus.artifacts.model import Model, generate_batch
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.config.generation import SampleConfig
from synfundus.config.loader import load_config
from synfundus.diffusion.sampling import SamplerSettings, scheduler_for
from synfundus.models.pixels import tensor_to_pixels
from synfundus.seeding import keyed_normal
from synfundus.stages import build

BATCH = 16
INTERVAL = (0.25, 0.75)


@torch.no_grad()
def their_batch(model: Model, states: torch.Tensor, batch: int, settings: SamplerSettings) -> NDArray[np.uint8]:
    """Draw a batch as diffusers' pipelines do: uint8 ``[b, h, w, 3]``."""
    images = range(batch * BATCH, (batch + 1) * BATCH)
    scheduler = scheduler_for(settings.sampler, model.schedule_settings)
    scheduler.set_timesteps(settings.num_steps)
    latents = torch.from_numpy(keyed_normal(0, "sample", images, model.latent_shape)) * scheduler.init_noise_sigma
    both_states = torch.cat([torch.zeros_like(states), states])
    for timestep in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        unconditional, conditional = model.denoiser(both, timestep.expand(len(both)), both_states).chunk(2)
        guided = unconditional + settings.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (model.latent_mean, model.latent_std))
    return tensor_to_pixels(model.autoencoder.decode(latents * std + mean))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--judged", type=int, default=256, help="images of each line that are judged; 0: none")
    given = parser.parse_args()
    model = load_pipeline(find_pipeline(given.model), device=CPU)
    judge, known = trained_judge(model, given.images) if given.judged else (None, np.zeros((1, 1), dtype=np.int64))
    states = np.resize(known, (max(given.judged, BATCH), len(model.label_schema.labels)))
    rows = [model.label_schema.decode(row) for row in states.tolist()]
    base = build.sampler_settings(SampleConfig(), model.recommended_sampling)
    preset = load_config(preset="fundus512", file=None, settings=[], flags=[]).config.sample
    fewer = build.sampler_settings(SampleConfig(sampler=preset.sampler, num_steps=preset.num_steps), base)
    lines = (
        ("sample", base, base, 1.0),
        ("sample_interval", replace(base, guidance_interval=INTERVAL), base, 1.3),
        ("sample_preset_steps", fewer, replace(base, sampler="ddim", num_steps=50), 2.0),
    )

    def ours(batch: int, settings: SamplerSettings) -> NDArray[np.uint8]:
        return generate_batch(model, rows, batch, batch_size=BATCH, seed=0, settings=settings, device=CPU)

    def theirs(batch: int, settings: SamplerSettings) -> NDArray[np.uint8]:
        part = torch.from_numpy(states[batch * BATCH : (batch + 1) * BATCH])
        return their_batch(model, part, batch, settings)

    for name, our_settings, their_settings, goal in lines:
        sides = ((ours, our_settings), (theirs, their_settings))
        measured = interleaved(
            *(lambda _, draw=draw, how=how: rate(lambda: len(draw(0, how))) for draw, how in sides), pairs=given.pairs
        )
        if judge is not None:
            said = [
                agreement(judge, np.concatenate([draw(batch, how) for batch in range(len(states) // BATCH)]), states)
                for draw, how in sides
            ]
            print(f"{name}: agreement ours {said[0]:.3f}, reference {said[1]:.3f}")
        report(name=name, ours=measured[0], reference=measured[1], goal=goal, unit="images/s", ratios=measured[2])


if __name__ == "__main__":
    main()
