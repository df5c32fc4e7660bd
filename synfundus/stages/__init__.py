"""One module per verb: the only place where config meets classes.

Each module has ``run(config, world, console) -> Summary``. The command line, a rank started by srun and the
demo all call the same function.
"""

from __future__ import annotations

from typing import Any

Summary = dict[str, Any]
"""Figures a job ends with, ready for JSON."""
