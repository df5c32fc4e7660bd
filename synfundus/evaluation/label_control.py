"""Does a generated image show the requested labels? Agreement measures and the table of label control.

A judge trained on real photographs predicts the labels of generated images, which are compared with the requested ones.
The same figures on held-out real photographs tell what the judge can see at all, on reconstructions what survives the
autoencoder. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.evaluation.intervals import Interval, auc_interval, share_interval, table_interval
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator

Scores = NDArray[np.float64]
Values = NDArray[np.int64]

GRADE_CUT = 2
"""A grade is also evaluated as "this value or more": for diabetic retinopathy, the referable grades."""


def rank_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: ``[n]``.
        positive: ``[n]``.

    Returns:
        None where one of the classes is empty.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982 (U / (n_pos * n_neg), mid-ranks for ties).
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    _, group, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mid_rank[group][positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def accuracy(predicted: Values, actual: Values) -> float | None:
    """Return the share of equal values; None if there are no values."""
    return float((predicted == actual).mean()) if len(actual) else None


def confusion(predicted: Values, actual: Values, num_values: int) -> Scores:
    """Count the images by actual and predicted value ``[num_values, num_values]``; both are ``[n]``, from 0 on."""
    table = np.zeros((num_values, num_values))
    np.add.at(table, (actual, predicted), 1)
    return table


def weighted_kappa(table: Scores) -> float | None:
    """Return the quadratic weighted kappa of a table of counts, actual grades by predicted ones; None if undefined.

    Source: Cohen 1968, "Weighted kappa", Eq. 8.
    """
    grades = np.arange(len(table))
    weight = (grades[:, None] - grades[None, :]) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    chance = float((weight * expected).sum())
    return None if chance == 0 else 1.0 - float((weight * table).sum()) / chance


@dataclass(frozen=True)
class LabelPrediction:
    """A judge's predictions of one label.

    Attributes:
        at_least: Probability that the value is ``v + 1`` or more, ``[n, num_values - 1]``; for a nominal label of
            more than two values the probability of each value instead, ``[n, num_values]``.
        values: The predicted value, ``[n]``.
    """

    at_least: Scores
    values: Values


def is_nominal(spec: LabelSpec) -> bool:
    """Return whether a label has a probability per value, not one per step."""
    return not spec.ordinal and spec.num_values > 2


def label_prediction(probabilities: Scores, spec: LabelSpec) -> LabelPrediction:
    """Return the prediction of a label from the probabilities ``[n, outputs]`` of its steps, or of its values."""
    values = probabilities.argmax(axis=1) if is_nominal(spec) else np.rint(probabilities.sum(axis=1))
    return LabelPrediction(at_least=probabilities, values=values.astype(np.int64))


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement of predicted and requested values of one label.

    Attributes:
        num_known: Images whose label is known; only these count.
        num_positive: Of these, images above the cut (1 for a 0/1 label, `GRADE_CUT` for a grade).
        auc: Area under the ROC curve, for 0/1 labels and for grades at the cut.
        accuracy: Share of exact hits.
        kappa: Quadratic weighted kappa, for grades.
        auc_interval: 95 % interval of the area (Newcombe).
        accuracy_interval: 95 % interval of the share (Wilson).
        kappa_interval: 95 % interval of kappa (bootstrap).

    Without two values there is nothing to agree on: all figures are None.
    """

    num_known: int
    num_positive: int
    auc: float | None
    accuracy: float | None
    kappa: float | None
    auc_interval: Interval | None = None
    accuracy_interval: Interval | None = None
    kappa_interval: Interval | None = None

    def to_document(self) -> dict[str, Any]:
        """Return the figures for a JSON document; an undefined figure is null."""
        return asdict(self)

    def figure(self, measure: str) -> tuple[float | None, Interval | None]:
        """Return a figure, ``accuracy``, ``auc`` or ``kappa``, and its interval."""
        return getattr(self, measure), getattr(self, f"{measure}_interval")


Agreement = dict[str, LabelAgreement]
"""By label name, in schema order."""


def _agreement(prediction: LabelPrediction, states: Values, *, num_values: int, ordinal: bool) -> LabelAgreement:
    known = states != UNKNOWN_STATE
    actual, predicted = states[known] - 1, prediction.values[known]
    cut = min(GRADE_CUT, num_values - 1) if num_values > 2 else 1
    positive = actual >= cut
    ranked = ordinal or num_values == 2
    num_known, num_positive = len(actual), int(positive.sum()) if ranked else 0
    if len(np.unique(actual)) < 2:
        return LabelAgreement(num_known, num_positive, None, None, None)
    auc = rank_auc(prediction.at_least[known, cut - 1], positive) if ranked else None
    counts = confusion(predicted, actual, num_values)
    return LabelAgreement(
        num_known=num_known,
        num_positive=num_positive,
        auc=auc,
        accuracy=accuracy(predicted, actual),
        kappa=weighted_kappa(counts) if ordinal else None,
        auc_interval=None if auc is None else auc_interval(auc, num_positive, num_known - num_positive),
        accuracy_interval=share_interval(int((predicted == actual).sum()), num_known),
        kappa_interval=table_interval(counts, weighted_kappa) if ordinal else None,
    )


