"""One folder per verb, the only place where config meets classes; beside them, code that verbs share.

``verb.py`` defines the command line, ``job.py`` has ``run(config, world, console) -> Summary``. The command
line, a rank started by srun and the demo all call the same function.
"""

from __future__ import annotations

from typing import Any

Summary = dict[str, Any]
"""The results of a job, ready for JSON."""
