"""MODEL_CARD.md of an exported model: what it is, what it was trained on, what it is for and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synfundus.labels.schema import LabelSchema

_CARD = """# Latent diffusion model for synthetic fundus photographs

Written by synfundus {version}. Everything this model makes is **synthetic**.

## What it is

A U-Net that denoises latents of {channels} x {height} x {width}, conditioned on {num_labels} labels, and the
autoencoder that turns them into RGB images of {image_size_px} x {image_size_px} pixels. It predicts
{objective}.

| | |
|---|---|
{facts}

## Labels

Any of them can be left unknown; a model that is told nothing draws from what it has seen.

| label | values | meaning |
|---|---|---|
{labels}

## Intended use

Research: augmenting training data for image analysis, teaching, testing software that handles fundus photographs.

## Not intended

Diagnosis or any decision about a person. Images may lack or invent signs; a label says what was asked for, not what an
ophthalmologist would find. Rare labels and rare combinations are learned worst.

## Limits and privacy

The model inherits the cameras, populations and labelling habits of its training photographs. A diffusion model can
reproduce training images: weights and images are to be handled like the photographs they come from until an audit of
this very model (copies, re-identification, membership inference) has been passed. Synthetic does not mean free of
personal data.

## Opening it

```python
from diffusers import {autoencoder_class}, UNet2DConditionModel

unet = UNet2DConditionModel.from_pretrained("unet")
vae = {autoencoder_class}.from_pretrained("vae")
```

or `synfundus sample --model . --out images --num-images 64`. Latents of the U-Net are normalised per channel: decode
`latent * std + mean` with the values in `synfundus.json`.{linear_path}
"""

_LINEAR_PATH_NOTE = (
    " This autoencoder has a linear path beside the network (two more files in `vae/`), which only "
    "synfundus adds: the stock class decodes the network's share alone."
)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "not recorded"


def _objective(schedule: Mapping[str, Any]) -> str:
    """Say what the network predicts, and on which way from image to noise."""
    kind, count = schedule["prediction_type"], schedule["num_timesteps"]
    if kind == "flow_velocity":
        return (
            "the velocity `noise - image` on the straight way between them (flow matching). It is told the time, 0\n"
            f"for the image and 1 for noise, times {count}; sampling times are shifted by {schedule['shift']:g}"
        )
    ending = " that ends in pure noise" if schedule["zero_terminal_snr"] else ""
    return f"`{kind}` on a `{schedule['schedule_kind']}` noise schedule of {count} steps{ending}"


def model_card(document: Mapping[str, Any], schema: LabelSchema, *, linear_path: bool, autoencoder_class: str) -> str:
    """Return the card in Markdown.

    Args:
        document: Content of ``synfundus.json``.
        schema: The labels.
        linear_path: Whether the autoencoder has the linear path.
        autoencoder_class: diffusers' name of what opens ``vae/``.
    """
    training, prints = document["training"], document["fingerprints"]
    loss = training.get("validation_loss")
    facts = [
        ("training photographs", _count(training.get("training_images"))),
        ("images seen in training (repetitions included)", _count(training.get("images_seen"))),
        ("parameters of U-Net and conditioner", _count(training.get("parameters"))),
        (
            f"validation loss on {training.get('judged_on') or 'held-out images'}",
            f"{loss:.4g}" if isinstance(loss, float) else "not recorded",
        ),
        ("model fingerprint", f"`{prints['model']}`"),
        ("autoencoder fingerprint", f"`{prints['autoencoder']}`"),
        ("latent set", f"`{prints['latent_set']}`"),
    ]
    if training.get("weights") == "raw":
        facts.append(("weights", "as the optimizer left them, not averaged"))
    if training.get("started_from"):
        facts.append(("started from published weights, whose licence may bind", f"`{training['started_from']}`"))
    schedule = document["schedule"]
    channels, height, width = document["latent_shape"]
    return _CARD.format(
        version=document["versions"]["synfundus"],
        channels=channels,
        height=height,
        width=width,
        num_labels=len(schema.labels),
        image_size_px=document["image_size_px"],
        objective=_objective(schedule),
        facts="\n".join(f"| {name} | {value} |" for name, value in facts),
        labels="\n".join(f"| `{spec.name}` | 0-{spec.num_values - 1} | {spec.meaning} |" for spec in schema.labels),
        linear_path=_LINEAR_PATH_NOTE if linear_path else "",
        autoencoder_class=autoencoder_class,
    )
