"""What the program says of its results: nothing is called fit to be given away before a release gate exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("synfundus/**/*.py", "synfundus/**/*.md", "synfundus/**/*.yaml", "slurm/*.sh", "launchers/*.sh")
TEXTS = (*SOURCES, "pyproject.toml", "README.md", "docs/*.md", "tests/golden/command_line.txt", "Makefile")
PROMISES = (
    r"releas(e)?able",
    r"(ready|safe|cleared|fit) (for|to) (be )?(release|share|publish)",
    r"(fully|truly|completely) anonym",
    r"privacy[- ](safe|preserving)",
    r"(GDPR|HIPAA)[- ]compliant",
)
HONEST = re.compile(r"\b(not|nothing|never|no)\b[^.]*$", re.IGNORECASE)
"""What must stand before such words in the same sentence."""


def promises(text: str) -> list[str]:
    """Return the sentences that promise what no release gate has checked."""
    found = []
    flat = re.sub(r"\s+", " ", text)
    for pattern in PROMISES:
        for match in re.finditer(pattern, flat, re.IGNORECASE):
            before = re.split(r"[.!?|] ", flat[: match.start()])[-1]
            if not HONEST.search(before):
                found.append(f"{before[-60:]}{match[0]}")
    return found


@pytest.mark.parametrize("pattern", TEXTS)
def test_no_text_of_the_product_promises_what_no_gate_has_checked(pattern: str) -> None:
    paths = list(ROOT.glob(pattern))
    assert paths or pattern.endswith(".sh"), pattern
    assert {str(path): found for path in paths if (found := promises(path.read_text(encoding="utf-8")))} == {}


def test_promises_are_found_and_their_denials_are_not() -> None:
    for text in ("to a releasable synthetic data set", "The images are safe to share.", "It is GDPR-compliant."):
        assert promises(text), text
    for text in ("generated images are not cleared for release", "Nothing here is safe to share."):
        assert promises(text) == [], text
