"""The model classes of diffusers, imported without xformers.

diffusers imports an installed xformers together with its first model, also where none of its operators can load: that
prints warnings in every process, or raises. Whether xformers is used is decided in `models/attention.py` alone.
"""

from __future__ import annotations

# ruff: noqa: E402 - the answer must stand before the first model is imported
from diffusers.utils import import_utils

import_utils._xformers_available = False

from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

__all__ = [
    "Attention",
    "AutoencoderDC",
    "AutoencoderKL",
    "BasicTransformerBlock",
    "ResnetBlock2D",
    "TimestepEmbedding",
    "Timesteps",
    "Transformer2DModel",
    "UNet2DConditionModel",
]