def label_agreement(
    predictions: Sequence[LabelPrediction], states: NDArray[np.int64], *, schema: LabelSchema
) -> Agreement:
    """Compare predictions with label states, label by label; unknown labels do not count.

    Args:
        predictions: One for each label, in schema order.
        states: True or requested label states ``[n, k]``.
        schema: The labels.

    Raises:
        DataError: The number of labels or images differs.
    """
    lengths = {len(prediction.values) for prediction in predictions}
    if states.shape[1:] != (len(schema.labels),) or len(predictions) != len(schema.labels) or lengths - {len(states)}:
        raise DataError(
            f"{len(predictions)} predictions for {sorted(lengths)} images do not fit label states of {states.shape} "
            f"and a schema of {len(schema.labels)} labels"
        )
    return {
        spec.name: _agreement(predictions[column], states[:, column], num_values=spec.num_values, ordinal=spec.ordinal)
        for column, spec in enumerate(schema.labels)
    }


def _shown(agreement: LabelAgreement | None, measure: str, *, interval: bool = False) -> str:
    value, bounds = agreement.figure(measure) if agreement is not None else (None, None)
    if agreement is None or value is None:
        return "-"
    if not interval or bounds is None:
        return f"{value:.3f}"
    return f"{value:.3f} ({bounds[0]:.2f} to {bounds[1]:.2f}, n {agreement.num_known})"


@dataclass(frozen=True)
class HeadlineFigure:
    """One of the figures that summarise label control.

    Attributes:
        name: Key in JSON documents.
        label: Label it belongs to.
        measure: ``accuracy``, ``auc`` or ``kappa``.
        title: Name in a table.
        short: Name in a line with all of them.
    """

    name: str
    label: str
    measure: str
    title: str
    short: str

    def of(self, agreement: Agreement) -> float | None:
        """Return the figure, None if it is undefined or the schema lacks the label."""
        found = agreement.get(self.label)
        return found.figure(self.measure)[0] if found is not None else None


HEADLINE_FIGURES = (
    HeadlineFigure("eye_side_accuracy", "eye_side", "accuracy", "eye side, accuracy", "side"),
    HeadlineFigure("is_pm_auc", "is_pm", "auc", "pathologic myopia, AUC", "myopia"),
    HeadlineFigure("is_gc_auc", "is_gc", "auc", "glaucoma, AUC", "glaucoma"),
    HeadlineFigure("dr_referable_auc", "dr_grade", "auc", "DR 2 or more, AUC", "DR>=2"),
    HeadlineFigure("dr_kappa", "dr_grade", "kappa", "DR grade, kappa", "DR kappa"),
)


_TITLES = {"auc": "AUC"}


def headline(agreement: Agreement) -> dict[str, float | None]:
    """Return the figures of `HEADLINE_FIGURES` by name."""
    return {figure.name: figure.of(agreement) for figure in HEADLINE_FIGURES}


def agreement_table(agreements: Mapping[str, Agreement]) -> tuple[list[str], list[list[str]]]:
    """Compare the agreements of several image sources in a table.

    Args:
        agreements: By source (``real``, ``reconstructed``, ``generated`` ...), all with the same labels.

    Returns:
        Column titles and rows: the headline figures with interval and number of images first, then every other label.
    """
    sources = list(agreements)
    rows = [
        [figure.title, *(_shown(agreements[one].get(figure.label), figure.measure, interval=True) for one in sources)]
        for figure in HEADLINE_FIGURES
        if any(figure.label in agreements[source] for source in sources)
    ]
    shown_labels = {figure.label for figure in HEADLINE_FIGURES}
    for name in next(iter(agreements.values()), {}):
        if name in shown_labels:
            continue
        own = [agreements[source][name] for source in sources]
        measure = next((m for m in ("kappa", "auc") if any(getattr(one, m) is not None for one in own)), "accuracy")
        rows.append([f"{name}, {_TITLES.get(measure, measure)}", *(_shown(one, measure) for one in own)])
    return ["label", *sources], rows


def measure_and_chance(spec: LabelSpec, column: NDArray[np.int64]) -> tuple[str, float]:
    """Return the figure by which a label is told from chance, and what guessing reaches on its states ``[n]``."""
    if not is_nominal(spec):
        return "auc", 0.5
    counts = np.bincount(column[column != UNKNOWN_STATE])
    return "accuracy", float(counts.max(initial=0) / max(counts.sum(), 1))


def not_told(judged: Agreement, states: NDArray[np.int64], schema: LabelSchema) -> list[str]:
    """Return the labels, with their figures, that a judge may tell no better than a guess.

    Args:
        judged: Agreement of the judge on photographs it was not trained on.
        states: Label states of these photographs ``[n, k]``.
        schema: The labels.
    """
    found = []
    for spec, column in zip(schema.labels, states.T, strict=True):
        measure, chance = measure_and_chance(spec, column)
        value, interval = judged[spec.name].figure(measure)
        if value is not None and interval is not None and interval[0] <= chance:
            found.append(f"{spec.name} {value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})")
    return found


def control_rows(held_out_states: NDArray[np.int64], schema: LabelSchema, *, count: int, seed: int) -> list[LabelRow]:
    """Draw label rows to generate for from those of held-out photographs ``[n, k]``, with replacement.

    So prevalences and combinations are those of held-out patients.
    """
    chosen = keyed_generator(seed, "demo.control").integers(len(held_out_states), size=count)
    return [schema.decode(held_out_states[row].tolist()) for row in chosen]
