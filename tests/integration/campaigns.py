"""The line in which a campaign says how many of its points passed."""

from __future__ import annotations

import json

import pytest


def report(name: str, failures: list[str], of: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Write a campaign's line and fail the test if one point failed."""
    with capsys.disabled():
        print("\n" + json.dumps({"name": name, "passed": of - len(failures), "of": of}))
    assert not failures, "\n".join(failures)
