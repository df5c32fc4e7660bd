"""Refusing labels a model does not have before torch is imported for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from synfundus.errors import SynfundusError
from synfundus.labels.schema import LabelSchema

_PLACES = ("export/synfundus.json", "synfundus.json")


def _schema_of(model: str) -> LabelSchema | None:
    """Return the label schema a model folder states; None where it cannot be told: the job says why."""
    for place in _PLACES:
        path = Path(model) / place
        try:
            document = json.loads(path.read_bytes())
            return LabelSchema.from_document(document["label_schema"], where=str(path))
        except (OSError, ValueError, KeyError, TypeError, SynfundusError):
            continue
    return None


def label_problems(model: str, labels: Mapping[str, int | None]) -> list[str]:
    """Describe each label the model does not have, and each value its label does not take.

    Args:
        model: Folder of a run or of an exported model; an object store is left to the job.
        labels: Values by label name, None for unknown.
    """
    schema = None if "://" in model or not labels else _schema_of(model)
    if schema is None:
        return []
    problems = []
    for name, value in labels.items():
        try:
            schema.check_value(name, value)
        except SynfundusError as error:
            choices = f" ({error.hint})" if error.hint else ""
            problems.append(f"--label: {error.message}{choices}")
    return problems
