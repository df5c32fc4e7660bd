"""A run that starts from the shipped denoiser of drawn eyes: for other latents than its own, and any labels."""

from __future__ import annotations

import torch

from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import load_pipeline
from synfundus.config.diffusion import UNetConfig
from synfundus.labels.schema import LabelSchema, label_differences
from synfundus.models.unet import ConditionalDenoiser
from synfundus.stages.reading import latent_shape_of
from synfundus.stages.starting_weights import drawn_denoiser, folder_of_that_name
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console


def load_drawn(fresh: ConditionalDenoiser, section: UNetConfig, latents: ShardSet, console: Console) -> Model:
    """Put the shipped weights into a fresh denoiser, and those of the labels that mean the same; returns their model.

    Raises:
        ConfigError: There are none, or they are of another architecture.
        CheckpointError: They are damaged.
        ManifestMismatch: They are.
    """
    given = load_pipeline(drawn_denoiser(section, latent_shape_of(latents)), device=torch.device("cpu"))
    fresh.unet.load_state_dict(given.denoiser.unet.state_dict())
    anew = ", ".join(adopt_labels(fresh, latents.label_schema, given.denoiser, given.label_schema))
    console.message(
        f"starts from the shipped weights of drawn eyes (model {given.fingerprint[:12]})"
        f"{f'; labels that begin anew: {anew}' if anew else ''}{folder_of_that_name()}"
    )
    return given


@torch.no_grad()
def adopt_labels(
    ours: ConditionalDenoiser, schema: LabelSchema, theirs: ConditionalDenoiser, their_schema: LabelSchema
) -> list[str]:
    """Copy how labels become a condition, by name; returns the labels that the other denoiser does not have."""
    ours.conditioner.pool.load_state_dict(theirs.conditioner.pool.state_dict())
    anew = []
    for place, label in enumerate(schema.labels):
        if label.name not in their_schema.names or label_differences(
            LabelSchema((label,)), LabelSchema((their_schema[label.name],))
        ):
            anew.append(label.name)
            continue
        rows = label.num_values + 1  # the first is that of an unknown label
        here = int(ours.conditioner.offsets[place])
        there = int(theirs.conditioner.offsets[their_schema.names.index(label.name)])
        ours.conditioner.table[here : here + rows] = theirs.conditioner.table[there : there + rows]
    return anew
