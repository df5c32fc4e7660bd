"""Programs of an environment with a CUDA build of torch, run on the stand-in GPU."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rank_processes import REPOSITORY, Ended, clean_environment, run_processes

from stand_in_gpu import MARK
from stand_in_gpu.builder import build, under

PYTHON = "SYNFUNDUS_STAND_IN_PYTHON"
"""Environment variable: the interpreter of an environment with a CUDA build of torch."""
HOW_TO_GET_ONE = (
    f"no CUDA build of torch: `make gpu-stand-in` installs one, or name an interpreter that has one in {PYTHON}"
)
_FACTS = "import importlib.util as i, torch; print(torch.version.cuda, i.find_spec('xformers') is not None)"


@dataclass(frozen=True)
class StandIn:
    """A stand-in GPU for one environment.

    Attributes:
        python: Its interpreter.
        library: The stand-in, built for it.
        has_xformers: Whether xformers is installed there.
    """

    python: Path
    library: Path
    has_xformers: bool

    def run(
        self,
        *command: str | Path,
        name: str,
        timeout_s: float = 900,
        environment: Mapping[str, str] = MappingProxyType({}),
        **card: Any,
    ) -> Ended:
        """Run the interpreter with arguments; it has to end well. Prints how long it took, as a line of JSON.

        Args:
            command: What follows the interpreter.
            name: What is printed.
            timeout_s: When it is killed.
            environment: More variables of it.
            card: Arguments of `under`.
        """
        paths = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
        caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        kept = {variable: str(self.library.parent / folder) for variable, folder in caches.items()}
        # the device of the job decides, whatever DeepSpeed is told
        told = {"DS_ACCELERATOR": "cpu"}
        variables = clean_environment({**paths, **kept, **under(self.library, **card), **told, **environment})
        began, worked = time.perf_counter(), _cpu_seconds()
        arguments = [str(self.python), *map(str, command)]
        ended = run_processes([arguments], [variables], timeout_s=timeout_s)[0].check()
        took = {"seconds": round(time.perf_counter() - began), "cpu_seconds": round(_cpu_seconds() - worked)}
        report(name, **took)
        assert "WARNING[XFORMERS]" not in ended.output, ended.output
        return ended

    def synfundus(self, *arguments: str | Path, **options: Any) -> Ended:
        """Run a command line on the GPU, named after its verb unless told otherwise."""
        return self.run("-m", "synfundus", *arguments, **{"name": str(arguments[0]), **options})


def document(ended: Ended) -> Mapping[str, Any]:
    """Return the document that a script has printed."""
    line = next(line for line in ended.output.splitlines() if line.startswith(MARK))
    found: Mapping[str, Any] = json.loads(line.removeprefix(MARK))
    return found


def report(name: str, **figures: Any) -> None:
    """Print figures as a line of JSON."""
    print(json.dumps({"name": name, **figures}), flush=True)


def find_stand_in(folder: Path) -> StandIn | None:
    """Build a stand-in GPU for the environment that is named, else for this one; None without a CUDA build."""
    if not os.environ.get(PYTHON) and torch.version.cuda is None:
        return None
    python = Path(os.environ.get(PYTHON) or sys.executable)
    facts = subprocess.run([python, "-c", _FACTS], check=True, capture_output=True, text=True, timeout=300)
    cuda, has_xformers = facts.stdout.split()
    assert cuda != "None", f"{PYTHON}={python} has no CUDA build of torch"
    return StandIn(python, build(python, folder), has_xformers == "True")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
