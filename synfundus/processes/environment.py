"""What the environment of every started process has, and lacks."""

from __future__ import annotations

from collections.abc import Mapping

SAFE_PATH: Mapping[str, str] = {"PYTHONSAFEPATH": "1"}
"""For every Python that is started: ``python -m`` would import the Python files of the working folder first."""
MISLEADING = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONINSPECT")
"""Variables of a notebook or an interactive session: matplotlib refuses a notebook's backend, Python would not end."""
