"""Samplers and steps on a trained model: how far latents are from converged ones, and what a judge says of images.

``python -m benchmarks.sampler_curve --model RUN --images SET``. For each sampler and number of steps: calls of the
network an image; distance of the latents of 64 images to those of the same noise after 60 steps of Heun, relative to
their norm; and agreement of a judge, trained on the photographs of SET, with the labels asked for. ``dpmpp_sde`` has no
distance: it goes another way.

The JSON line: the reference is the agreement after 50 steps of DDIM, ours that of the cheapest sampler whose agreement
is not lower by more than .01.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measuring import report
from synfundus.artifacts.model import Model, decode_images, guidance_of
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.config.generation import SampleConfig
from synfundus.diffusion.sampling import FLOW_SAMPLERS, SamplerName, SamplerSettings, sample_latents, scheduler_for
from synfundus.evaluation.fit import FitRecipe
from synfundus.evaluation.judge import Judge, evaluate_label_control, train_judge
from synfundus.evaluation.label_control import headline
from synfundus.seeding import keyed_normal, keyed_normal_series
from synfundus.stages import build
from synfundus.stages.judging import JUDGE_SIZE_PX, read_photographs, reconstruct
from synfundus.storage.manifest import load_shard_set

CPU = torch.device("cpu")
BATCH = 32
JUDGE_IMAGES = 14_000
REFERENCE_STEPS, REFERENCE_IMAGES = 60, 64
STEPS = (6, 10, 15, 20)
SAMPLERS: tuple[SamplerName, ...] = ("ddim", "dpmpp", "dpmpp_sde", "unipc", "euler", "heun")
JUDGED: tuple[SamplerName, ...] = ("ddim", "dpmpp", "dpmpp_sde", "unipc")
WITHIN = 0.01


def latents_of(model: Model, states: NDArray[np.int64], settings: SamplerSettings) -> torch.Tensor:
    """Return the latents of images 0, 1, ... of seed 0, ``[n, c, lh, lw]``."""
    found = []
    for first in range(0, len(states), BATCH):
        images = range(first, min(first + BATCH, len(states)))
        series = keyed_normal_series(0, "sample-noise", images, model.latent_shape)
        with torch.no_grad():
            found.append(
                sample_latents(
                    model.denoiser,
                    initial_noise=torch.from_numpy(keyed_normal(0, "sample", images, model.latent_shape)),
                    scheduler=scheduler_for(settings.sampler, model.schedule_settings),
                    num_steps=settings.num_steps,
                    states=torch.from_numpy(states[first : first + BATCH]),
                    guidance=guidance_of(settings, model.label_schema),
                    step_noise=map(torch.from_numpy, series),
                )
            )
    return torch.cat(found)


def trained_judge(model: Model, image_set_url: str) -> tuple[Judge, NDArray[np.int64]]:
    """Return a judge of a set's training photographs, and the label states of its held-out ones."""
    image_set = load_shard_set(image_set_url, kind="images")
    train, held_out = read_photographs(image_set)
    restored = train.pixels.copy()
    half = len(train) // 2
    restored[:half] = reconstruct(model.autoencoder, train.pixels[:half], device=CPU)
    judge = train_judge(
        pixels=train.pixels,
        reconstructions=restored,
        states=train.states,
        schema=model.label_schema,
        image_size_px=min(JUDGE_SIZE_PX, train.pixels.shape[1]),
        recipe=FitRecipe(num_samples=JUDGE_IMAGES, batch_size=32, lr=6e-3, weight_decay=0.02),
        seed=0,
        on_step=lambda images, loss: None,
    )
    return judge, held_out.states


def plans(samplers: Sequence[SamplerName], steps: Sequence[int]) -> Iterator[tuple[SamplerName, int]]:
    """Yield what is measured, the reference of the agreement first; Heun calls the network twice a step."""
    yield "ddim", 50
    for sampler in samplers:
        for num_steps in steps:
            yield sampler, (num_steps + 1) // 2 if sampler == "heun" else num_steps


def agreement(judge: Judge, pixels: NDArray[np.uint8], states: NDArray[np.int64]) -> float:
    """Return the mean over labels of a judge's headline figure."""
    figures = headline(evaluate_label_control(judge, pixels, states))
    return float(np.mean([value for value in figures.values() if value is not None]))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--judged", nargs="+", default=JUDGED, help="samplers whose images are judged too")
    parser.add_argument("--out", type=Path, help="file for the table")
    given = parser.parse_args()
    model = load_pipeline(find_pipeline(given.model), device=CPU)
    judge, known = trained_judge(model, given.images)
    states = np.resize(known, (given.num_images, known.shape[1]))
    base = build.sampler_settings(SampleConfig(), model.recommended_sampling, schema=model.label_schema)
    flow = model.schedule_settings["prediction_type"] == "flow_velocity"
    samplers = [one for one in given.samplers if not flow or one in FLOW_SAMPLERS]
    some = slice(REFERENCE_IMAGES)
    converged = latents_of(model, states[some], replace(base, sampler="heun", num_steps=REFERENCE_STEPS))
    lines = ["sampler     steps  calls  distance  agreement"]
    print(lines[0], flush=True)
    found: list[tuple[int, float]] = []
    for sampler, num_steps in plans(samplers, given.steps):
        calls = 2 * num_steps - 1 if sampler == "heun" else num_steps
        wanted = states if sampler in given.judged else states[some]
        latents = latents_of(model, wanted, replace(base, sampler=sampler, num_steps=num_steps))
        distance = float((latents[some] - converged).norm() / converged.norm())
        said = f"{'-':>9}"
        if sampler in given.judged:
            found.append((calls, agreement(judge, decode_images(model, latents), states)))
            said = f"{found[-1][1]:9.3f}"
        shown = f"{'-':>8}" if sampler == "dpmpp_sde" else f"{distance:8.4f}"
        lines.append(f"{sampler:10}  {num_steps:5}  {calls:5}  {shown}  {said}")
        print(lines[-1], flush=True)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n")
    (_, reference), *others = found
    ours = min((one for one in others if one[1] >= reference - WITHIN), default=found[0])
    print(f"cheapest within {WITHIN} of 50 steps of DDIM: {ours[0]} calls")
    report(name="sampler_curve", ours=ours[1], reference=reference, goal=0.99, unit="agreement")


if __name__ == "__main__":
    main()
