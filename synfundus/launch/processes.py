"""Starts the processes of a plan, forwards signals to them and ends them together."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from synfundus.errors import LaunchError, Preempted
from synfundus.launch.plan import LaunchPlan, MachineFacts, ProcessPlan
from synfundus.processes.environment import MISLEADING, SAFE_PATH
from synfundus.processes.stop_signals import exit_code_of, handlers

EXIT = "SYNFUNDUS_EXIT"
"""Set for the ranks of a step: a file for the exit code of the first that fails (`distributed.requeue`)."""
LAUNCHER_PID = "SYNFUNDUS_LAUNCHER_PID"
"""Set for local ranks: the process id of the launcher, which they must not outlive."""
STOP_GRACE_S = 10.0
"""Time between SIGTERM and SIGKILL for the other ranks after one has failed."""
EXIT_TOGETHER_S = 60.0
"""Time for the other ranks to exit after one has exited with 75 (a signal or a stall)."""
POLL_S = 0.05


def count_gpus(environment: Mapping[str, str], *, driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """Count the CUDA devices this process may use, without torch."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() and not device.strip().startswith("-")])
    with contextlib.suppress(OSError):
        return len(list(driver.iterdir()))
    return 0


def inspect_machine(environment: Mapping[str, str], *, is_rank: bool) -> MachineFacts:
    """Find out what this machine has."""
    programs = frozenset(name for name in ("srun", "sbatch") if shutil.which(name, path=environment.get("PATH")))
    return MachineFacts(
        environment=environment,
        programs=programs,
        visible_gpus=count_gpus(environment),
        cores=len(os.sched_getaffinity(0)),
        python=sys.executable,
        is_rank=is_rank,
    )


@dataclass(frozen=True)
class Outcome:
    """How the started processes ended: the exit code to return, and a message, which may be empty."""

    exit_code: int
    message: str


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_launcher(environment: Mapping[str, str]) -> None:
    """Let the kernel kill this rank when its launcher dies, so that a restart never meets ranks of the killed run.

    Does nothing in a process that `execute` did not start, and on systems without ``prctl``.

    Raises:
        LaunchError: The launcher has already ended.
    """
    launcher = environment.get(LAUNCHER_PID)
    if launcher is None:
        return
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if launcher != str(os.getppid()):
        raise LaunchError(f"the launcher with process id {launcher} has ended", where="environment")


def end_process(code: int) -> NoReturn:
    """Exit with a code, without the interpreter's finalisation.

    Other threads are joined, exit handlers run and output is flushed, as at any exit. Only finalisation is left out: a
    thread of torch's gloo backend that still releases a tensor during it aborts the process (SIGABRT, "terminate called
    without an active exception"; pytorch issue 190489), and destroying a process group does not wait for that thread.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # ends idle pools too, which joining threads would not
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has gone, or it is closed
            stream.flush()
    os._exit(code)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the processes that still run: SIGTERM, then SIGKILL after a grace period."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_GRACE_S
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], sent: Sequence[int]) -> Outcome:
    """Wait for all processes; when one fails, stop the others. The first failure decides the outcome.

    Args:
        processes: One per rank.
        sent: The signals they were sent; grows meanwhile.
    """
    codes: dict[int, int] = {}
    exited_at: float | None = None
    while len(codes) < len(processes):
        if exited_at is not None and time.monotonic() - exited_at > EXIT_TOGETHER_S:
            running_ranks = [rank for rank in range(len(processes)) if rank not in codes]
            _stop([processes[rank] for rank in running_ranks])
            names = ", ".join(map(str, running_ranks))
            return Outcome(Preempted.exit_code, f"rank {names} did not exit with the others and was stopped")
        for rank, process in enumerate(processes):
            returncode = process.poll()
            if rank in codes or returncode is None:
                continue
            codes[rank] = code = 128 - returncode if returncode < 0 else returncode  # as a shell reports it
            # after a signal all ranks save and exit: wait for the others
            if code == Preempted.exit_code and exited_at is None:
                exited_at = time.monotonic()
            if code not in (0, Preempted.exit_code):
                running = [other for index, other in enumerate(processes) if index not in codes]
                _stop(running)
                how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {code}"
                others = "; the others were stopped" if running else ""
                tell = len(processes) > 1 and code not in map(exit_code_of, sent)  # else rank 0 has said it
                return Outcome(code, f"rank {rank} {how}{others}" if tell else "")
        time.sleep(POLL_S)
    return Outcome(max(codes.values()), "")


def _first_code(kept: Path, code: int) -> int:
    """Return the exit code of the first rank that failed, where srun reports that of a rank which it has stopped."""
    try:
        first = int(kept.read_text(encoding="ascii"))
        kept.unlink()
    except (OSError, ValueError):
        return code
    return first if code >= 128 else code


def execute(plan: LaunchPlan, environment: Mapping[str, str]) -> Outcome:
    """Start the processes of a plan and wait for them.

    Args:
        plan: What `plan_launch` decided; not ``in_process``.
        environment: What the processes inherit.

    Raises:
        LaunchError: A program cannot be started, or sbatch refuses the job.
    """
    if plan.kind == "sbatch":
        return _submit(plan.processes[0], environment)
    extra = {"MASTER_PORT": str(free_port()), LAUNCHER_PID: str(os.getpid())} if plan.kind == "local" else {}
    kept = Path(f".exit-{environment.get('SLURM_JOB_ID', '0')}-{os.getpid()}")
    if plan.kind == "srun":
        extra[EXIT] = str(kept.absolute())  # the nodes share this folder
    inherited = {name: value for name, value in environment.items() if name not in MISLEADING}
    processes: list[subprocess.Popen[bytes]] = []

    sent: list[int] = []

    def send(number: int) -> None:
        # srun forwards USR2 to its tasks; TERM makes it kill them at once, and the first INT only prints their state
        to_srun = signal.SIGTERM if number == signal.SIGINT and number in sent else signal.SIGUSR2
        sent.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(to_srun if plan.kind == "srun" else number)

    with handlers(send):
        try:
            for process in plan.processes:
                variables = {**inherited, **SAFE_PATH, **extra, **process.environment}
                # in a new session: a terminal's Ctrl-C reaches only the launcher, which forwards it once
                processes.append(subprocess.Popen(process.arguments, env=variables, start_new_session=True))
            outcome = _wait(processes, sent)
            return replace(outcome, exit_code=_first_code(kept, outcome.exit_code))
        except OSError as error:
            raise LaunchError(f"cannot start {plan.processes[0].arguments[0]!r}: {error.strerror}") from error
        finally:
            _stop(processes)


def _submit(process: ProcessPlan, environment: Mapping[str, str]) -> Outcome:
    """Submit a batch job to SLURM."""
    try:
        done = subprocess.run(
            process.arguments, env={**environment, **process.environment}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise LaunchError(f"cannot start sbatch: {error.strerror}") from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip()
        raise LaunchError(f"sbatch refused the job: {reason}", where="sbatch", hint="--dry-run shows its arguments")
    return Outcome(0, done.stdout.strip())
