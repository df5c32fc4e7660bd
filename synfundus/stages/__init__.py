"""A folder a verb, the only place where config meets classes; beside them what several verbs share.

``verb.py`` says what the command line takes, ``job.py`` has ``run(config, world, console) -> Summary``. The command
line, a rank started by srun and the demo all call the same function.
"""

from __future__ import annotations

from typing import Any

Summary = dict[str, Any]
"""Figures a job ends with, ready for JSON."""
