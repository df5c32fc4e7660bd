"""Locations with a weight: ``URL:0.7``."""

from __future__ import annotations

from synfundus.errors import ConfigError


def parse_weighted(text: str) -> tuple[str, float]:
    """Split ``URL:WEIGHT``; without a weight it is 1.

    Raises:
        ConfigError: A weight that is not positive.
    """
    url, separator, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not separator or not url:
        return text, 1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"the weight {tail} of {url} is not a positive number", where="train.latents")
    return url, weight
