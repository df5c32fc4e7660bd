from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from foreign_models import dc_f32
from safetensors.torch import load_file
from tiny_pipeline import LATENT_MEAN, LATENT_STD, SCHEDULE, SCHEMA, tiny_autoencoder, write_tiny_pipeline

from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.artifacts.stock_pipeline import stock_autoencoder, stock_scheduler, why_not
from synfundus.diffusion.sampling import SamplerSettings, scheduler_for
from synfundus.diffusion.schedulers import plan_steps
from synfundus.models.autoencoder import LatentAutoencoder

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
ADVICE = SamplerSettings("ddim", 10, 2.0, (0.0, 1.0), 0.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export", recommended_sampling=ADVICE)


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return load_pipeline(exported, device=CPU)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_the_folder_names_only_classes_of_diffusers_and_leaves_no_way_to_forget_a_negative(exported: Path) -> None:
    index = json.loads((exported / "diffusers" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert {part[0] for name, part in index.items() if isinstance(part, list)} == {"diffusers", None}
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["force_zeros_for_empty_prompt"] is False
    assert index["add_watermarker"] is False
    assert not (exported / "model_index.json").exists()


@pytest.mark.parametrize("size_ids", [[0.0] * 6, [1024.0, 1024.0, 7.0, 3.0, 32.0, 32.0]])
def test_the_stock_unet_computes_what_ours_does_whatever_the_image_sizes(
    exported: Path, model: Model, size_ids: list[float]
) -> None:
    """Equal but for the order of a sum: a CPU may add up a row with columns of zeros in another one."""
    stock = UNet2DConditionModel.from_pretrained(exported / "diffusers" / "unet", low_cpu_mem_usage=False)
    states = torch.tensor([[5, 2, 0], [0, 1, 2]])
    x_t, timestep = _random(2, 2, 8, 8), torch.tensor([40, 40])
    for dtype, rounding in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        ours, theirs = copy.deepcopy(model.denoiser).to(dtype), copy.deepcopy(stock).to(dtype)
        with torch.no_grad():
            tokens, pooled = ours.conditioner(states)
            added = {"text_embeds": pooled, "time_ids": torch.tensor([size_ids] * 2, dtype=dtype)}
            found = theirs(x_t.to(dtype), timestep, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
            expected = ours(x_t.to(dtype), timestep, states)
        assert float((found - expected).abs().max()) < rounding


@pytest.mark.parametrize("pointwise", [True, False])
def test_the_stock_autoencoder_takes_and_gives_normalised_latents(pointwise: bool) -> None:
    ours = tiny_autoencoder()
    if not pointwise:
        config = {name: value for name, value in ours.network.config.items() if not name.startswith("_")}
        torch.manual_seed(0)
        bare = AutoencoderKL.from_config(config | {"use_quant_conv": False, "use_post_quant_conv": False})
        ours = LatentAutoencoder(network=bare.eval(), linear_path=None)
    stock = stock_autoencoder(ours, mean=LATENT_MEAN, std=LATENT_STD)
    assert (stock.config.scaling_factor, stock.config.shift_factor, stock.config.latents_mean) == (1.0, None, None)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (LATENT_MEAN, LATENT_STD))
    pixels, latents = _random(1, 3, 32, 32).clamp(-1, 1), _random(1, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(stock.decode(latents).sample, ours.decode(latents * std + mean))
        centre, logvar = ours.split(ours.encode(pixels))
        posterior = stock.encode(pixels).latent_dist
    torch.testing.assert_close(posterior.mean, (centre - mean) / std)
    torch.testing.assert_close(posterior.logvar, logvar - 2 * std.log(), rtol=1e-4, atol=1e-4)


class _Recorded:
    """In the place of diffusers' pipeline, which needs transformers: keeps what the card's example gives it."""

    given: dict[str, Any]

    @classmethod
    def from_pretrained(cls, folder: str) -> _Recorded:
        assert (Path(folder) / "model_index.json").exists()
        return cls()

    def __call__(self, **given: Any) -> _Recorded:
        self.given = given
        return self

    images = ()


@pytest.mark.parametrize("place", ["diffusers", "."])
def test_the_example_of_both_cards_composes_labels_as_the_conditioner_does(
    place: str, exported: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported if place == "diffusers" else exported / "diffusers"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(diffusers, "DiffusionPipeline", _Recorded)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(blocks[-1], names)
    assert blocks[-1].count("\n") == 12
    assert len(blocks) == (1 if place == "." else 2)
    rows = [{"dr_grade": 4, "is_gc": 0}, {"eye_side": 1}, {}]
    states = torch.tensor([model.label_schema.encode(row) for row in rows])
    with torch.no_grad():
        wanted = model.denoiser.conditioner(states)
    assert all(torch.equal(one, other) for one, other in zip(names["embed"](rows), wanted, strict=True))
    given = names["pipe"].given
    assert given["num_inference_steps"] == 10
    assert torch.equal(given["negative_pooled_prompt_embeds"][0], wanted[1][2])


def test_a_recommended_interval_of_guidance_is_kept_by_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = replace(ADVICE, sampler="euler", guidance_interval=(0.2, 0.8))
    folder = write_tiny_pipeline(tmp_path / "export", recommended_sampling=advice)
    monkeypatch.chdir(folder / "diffusers")
    monkeypatch.setattr(diffusers, "DiffusionPipeline", _Recorded)
    monkeypatch.setattr(_Recorded, "scheduler", scheduler_for("euler", SCHEDULE), raising=False)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[0], names)
    pipe, scales = names["pipe"], []
    pipe._guidance_scale = pipe.given["guidance_scale"]
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        scales.append((float(timestep), round(pipe._guidance_scale, 6)))
        pipe.given["callback_on_step_end"](pipe, step, timestep, {})
    assert [scale for _, scale in scales] == [2.0 if 0.2 <= 1 - at / 49 <= 0.8 else 1.0 for at, _ in scales]
    assert 1.0 < pipe.given["guidance_scale"] < 1.0 + 1e-6


@pytest.mark.parametrize(
    ("steps", "changes", "wanted"),
    [
        (10, {}, DDIMScheduler),
        (15, {}, DPMSolverMultistepScheduler),
        (10, {"zero_terminal_snr": False, "prediction_type": "epsilon"}, DPMSolverMultistepScheduler),
    ],
)
def test_the_stock_scheduler_takes_the_same_steps_as_ours(
    model: Model, steps: int, changes: dict[str, Any], wanted: type[Any]
) -> None:
    settings = SCHEDULE | changes
    setup = replace(model, schedule_settings=settings, recommended_sampling=replace(ADVICE, num_steps=steps))
    stock = stock_scheduler(setup)
    assert type(stock) is wanted
    ours = scheduler_for("ddim" if wanted is DDIMScheduler else "dpmpp", settings)
    plan_steps(ours, steps)
    stock.set_timesteps(steps)
    assert stock.timesteps.tolist() == ours.timesteps.tolist()
    assert np.array_equal(stock.alphas_cumprod[stock.timesteps], ours.alphas_cumprod[ours.timesteps])


def test_no_stock_pipeline_is_written_that_would_draw_something_else(model: Model, tmp_path: Path) -> None:
    flow = {"prediction_type": "flow_velocity", "num_timesteps": 1000, "shift": 1.0}
    exact = LatentAutoencoder(network=dc_f32(), linear_path=None)
    assert "flow" in why_not(replace(model, schedule_settings=flow))
    assert "AutoencoderDC" in why_not(replace(model, autoencoder=exact))
    assert why_not(model) == ""
    straight = write_tiny_pipeline(tmp_path / "export", schedule_settings=flow)
    assert not (straight / "diffusers").exists()
    assert why_not(replace(model, autoencoder=tiny_autoencoder(linear_path=True))).endswith(
        "which no stock decoder does"
    )
    assert why_not(replace(model, schedule_settings=flow)) in " ".join((straight / "README.md").read_text().split())


def test_the_embeddings_have_a_row_for_unknown_and_one_for_each_value(exported: Path) -> None:
    parts = load_file(exported / "diffusers" / "labels.safetensors")
    told = json.loads((exported / "diffusers" / "labels.json").read_text())["labels"]
    assert [label["name"] for label in told] == list(SCHEMA.names)
    assert [len(parts[f"label.{name}"]) for name in SCHEMA.names] == [6, 3, 3]
