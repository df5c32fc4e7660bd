"""What Hugging Face reads of a card: YAML between two lines of dashes, before the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

LICENCE = "unknown"
"""Hugging Face's word; whoever publishes a model or a set puts the licence in its place."""
TAGS = ("fundus", "retina", "ophthalmology", "medical", "synthetic")


def front_matter(fields: Mapping[str, str | Sequence[str] | Sequence[Mapping[str, str]]]) -> str:
    """Return the fields of a card, in their order.

    Source: huggingface.co/docs/hub/model-cards and datasets-cards.
    """
    plain = {name: value if isinstance(value, str) else list(value) for name, value in fields.items()}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n"
