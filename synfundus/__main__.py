"""``python -m synfundus``: what srun and torchrun start on each rank."""

import os
import sys


def leave_working_folder() -> None:
    """Import nothing from the working folder, which ``python -m`` puts first: a yaml.py there is not ours.

    A checkout that is not installed stays importable, also for the processes that are started: last, so that its files
    stand for no package.
    """
    here = os.getcwd()  # noqa: PTH109 - before anything else is imported
    if sys.flags.safe_path or not sys.path or sys.path[0] != here:
        return
    del sys.path[0]
    from pathlib import Path

    if Path(here).resolve() == Path(__file__).resolve().parents[1] and here not in sys.path:
        sys.path.append(here)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), here)))


if __name__ == "__main__":
    leave_working_folder()
    from synfundus.cli import main

    main()
