"""Random draws for each training sample, keyed by its position in the run (ADR-0005).

Called in the loader's background thread; pure numpy, so the numbers do not depend on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.diffusion.flow import FlowTime
from synfundus.labels.schema import UNKNOWN_STATE
from synfundus.seeding import keyed_normal, keyed_uniform
from synfundus.shards.reader import Arrays


@dataclass(frozen=True, kw_only=True)
class DiffusionDraws:
    """Adds noise, timestep, posterior noise, label drop and flip to a batch of latents.

    Attributes:
        seed: The run's seed.
        num_timesteps: Length of the noise schedule; of a flow, the timestep of time 1.
        flow_time: Density of a flow's times, which are fractions; None draws integer timesteps uniformly.
        label_drop_prob: Probability that all labels of a sample become unknown.
        single_label_drop_prob: Probability of each label to become unknown by itself.
        flip: Use the mirrored moments for half of the samples.
        eye_side_column: Column of the eye side, which a flip swaps; None if the schema has none.
        all_labels: Also return the states before any is dropped, as ``all_states``.
    """

    seed: int
    num_timesteps: int
    flow_time: FlowTime | None
    label_drop_prob: float
    single_label_drop_prob: float
    flip: bool
    eye_side_column: int | None
    all_labels: bool = False

    def __call__(self, positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        """Return ``moments``, ``states``, ``noise``, ``posterior_noise``, ``timestep``; ``all_states`` if asked for."""
        indices = positions.tolist()
        moments, states = arrays["moments"], arrays["states"].copy()
        if self.flip:
            mirrored = keyed_uniform(self.seed, "flip", indices)[:, 0] < 0.5
            moments = np.where(mirrored[:, None, None, None], arrays["flip"], moments)
            if self.eye_side_column is not None:
                side = states[:, self.eye_side_column]
                swapped = np.where(side == UNKNOWN_STATE, side, 3 - side)
                states[:, self.eye_side_column] = np.where(mirrored, swapped, side)
        known = {"all_states": states.copy()} if self.all_labels else {}
        drops = keyed_uniform(self.seed, "label_drop", indices, count=1 + states.shape[1])
        dropped = (drops[:, :1] < self.label_drop_prob) | (drops[:, 1:] < self.single_label_drop_prob)
        states[dropped] = UNKNOWN_STATE
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        return {
            "moments": moments.astype(np.float32),
            "states": states,
            "noise": keyed_normal(self.seed, "noise", indices, shape),
            "posterior_noise": keyed_normal(self.seed, "posterior", indices, shape),
            "timestep": self._timesteps(keyed_uniform(self.seed, "timestep", indices)[:, 0]),
            **known,
        }

    def _timesteps(self, uniform: NDArray[np.float64]) -> NDArray[np.int64] | NDArray[np.float32]:
        if self.flow_time is not None:
            return (self.flow_time(uniform) * self.num_timesteps).astype(np.float32)
        return np.minimum((uniform * self.num_timesteps).astype(np.int64), self.num_timesteps - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderDraws:
    """Adds posterior noise to a batch of images.

    Attributes:
        seed: The run's seed.
        latent_shape: ``(c, lh, lw)``.
    """

    seed: int
    latent_shape: tuple[int, int, int]

    def __call__(self, positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        """Return ``pixels`` and ``posterior_noise``."""
        noise = keyed_normal(self.seed, "vae-posterior", positions.tolist(), self.latent_shape)
        return {"pixels": arrays["pixels"], "posterior_noise": noise}
