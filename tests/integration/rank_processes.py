"""Real processes for tests: ranks of a job, runs of the command line, and a run that kills itself at a chosen point."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from forked_python import Popen

REPOSITORY = Path(__file__).resolve().parents[2]
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    returncode: int
    output: str

    @property
    def fault(self) -> bool:
        """Whether it failed by itself: neither well nor killed."""
        return self.returncode not in (0, -signal.SIGKILL)

    def check(self) -> Ended:
        """Fail the test with the process's own words unless it ended well."""
        assert self.returncode == 0, f"exit code {self.returncode}:\n{self.output}"
        return self


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without a place in a job, with one thread per process."""
    kept = {name: value for name, value in os.environ.items() if name not in _PLACE and not name.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **(extra or {})}


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_processes(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    *,
    timeout_s: float,
    patience_s: float = 0.0,
) -> list[Ended]:
    """Run processes side by side; a while after one failed, or when time is up, the others are killed."""
    started = [
        Popen(
            command,
            env=dict(environment),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    failed, ends = False, time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < ends:
            if not failed and any(process.poll() not in (None, 0) for process in started):
                failed, ends = True, min(ends, time.monotonic() + patience_s)
            time.sleep(0.05)
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    outputs = [process.communicate(timeout=20)[0] for process in started]
    ended = [Ended(process.returncode, output) for process, output in zip(started, outputs, strict=True)]
    if failed:  # a test that looks at one that was killed for another's failure must show that failure
        faults = [
            f"process {at} ended with {end.returncode}:\n{end.output}" for at, end in enumerate(ended) if end.fault
        ]
        return [end if end.fault else replace(end, output="\n".join([end.output, *faults])) for end in ended]
    return ended


def run_ranks(script: Path, arguments: Sequence[str], *, world_size: int, timeout_s: float = 120) -> list[Ended]:
    """Run a script as the ranks of a job."""
    command = [sys.executable, str(script), *arguments]
    return run_processes([command] * world_size, rank_environments(world_size), timeout_s=timeout_s)


def rank_environments(world_size: int) -> list[dict[str, str]]:
    """Return the environments of the ranks of a job, as torchrun sets them."""
    port = str(free_port())
    return [
        clean_environment(
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        )
        for rank in range(world_size)
    ]


def run_cli(*arguments: str | Path, timeout_s: float = 180) -> Ended:
    """Run a synfundus command line as its users do."""
    command = [sys.executable, "-m", "synfundus", *map(str, arguments)]
    return run_processes([command], [clean_environment()], timeout_s=timeout_s)[0]


def run_cli_with_fault(point: str, *arguments: str | Path, timeout_s: float = 180) -> Ended:
    """Run a command line that meets a fault `killed_run.py` knows."""
    script = Path(__file__).with_name("killed_run.py")
    command = [sys.executable, str(script), point, *map(str, arguments)]
    return run_processes([command], [clean_environment()], timeout_s=timeout_s)[0]


def run_cli_killed_at(point: str, *arguments: str | Path, timeout_s: float = 180) -> Ended:
    """Run a command line that is killed by SIGKILL at a point `killed_run.py` knows."""
    ended = run_cli_with_fault(point, *arguments, timeout_s=timeout_s)
    assert ended.returncode == -signal.SIGKILL, f"not killed but exit code {ended.returncode}:\n{ended.output}"
    return ended


def run_ranks_killed_at(
    point: str, rank: int, *arguments: str | Path, world_size: int, timeout_s: float = 180
) -> list[Ended]:
    """Run a command line as the ranks of a job, of which one is killed at a point; the others are killed then."""
    ended = run_ranks_with_fault(point, rank, *arguments, world_size=world_size, timeout_s=timeout_s)
    assert ended[rank].returncode == -signal.SIGKILL, f"{ended[rank].returncode}:\n{ended[rank].output}"
    return ended


def run_ranks_with_fault(
    point: str, rank: int, *arguments: str | Path, world_size: int, timeout_s: float = 180, patience_s: float = 0.0
) -> list[Ended]:
    """Run a command line as the ranks of a job, of which one meets a fault that `killed_run.py` knows."""
    plain = [sys.executable, "-m", "synfundus", *map(str, arguments)]
    faulty = [sys.executable, str(Path(__file__).with_name("killed_run.py")), point, *map(str, arguments)]
    commands = [faulty if number == rank else plain for number in range(world_size)]
    return run_processes(commands, rank_environments(world_size), timeout_s=timeout_s, patience_s=patience_s)
