"""What a training set of `augment` says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.cards.front_matter import front_matter
from synfundus.config.applications import AugmentConfig
from synfundus.labels.schema import LabelSchema

_OPEN = {
    "imagefolder": """from datasets import load_dataset

data = load_dataset("imagefolder", data_dir="AUG", split="train")
for row in data:
    image, label, synthetic = row["image"], row["{label}"], row["synthetic"]
""",
    "shards": """import synfundus
from torch.utils.data import DataLoader

data = synfundus.open_dataset("AUG", split="train")
for batch in DataLoader(data, batch_size=32, shuffle=True, collate_fn=data.collate):
    images, labels, synthetic = batch["image"], batch["labels"], batch["synthetic"]
""",
}
_README = """{front_matter}# Photographs and generated images as one training set

The train split has {num_real:,} photographs and {num_synthetic:,} generated images; `synthetic` tells which.
The val and test split are photographs alone, of the patients they had before: report figures on these.

**Health data.** The photographs are copies of patients' photographs, and no audit has shown that the generated images
are none: handle all of it as you handle the photographs. When a patient withdraws, make this set again from what
`synfundus forget` writes.

Labels of generated images are what was asked for; nobody has verified that an image shows them. Unless all were asked
to be kept, only those that were to be filled are given, and the others are unknown (empty): a loss has to leave these
out. {num_rejected:,} images failed the check and were left out (`rejects.jsonl`). A classifier can learn to tell
generated images from photographs: compare it, on the val split, with one trained on the photographs alone before you
use it.

```python
{example}```

| {header} |
|{line}|
{rows}

Model `{model}`, image set `{image_set}`. `generated/` is the sample set the images were copied from, with the seed and
labels of each; it can be removed when it is not needed.
"""


def classes_table(
    schema: LabelSchema, states: Mapping[str, NDArray[np.int64]], drawn: NDArray[np.int64], section: AugmentConfig
) -> tuple[list[str], list[list[Any]]]:
    """Return how many images each value of each label has: header and rows.

    Args:
        schema: The labels.
        states: Label states of the photographs ``[n, k]`` by split.
        drawn: Of the generated images ``[m, k]``.
        section: What was asked for.
    """
    header = ["label", "value", "photographs", "synthetic", "train", "val", "test"]
    rows: list[list[Any]] = []
    asked = {*section.fill, *section.balance}
    for at, spec in sorted(enumerate(schema.labels), key=lambda one: one[1].name not in asked):
        for state in (*range(1, spec.num_values + 1), 0):
            real = {split: int((column[:, at] == state).sum()) for split, column in states.items()}
            added = int((drawn[:, at] == state).sum())
            name = "unknown" if state == 0 else " ".join([str(state - 1), *spec.names[state - 1 : state]])
            rows.append([spec.name, name, real["train"], added, real["train"] + added, real["val"], real["test"]])
    return header, rows


def augmented_readme(
    provenance: Mapping[str, Any], header: Sequence[str], rows: Sequence[Sequence[Any]], *, kind: str
) -> str:
    """Return README.md of a set, from what its manifest says and its table of classes."""
    tags = ["fundus", "synthetic", "medical"]
    card = {"pretty_name": "Fundus photographs and generated images", "tags": tags}
    return _README.format(
        front_matter=front_matter(card),
        example=_OPEN[kind].format(label=rows[0][0]) if kind == "imagefolder" else _OPEN[kind],
        header=" | ".join(header),
        line="|".join("---" for _ in header),
        rows="\n".join(f"| {' | '.join(map(str, row))} |" for row in rows),
        model=str(provenance["model_fingerprint"])[:12],
        image_set=str(provenance["image_set_identity"])[:12],
        **{name: provenance[name] for name in ("num_real", "num_synthetic", "num_rejected")},
    )
