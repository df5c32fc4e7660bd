"""A trained judge as a file, and what it says of single images: which labels asked for it cannot believe.

A judge that reads labels of photographs is right about most of them, so its doubt of one image is measured against its
doubts of held-out photographs: a label is contradicted where the judge gives what was asked for less probability than
it gives the truth of nearly all photographs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.evaluation.judge import Judge, Pixels, build_judge, predict_labels
from synfundus.evaluation.label_control import LabelPrediction, is_nominal, not_told
from synfundus.evaluation.label_control import label_agreement as agreement_of
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, LabelSpec

JUDGE_NAME = "label-judge.safetensors"
_KIND, _VERSION = "synfundus-judge-weights", 1
_REFUSED_SHARE = 0.002
"""Of photographs whose label is known, so many are contradicted, for each label."""
_FEWEST = 50
"""With fewer held-out photographs of known label nothing is said about it."""

Doubts = dict[str, float]
"""By label that the judge can tell: the probability of what was asked for below which it is contradicted."""


def probability_of(prediction: LabelPrediction, spec: LabelSpec, states: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability that a judge gives a label's state ``[n]``; 1 where it is unknown."""
    at_least = prediction.at_least
    if is_nominal(spec):
        each = at_least
    else:
        falling = np.minimum.accumulate(at_least, axis=1)  # a higher grade is never likelier than a lower one
        ends = np.ones((len(states), 1)), np.zeros((len(states), 1))
        steps = np.concatenate([ends[0], falling, ends[1]], axis=1)
        each = steps[:, :-1] - steps[:, 1:]
    of_state = each[np.arange(len(states)), np.maximum(states - 1, 0)]
    return np.where(states == UNKNOWN_STATE, 1.0, of_state)


def measure_doubts(judge: Judge, pixels: Pixels, states: NDArray[np.int64]) -> Doubts:
    """Return a judge's doubts of photographs it has not learned from; labels it cannot tell have none.

    Args:
        judge: The judge.
        pixels: Held-out photographs ``[n, s, s, 3]``.
        states: Their label states ``[n, k]``.
    """
    predictions = predict_labels(judge, pixels)
    judged = agreement_of(predictions, states, schema=judge.schema)
    silent = {text.split()[0] for text in not_told(judged, states, judge.schema)}
    doubts = {}
    for spec, prediction, column in zip(judge.schema.labels, predictions, states.T, strict=True):
        known = column != UNKNOWN_STATE
        if spec.name not in silent and known.sum() >= _FEWEST and len(np.unique(column[known])) > 1:
            believed = probability_of(prediction, spec, column)[known]
            doubts[spec.name] = float(np.quantile(believed, _REFUSED_SHARE))
    return doubts


def contradicted(
    judge: Judge, doubts: Mapping[str, float], pixels: Pixels, rows: Sequence[Mapping[str, int | None]]
) -> list[tuple[str, ...]]:
    """Return for each image the labels asked for that its judge cannot believe.

    Args:
        judge: The judge.
        doubts: Its doubts of photographs.
        pixels: Images ``[n, s, s, 3]``.
        rows: What they were asked for; unknown labels and such as the judge does not have do not count.
    """
    names = judge.schema.names
    states = np.array([judge.schema.encode({name: row.get(name) for name in names}) for row in rows], dtype=np.int64)
    found: list[list[str]] = [[] for _ in rows]
    for column, (spec, prediction) in enumerate(zip(judge.schema.labels, predict_labels(judge, pixels), strict=True)):
        if spec.name in doubts:
            doubted = probability_of(prediction, spec, states[:, column]) < doubts[spec.name]
            for image in np.flatnonzero(doubted).tolist():
                found[image].append(spec.name)
    return [tuple(labels) for labels in found]


def pack_judge(judge: Judge, doubts: Mapping[str, float]) -> bytes:
    """Return a judge with its doubts as a safetensors file; the same judge gives the same bytes."""
    document = {
        "format": _KIND,
        "version": _VERSION,
        "label_schema": judge.schema.to_document(),
        "image_size_px": judge.image_size_px,
        "doubts": dict(doubts),
    }
    tensors = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    return bytes(safetensors.torch.save(tensors, metadata={"judge": json.dumps(document, sort_keys=True)}))


def unpack_judge(data: bytes, *, where: str) -> tuple[Judge, Doubts]:
    """Return a judge, in evaluation mode, and its doubts.

    Raises:
        DataError: The file is no judge, is damaged, or is of another version.
    """
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["judge"])
        if (document["format"], document["version"]) != (_KIND, _VERSION):
            raise ValueError(f"{document['format']}, version {document['version']}")
        schema = LabelSchema.from_document(document["label_schema"], where=where)
        judge = build_judge(schema=schema, image_size_px=int(document["image_size_px"]), seed=0)
        judge.load_state_dict(tensors)
        doubts = {str(name): float(value) for name, value in document["doubts"].items()}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"this is no judge that can be read: {error}", where=where) from error
    return judge.eval(), doubts
