"""The text that travels with an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(info: Mapping[str, Any]) -> str:
    """Return the model card of a pipeline folder as Markdown.

    Args:
        info: The content of synfundus.json.
    """
    training, size = info["training"], info["image_size_px"]
    labels = "\n".join(
        f"| `{label['name']}` | 0..{label['num_values'] - 1} | {label['meaning']} |" for label in info["label_schema"]
    )
    figures = "\n".join(f"| {name} | {value} |" for name, value in sorted(training.items()))
    return f"""---
library_name: diffusers
tags: [synthetic, fundus, latent-diffusion]
---

# Latent diffusion model of fundus photographs

Generates **synthetic** colour fundus photographs of {size} x {size} px, conditioned on {len(info["label_schema"])}
labels. Each label may be left unknown. Made with synfundus {info["synfundus_version"]}.

## Labels

| label | values | meaning |
|---|---|---|
{labels}

## Training

| figure | value |
|---|---|
{figures}

- latent set: `{info["latent_set_identity"]}`
- autoencoder: `{info["autoencoder_fingerprint"]}`
- model: `{info["model_fingerprint"]}`
- schedule: {info["schedule"]["schedule_kind"]}, {info["schedule"]["num_timesteps"]} steps, prediction type
  {info["schedule"]["prediction_type"]}, zero-terminal SNR {info["schedule"]["zero_terminal_snr"]}

## Use

Research: augmenting training sets, studying disease models, teaching. Not for diagnosis, nor for decisions about
patients.

## Limits

- Generated images carry the biases of the photographs the model was trained on, and its mistakes.
- A requested label is a wish: judge how well it is met before using it as ground truth.
- A generative model can repeat training images. No privacy audit is part of this export: treat weights and samples as
  patient data until one has passed.
"""
