"""The same model as a stock ``StableDiffusionXLPipeline``, in ``diffusers/`` of a pipeline folder.

``DiffusionPipeline.from_pretrained`` opens it with remote code disabled and without synfundus, and it draws the same
images. Label tokens are its prompt embeddings, the pooled labels its pooled ones, all labels unknown its negative ones;
`labels.safetensors` has what they are made of. What changes in the networks changes nothing that they compute:

- The U-Net's projection of the pooled labels becomes SDXL's added embedding. The columns of its first layer that would
  see image sizes are zero.
- The autoencoder takes and gives normalised latents: mean and standard deviation are folded into the 1 x 1
  convolutions beside them, because pipelines read them from a config only for four channels, and some not at all.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file
from torch import Tensor

from synfundus.artifacts.model import ModelSetup
from synfundus.diffusion.sampler_settings import SamplerName
from synfundus.diffusion.schedulers import NoiseScheduler, Scheduler, scheduler_for, usable_timesteps
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.diffusers_classes import AutoencoderKL, UNet2DConditionModel
from synfundus.models.unet import ConditionalDenoiser
from synfundus.storage import documents

FOLDER_NAME = "diffusers"
LABELS_NAME = "labels.json"
EMBEDDINGS_NAME = "labels.safetensors"
_DEFAULT_SAMPLER: SamplerName = "dpmpp"
_SIZE_IDS = 6
"""Numbers of SDXL's image sizes and crops."""
_SIZE_WIDTH = 8
"""Width in which each of them is embedded, for columns that are zero."""
_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder", "feature_extractor")
_FOR_OTHER_SAMPLERS = {"clip_sample": False, "set_alpha_to_one": True}
"""What other schedulers take over by ``from_config``: DDIM's own default would clip the latents."""


def why_not(setup: ModelSetup) -> str:
    """Return why no stock pipeline draws the images of a model; empty where one does."""
    autoencoder = setup.autoencoder
    if not isinstance(autoencoder.network, AutoencoderKL):
        return f"its autoencoder is an {autoencoder.class_name}, and the pipeline works with AutoencoderKL alone"
    if autoencoder.linear_path is not None or autoencoder.block_size_px > 1:
        # a stock decoder upsamples and convolves: equal latents give equal pixels, so it draws no patch of pixels
        return "its autoencoder draws patches of pixels, which no stock decoder does"
    if setup.schedule_settings["prediction_type"] == "flow_velocity":
        return "it predicts the velocity of a flow: the schedulers that the pipeline works with round its times"
    return ""


def stock_scheduler(setup: ModelSetup) -> Scheduler:
    """Return the scheduler of diffusers that samples as the model recommends; of no recommendation DPM-Solver++."""
    settings, advice = setup.schedule_settings, setup.recommended_sampling
    scheduler = scheduler_for(advice.sampler if advice else _DEFAULT_SAMPLER, settings)
    if isinstance(scheduler, DDIMScheduler):
        scheduler = DDIMScheduler.from_config(_cut(scheduler).config)
        if advice and scheduler.config.num_train_timesteps % advice.num_steps:
            # then the last step of diffusers' DDIM does not end at zero noise
            scheduler = scheduler_for(_DEFAULT_SAMPLER, settings)
    return _cut(scheduler)


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of diffusers with other values; without its list of defaults, which would undo them."""
    return {name: value for name, value in config.items() if name != "_use_default_values"} | dict(changes)


def _cut(scheduler: NoiseScheduler) -> NoiseScheduler:
    """Return a scheduler that knows only the timesteps that are used: then its own plan of steps is ours."""
    count = usable_timesteps(scheduler)
    if count == scheduler.config.num_train_timesteps:
        return scheduler
    first = {"num_train_timesteps": count, "trained_betas": scheduler.betas[:count].tolist()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        return type(scheduler).from_config(_changed(scheduler.config, first))


def stock_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a U-Net that takes the pooled labels as SDXL's ``text_embeds``, with the weights of the given one."""
    pooled = int(unet.config.projection_class_embeddings_input_dim)
    changes = {
        "class_embed_type": None,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_WIDTH,
        "projection_class_embeddings_input_dim": pooled + _SIZE_IDS * _SIZE_WIDTH,
    }
    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(_changed(unet.config, changes))
    weights = {name.replace("class_embedding.", "add_embedding."): value for name, value in unet.state_dict().items()}
    first = weights["add_embedding.linear_1.weight"]
    weights["add_embedding.linear_1.weight"] = torch.cat(
        [first, first.new_zeros(len(first), _SIZE_IDS * _SIZE_WIDTH)], dim=1
    )
    stock.load_state_dict(weights, assign=True)
    return stock


