"""A judge that cannot see the eye: only where the image is lit, and its mean colour.

Where it tells a label too, the label can be read off the camera, and the figure of a judge that sees the whole image
does not show that the disease is in the image. The same linear judge, given the name of the collection alone, tells
whether a label goes with a collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.evaluation.label_control import (
    Agreement,
    LabelPrediction,
    is_nominal,
    label_agreement,
    label_prediction,
    measure_and_chance,
)
from synfundus.labels.schema import READABLE, UNKNOWN_STATE, LabelSchema

Features = NDArray[np.float64]

_LIT = 20
"""Grey value of the brightest channel from which a pixel is inside the field of view."""
_STRIPES = 16
_AT_ONCE = 256
_RIDGE = 1.0
_STEPS = 25
_SURE = 30.0
_CLOSE = 0.05
_HIGH = 0.8


def camera_features(pixels: NDArray[np.uint8]) -> Features:
    """Return the lit share of 16 rows and 16 columns of images ``[n, s, s, 3]``, and the mean colour ``[n, 35]``."""
    blocks = [_features(pixels[at : at + _AT_ONCE]) for at in range(0, len(pixels), _AT_ONCE)]
    return np.concatenate(blocks) if blocks else np.empty((0, 2 * _STRIPES + 3))


def _features(pixels: NDArray[np.uint8]) -> Features:
    lit = pixels.max(axis=3) >= _LIT
    shares = [
        np.stack([part.mean(axis=(1, 2)) for part in np.array_split(lit, _STRIPES, axis=axis)], axis=1)
        for axis in (1, 2)
    ]
    colour = (pixels * lit[..., None]).sum(axis=(1, 2)) / (255 * np.maximum(lit.sum(axis=(1, 2)), 1))[:, None]
    return np.concatenate([*shares, colour], axis=1)


def source_features(sources: Sequence[str], known: Sequence[str]) -> Features:
    """Return which of the known collections each image is from ``[n, len(known)]``."""
    return np.array([[float(source == one) for one in known] for source in sources]).reshape(len(sources), len(known))


@dataclass(frozen=True)
class LinearJudge:
    """Logistic regressions, one for each step of a grade or value of a nominal label.

    Attributes:
        schema: The labels.
        mean: Of each feature ``[f]``.
        spread: Standard deviation of each feature ``[f]``.
        weights: Of each label, ``[f + 1, outputs]``; the last row is the constant.
    """

    schema: LabelSchema
    mean: Features
    spread: Features
    weights: tuple[Features, ...]

    def agreement(self, features: Features, states: NDArray[np.int64]) -> Agreement:
        """Return the agreement of the predictions for features ``[n, f]`` with label states ``[n, k]``."""
        inputs = _inputs(features, self.mean, self.spread)
        predictions: list[LabelPrediction] = [
            label_prediction(_probability(inputs @ weights), spec)
            for spec, weights in zip(self.schema.labels, self.weights, strict=True)
        ]
        return label_agreement(predictions, states, schema=self.schema)


def fit_linear(features: Features, states: NDArray[np.int64], schema: LabelSchema) -> LinearJudge:
    """Fit a judge to features ``[n, f]`` and label states ``[n, k]``; unknown labels do not count.

    Source: ridge logistic regression by Newton steps, le Cessie and van Houwelingen 1992.
    """
    mean, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    inputs = _inputs(features, mean, spread)
    weights = []
    for column, spec in enumerate(schema.labels):
        known = states[:, column] != UNKNOWN_STATE
        values = states[known, column, None] - 1
        steps = np.arange(spec.num_values) if is_nominal(spec) else np.arange(1, spec.num_values)
        targets = (values == steps) if is_nominal(spec) else (values >= steps)
        weights.append(np.stack([_logistic(inputs[known], targets[:, at]) for at in range(len(steps))], axis=1))
    return LinearJudge(schema, mean, spread, tuple(weights))


def _inputs(features: Features, mean: Features, spread: Features) -> Features:
    return np.concatenate([(features - mean) / spread, np.ones((len(features), 1))], axis=1)


def _probability(logits: Features) -> Features:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_SURE, _SURE))))


def _logistic(inputs: Features, target: NDArray[np.bool_]) -> Features:
    """Return the weights ``[f]`` of a ridge logistic regression."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        chance = _probability(inputs @ weights)
        slope = inputs.T @ (chance - target) + _RIDGE * weights
        bend = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + _RIDGE * np.eye(len(weights))
        weights = weights - np.linalg.solve(bend, slope)
    return weights


def shortcuts(blind: Agreement, judged: Agreement, states: NDArray[np.int64], schema: LabelSchema) -> list[str]:
    """Return the labels a judge that does not see the eye tells too, with both figures.

    It counts from .8, or from .05 below the judge that sees it, where its interval is above chance. How readable a
    photograph is does show in its brightness, so those labels are left out.

    Args:
        blind: Agreement of the judge that does not see the eye.
        judged: Agreement of the judge that does, on the same images.
        states: Label states of these images ``[n, k]``.
        schema: The labels.
    """
    found = []
    for spec, column in zip(schema.labels, states.T, strict=True):
        measure, chance = measure_and_chance(spec, column)
        (value, interval), (seen, _) = blind[spec.name].figure(measure), judged[spec.name].figure(measure)
        if value is None or interval is None or spec.name in READABLE:
            continue
        if interval[0] > chance and (value >= _HIGH or seen is None or value >= seen - _CLOSE):
            found.append(f"{spec.name} {value:.2f}" + (f" (the judge {seen:.2f})" if seen is not None else ""))
    return found
