"""A synfundus command line that kills itself, without warning, at a chosen point.

python killed_run.py step:13 train --latents ...        in the middle of the 13th optimizer step of this process
python killed_run.py write:TEXT train --latents ...     half-way through writing the first file whose place has TEXT
python killed_run.py after:TEXT train --latents ...     right after that file was written
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from synfundus.storage import filesystem


def die() -> None:
    """End as a machine that loses its power does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm_step(number: int) -> None:
    """Die when the weights of the given step are updated and nothing else is."""
    from synfundus.distributed import engine

    original = engine.ZeroEngine.step
    done = 0

    def step(self: engine.ZeroEngine, **settings: Any) -> engine.StepResult | None:
        nonlocal done
        result = original(self, **settings)
        done += result is not None
        if done == number:
            die()
        return result

    engine.ZeroEngine.step = step  # type: ignore[method-assign]


def arm_write(place: str, *, finish: bool) -> None:
    """Die while, or right after, a file is written whose location contains a text."""
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        if place not in url:
            original(url, data)
            return
        if finish:
            original(url, data)
            die()
        with filesystem.atomic_write(url) as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            die()

    filesystem.write_bytes = write


if __name__ == "__main__":
    kind, _, where = sys.argv[1].partition(":")
    if kind == "step":
        arm_step(int(where))
    else:
        arm_write(where, finish=kind == "after")
    from synfundus.cli import main

    main(sys.argv[2:])