def stock_autoencoder(autoencoder: LatentAutoencoder, *, mean: Sequence[float], std: Sequence[float]) -> AutoencoderKL:
    """Return an autoencoder whose latents are the given one's, normalised.

    Args:
        autoencoder: One for which `why_not` finds nothing.
        mean: Of each latent channel.
        std: Of each latent channel.
    """
    network = autoencoder.network
    plain: dict[str, Any] = {"use_quant_conv": True, "use_post_quant_conv": True, "scaling_factor": 1.0}
    plain |= dict.fromkeys(("shift_factor", "latents_mean", "latents_std"))
    with torch.device("meta"):
        stock = AutoencoderKL.from_config(_changed(network.config, plain))
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    channels = len(mean)
    shift, scale = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    weight, bias = _pointwise(weights, "quant_conv", 2 * channels)
    factor = torch.cat([1 / scale, torch.ones_like(scale)])
    bias = bias * factor - torch.cat([shift / scale, 2 * scale.log()])
    weights |= {"quant_conv.weight": weight * factor[:, None, None, None], "quant_conv.bias": bias}
    weight, bias = _pointwise(weights, "post_quant_conv", channels)
    bias = bias + (weight[:, :, 0, 0] * shift).sum(dim=1)
    weights |= {"post_quant_conv.weight": weight * scale[None, :, None, None], "post_quant_conv.bias": bias}
    stock.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return stock


def _pointwise(weights: dict[str, Tensor], name: str, channels: int) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a 1 x 1 convolution, float64; of one that is not there, the identity's."""
    weight = weights.get(f"{name}.weight", torch.eye(channels)[:, :, None, None])
    return weight.double(), weights.get(f"{name}.bias", torch.zeros(channels)).double()


def label_embeddings(conditioner: LabelConditioner, names: Sequence[str]) -> dict[str, Tensor]:
    """Return ``label.NAME`` ``[1 + values, d]``, unknown first, and the two layers that make the pooled vector."""
    vectors = (conditioner.accumulate.to(conditioner.table.dtype) @ conditioner.table).detach().cpu()
    parts = torch.split(vectors, [1 + count for count in conditioner.num_values])
    pool = {f"pool.{name}": value.detach().cpu() for name, value in conditioner.pool.state_dict().items()}
    return {f"label.{name}": part.contiguous() for name, part in zip(names, parts, strict=True)} | pool


def write_stock_pipeline(folder: Path, denoiser: ConditionalDenoiser, setup: ModelSetup) -> Scheduler:
    """Write the stock pipeline of a model for which `why_not` finds nothing; returns its scheduler.

    Args:
        folder: An empty or new local folder.
        denoiser: U-Net and conditioner, fp32.
        setup: Autoencoder and settings.
    """
    stock_unet(denoiser.unet).save_pretrained(folder / "unet", safe_serialization=True)
    autoencoder = stock_autoencoder(setup.autoencoder, mean=setup.latent_mean, std=setup.latent_std)
    autoencoder.save_pretrained(folder / "vae", safe_serialization=True)
    scheduler = stock_scheduler(setup)
    scheduler.save_pretrained(folder / "scheduler")
    place = folder / "scheduler" / "scheduler_config.json"
    config = _FOR_OTHER_SAMPLERS | json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")  # with diffusers' infinity
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers_version,
        # negative embeddings that are forgotten are an error and not zero, and pixels are left as they are
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": False,
        **{name: [None, None] for name in _ENCODERS},
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_bytes(documents.dump_json(index))
    (folder / LABELS_NAME).write_bytes(documents.dump_json({"labels": setup.label_schema.to_document()}))
    save_file(label_embeddings(denoiser.conditioner, setup.label_schema.names), folder / EMBEDDINGS_NAME)
    return scheduler
