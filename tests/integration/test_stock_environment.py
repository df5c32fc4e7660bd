"""The stock pipeline in an environment without synfundus: `make stock-check` makes one and runs these."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_pipeline import SCHEDULE, write_tiny_pipeline

from synfundus.artifacts.model import Model, generate_images, guidance_of
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.diffusion.sampling import SamplerName, SamplerSettings, sample_latents, scheduler_for

PYTHON = os.environ.get("SYNFUNDUS_STOCK_PYTHON")
CPU = torch.device("cpu")
PROBE = Path(__file__).parents[1] / "stock_probe.py"
SAMPLERS: dict[SamplerName, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
PLAIN = SamplerSettings("dpmpp", 10, 2.0, (0.0, 1.0), 0.0)
EPSILON = SCHEDULE | {
    "schedule_kind": "linear",
    "num_timesteps": 1000,
    "beta_start": 1e-4,
    "zero_terminal_snr": False,
    "prediction_type": "epsilon",
}
"""It ends at a noise level of 157, and synfundus starts at 20."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="`make stock-check` gives SYNFUNDUS_STOCK_PYTHON"),
]


def _ours(
    model: Model, noise: NDArray[np.float32], rows: list[dict[str, int]], settings: SamplerSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    states = np.array([model.label_schema.encode(row) for row in rows], dtype=np.int64)
    with torch.no_grad():
        latents = sample_latents(
            model.denoiser,
            initial_noise=torch.from_numpy(noise),
            scheduler=scheduler_for(settings.sampler, model.schedule_settings),
            num_steps=settings.num_steps,
            states=torch.from_numpy(states),
            guidance=guidance_of(settings, model.label_schema),
        )
    pixels = generate_images(model, model.denoiser, initial_noise=noise, states=states, settings=settings, device=CPU)
    return latents.numpy(), pixels


def _theirs(folder: Path, scratch: Path, **request: Any) -> dict[str, NDArray[Any]]:
    """Answer a request in the other environment: no network, no remote code, no synfundus."""
    np.savez(scratch / "request.npz", **request)
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    flags = {"HF_HUB_OFFLINE": "1", "DIFFUSERS_DISABLE_REMOTE_CODE": "1", "HOME": str(scratch)}
    done = subprocess.run(
        [str(PYTHON), "-I", str(PROBE), str(scratch / "request.npz"), str(scratch / "answer.npz")],
        cwd=folder,
        env=kept | flags,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(scratch / "answer.npz"))


def _far(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    ("schedule", "advice", "samplers"),
    [
        pytest.param(SCHEDULE, PLAIN, ["ddim", "dpmpp", "euler"], id="v_prediction"),
        pytest.param(SCHEDULE, replace(PLAIN, guidance_rescale=0.7), ["ddim", "dpmpp", "euler"], id="rescaled"),
        pytest.param(SCHEDULE, replace(PLAIN, sampler="ddim"), ["dpmpp", "ddim", "euler"], id="ddim"),
        pytest.param(SCHEDULE, replace(PLAIN, sampler="heun", num_steps=5), [], id="heun"),
        pytest.param(
            SCHEDULE, replace(PLAIN, guidance_interval=(0.2, 0.8), guidance_rescale=0.5), [], id="guidance interval"
        ),
        pytest.param(EPSILON, replace(PLAIN, sampler="euler"), ["dpmpp", "euler"], id="epsilon, noise cut off"),
    ],
)
def test_a_stock_pipeline_draws_the_same_images(
    tmp_path: Path, schedule: dict[str, Any], advice: SamplerSettings, samplers: list[SamplerName]
) -> None:
    folder = write_tiny_pipeline(tmp_path / "export", schedule_settings=schedule, recommended_sampling=advice)
    model = load_pipeline(folder, device=CPU)
    random = np.random.default_rng(0)
    names = list(zip(model.label_schema.names, model.label_schema.num_values, strict=True))
    rows = [{name: int(random.integers(count)) for name, count in names if random.random() < 0.7} for _ in range(8)]
    noise = random.standard_normal((8, *model.latent_shape)).astype(np.float32)
    answer = _theirs(
        folder / "diffusers",
        tmp_path,
        rows=json.dumps(rows),
        noise=noise,
        samplers=[SAMPLERS[name] for name in samplers or ["euler"]],
        num_steps=advice.num_steps,
        guidance_scale=advice.guidance_scale,
        guidance_rescale=advice.guidance_rescale,
    )
    for at, sampler in enumerate(samplers):
        latents, pixels = _ours(model, noise, rows, replace(advice, sampler=sampler))
        assert np.abs(latents - answer["latents"][at]).max() == 0.0, sampler
        assert _far(pixels, answer["pixels"][at]) <= 1, sampler
        assert pixels.std() > 1.0
    torch.manual_seed(0)  # the card's own call: two images of the first label's value 1
    own = torch.randn(2, *model.latent_shape).numpy()
    _, pixels = _ours(model, own, [{model.label_schema.names[0]: 1}] * 2, advice)
    assert _far(pixels, answer["shown"]) <= 1
