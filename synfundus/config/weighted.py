"""Locations with a weight: ``URL:0.7``."""

from __future__ import annotations

from pathlib import Path

from synfundus.errors import ConfigError


def parse_weighted(text: str) -> tuple[str, float]:
    """Split ``URL:WEIGHT``; without a weight it is 1. A folder whose name ends so, ``latents:2024``, is a folder.

    Raises:
        ConfigError: A weight that is not positive, or a text that means two folders.
    """
    url, separator, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not separator or not url:
        return text, 1.0
    if _is_there(text):
        if _is_there(url):
            raise ConfigError(
                f"{text} is a folder, and {url} with a weight is another",
                where="train.latents",
                hint=f"write {text}:1 for the first; for the second rename the first",
            )
        return text, 1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"the weight {tail} of {url} is not a positive number", where="train.latents")
    return url, weight


def _is_there(location: str) -> bool:
    """Whether a local file or folder of this name can be seen."""
    try:
        return Path(location.removeprefix("file://")).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a folder that is closed, no such home
        return False
