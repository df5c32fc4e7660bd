"""Random draws for each training sample, keyed by its position in the run (ADR-0005).

Called in the loader's background thread; pure numpy, so the numbers do not depend on the device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synfundus.diffusion.flow import FlowTime
from synfundus.labels.schema import UNKNOWN_STATE
from synfundus.seeding import keyed_normal, keyed_uniform
from synfundus.shards.reader import Arrays


class DiffusionDraws:
    """Adds noise, timestep, posterior noise, label drop and flip to a batch of latents.

    Args:
        seed: The run's seed.
        num_timesteps: Length of the noise schedule; of a flow, the timestep of time 1.
        flow_time: Density of a flow's times, which are fractions; None draws integer timesteps uniformly.
        label_drop_prob: Probability that all labels of a sample become unknown.
        single_label_drop_prob: Probability of each label to become unknown by itself.
        flip: Use the mirrored moments for half of the samples.
        eye_side_column: Column of the eye side, which a flip swaps; None if the schema has none.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_timesteps: int,
        flow_time: FlowTime | None,
        label_drop_prob: float,
        single_label_drop_prob: float,
        flip: bool,
        eye_side_column: int | None,
    ) -> None:
        self._seed = seed
        self._num_timesteps = num_timesteps
        self._flow_time = flow_time
        self._label_drop_prob = label_drop_prob
        self._single_label_drop_prob = single_label_drop_prob
        self._flip = flip
        self._eye_side_column = eye_side_column

    def __call__(self, positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        """Return ``moments``, ``states``, ``noise``, ``posterior_noise``, ``timestep``."""
        indices = positions.tolist()
        moments, states = arrays["moments"], arrays["states"].copy()
        if self._flip:
            mirrored = keyed_uniform(self._seed, "flip", indices)[:, 0] < 0.5
            moments = np.where(mirrored[:, None, None, None], arrays["flip"], moments)
            if self._eye_side_column is not None:
                side = states[:, self._eye_side_column]
                swapped = np.where(side == UNKNOWN_STATE, side, 3 - side)
                states[:, self._eye_side_column] = np.where(mirrored, swapped, side)
        drops = keyed_uniform(self._seed, "label_drop", indices, count=1 + states.shape[1])
        dropped = (drops[:, :1] < self._label_drop_prob) | (drops[:, 1:] < self._single_label_drop_prob)
        states[dropped] = UNKNOWN_STATE
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        return {
            "moments": moments.astype(np.float32),
            "states": states,
            "noise": keyed_normal(self._seed, "noise", indices, shape),
            "posterior_noise": keyed_normal(self._seed, "posterior", indices, shape),
            "timestep": self._timesteps(keyed_uniform(self._seed, "timestep", indices)[:, 0]),
        }

    def _timesteps(self, uniform: NDArray[np.float64]) -> NDArray[np.int64] | NDArray[np.float32]:
        if self._flow_time is not None:
            return (self._flow_time(uniform) * self._num_timesteps).astype(np.float32)
        return np.minimum((uniform * self._num_timesteps).astype(np.int64), self._num_timesteps - 1)


class AutoencoderDraws:
    """Adds posterior noise to a batch of images.

    Args:
        seed: The run's seed.
        latent_shape: ``(c, lh, lw)``.
    """

    def __init__(self, *, seed: int, latent_shape: tuple[int, int, int]) -> None:
        self._seed = seed
        self._shape = latent_shape

    def __call__(self, positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        """Return ``pixels`` and ``posterior_noise``."""
        noise = keyed_normal(self._seed, "vae-posterior", positions.tolist(), self._shape)
        return {"pixels": arrays["pixels"], "posterior_noise": noise}
