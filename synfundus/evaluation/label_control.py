"""Does a generated image show the requested labels? Agreement measures and the table of label control.

A judge trained on real photographs predicts the labels of generated images, which are compared with the requested ones.
The same figures on held-out real photographs tell what the judge can see at all, on reconstructions what survives the
autoencoder. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema

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


def quadratic_weighted_kappa(predicted: Values, actual: Values, *, num_values: int) -> float | None:
    """Return Cohen's kappa with disagreement weighted by the squared distance of the grades.

    Args:
        predicted: Grades ``[n]`` in ``0 .. num_values - 1``.
        actual: Grades ``[n]``.
        num_values: Number of grades.

    Returns:
        None if it is undefined: no samples, or one grade only on both sides.

    Source: Cohen 1968, "Weighted kappa", Eq. 8.
    """
    table = np.zeros((num_values, num_values))
    np.add.at(table, (actual, predicted), 1)
    grades = np.arange(num_values)
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


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement of predicted and requested values of one label.

    Attributes:
        num_known: Images whose label is known; only these count.
        num_positive: Of these, images above the cut (1 for a 0/1 label, `GRADE_CUT` for a grade).
        auc: Area under the ROC curve, for 0/1 labels and for grades at the cut.
        accuracy: Share of exact hits.
        kappa: Quadratic weighted kappa, for grades.
    """

    num_known: int
    num_positive: int
    auc: float | None
    accuracy: float | None
    kappa: float | None

    def to_document(self) -> dict[str, float | int | None]:
        """Return the figures for a JSON document; an undefined figure is null."""
        return asdict(self)


Agreement = dict[str, LabelAgreement]
"""By label name, in schema order."""


def _agreement(prediction: LabelPrediction, states: Values, *, num_values: int, ordinal: bool) -> LabelAgreement:
    known = states != UNKNOWN_STATE
    actual, predicted = states[known] - 1, prediction.values[known]
    cut = min(GRADE_CUT, num_values - 1) if num_values > 2 else 1
    positive = actual >= cut
    ranked = ordinal or num_values == 2
    return LabelAgreement(
        num_known=int(known.sum()),
        num_positive=int(positive.sum()) if ranked else 0,
        auc=rank_auc(prediction.at_least[known, cut - 1], positive) if ranked else None,
        accuracy=accuracy(predicted, actual),
        kappa=quadratic_weighted_kappa(predicted, actual, num_values=num_values) if ordinal else None,
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


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


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
        value: float | None = getattr(found, self.measure) if found is not None else None
        return value


HEADLINE_FIGURES = (
    HeadlineFigure("eye_side_accuracy", "eye_side", "accuracy", "eye side, accuracy", "side"),
    HeadlineFigure("is_pm_auc", "is_pm", "auc", "pathologic myopia, AUC", "myopia"),
    HeadlineFigure("is_gc_auc", "is_gc", "auc", "glaucoma, AUC", "glaucoma"),
    HeadlineFigure("dr_referable_auc", "dr_grade", "auc", "DR 2 or more, AUC", "DR>=2"),
    HeadlineFigure("dr_kappa", "dr_grade", "kappa", "DR grade, kappa", "DR kappa"),
)


def headline(agreement: Agreement) -> dict[str, float | None]:
    """Return the figures of `HEADLINE_FIGURES` by name."""
    return {figure.name: figure.of(agreement) for figure in HEADLINE_FIGURES}


def agreement_table(agreements: Mapping[str, Agreement]) -> tuple[list[str], list[list[str]]]:
    """Compare the agreements of several image sources in a table.

    Args:
        agreements: By source (``real``, ``reconstructed``, ``generated`` ...), all with the same labels.

    Returns:
        Column titles and rows: the headline figures first, then every other label.
    """
    sources = list(agreements)
    rows = [
        [figure.title, *(_shown(figure.of(agreements[source])) for source in sources)]
        for figure in HEADLINE_FIGURES
        if any(figure.label in agreements[source] for source in sources)
    ]
    shown_labels = {figure.label for figure in HEADLINE_FIGURES}
    for name, first in next(iter(agreements.values()), {}).items():
        if name in shown_labels:
            continue
        measure = "kappa" if first.kappa is not None else "AUC" if first.auc is not None else "accuracy"
        figures = [agreements[source][name] for source in sources]
        rows.append([f"{name}, {measure}", *(_shown(getattr(figure, measure.lower())) for figure in figures)])
    return ["label", *sources], rows
