"""Array shapes, spelled once.

Axis legend of every jaxtyping annotation in synfundus:

=========  ==============================================================================
axis       meaning
=========  ==============================================================================
``b``      samples of a micro-batch
``h w``    image height and width, pixels
``lh lw``  latent height and width: image size over the autoencoder's downsample factor
``c``      latent channels
``c2``     moment channels, ``2 * c``: posterior mean first, then log-variance
``k``      labels of the schema, one conditioning token each
``d``      width of one conditioning token
``p``      width of the pooled condition that is added to the time embedding
``t``      timesteps of a noise schedule
``q``      query tokens of an attention; ``s`` its key and value tokens
``n``      attention heads; ``e`` width of one head
=========  ==============================================================================
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Pixels: TypeAlias = Float[Tensor, "b 3 h w"]
"""Images, red green blue, in [-1, 1]; the black surround is -1."""

Moments: TypeAlias = Float[Tensor, "b c2 lh lw"]
"""Posterior mean and log-variance of an autoencoder, raw: neither sampled nor normalised (ADR-0003)."""

Latents: TypeAlias = Float[Tensor, "b c lh lw"]
"""A draw from the posterior, or a point of the diffusion process."""

Timesteps: TypeAlias = Int[Tensor, "b"]
"""Indices into a noise schedule, 0 = least noise."""

LabelStates: TypeAlias = Int[Tensor, "b k"]
"""One state per label: 0 = UNKNOWN, value ``v`` is ``v + 1`` (ADR-0009)."""
