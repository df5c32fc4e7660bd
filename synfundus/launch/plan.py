"""Which processes to start, decided from the request and the machine. Pure.

Every process is started from an argument list; no shell string is ever built from a user's values.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synfundus.errors import LaunchError
from synfundus.launch.inheritance import inherit
from synfundus.launch.submission import Submission

LaunchKind = Literal["in_process", "local", "srun", "sbatch"]

SWITCHES = ("--json", "--debug")
"""Options of the command line that are not settings."""
NOT_FROZEN = (
    "the output is in an object store: the job reads the settings when it starts, and sbatch decides where its log goes"
)

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TIME_LIMIT = re.compile(r"([0-9]+-)?[0-9]{1,3}(:[0-9]{2}){0,2}")


@dataclass(frozen=True)
class Resources:
    """What a cluster job requests.

    Attributes:
        partition: SLURM partition; None for the cluster's default.
        account: SLURM account; None for the user's default.
        time_limit: In SLURM's notation.
        gpus_per_node: 0 for CPU nodes.
        cpus_per_task: Cores for each process.
        sbatch_args: Further options for sbatch, checked by the schema.
        submit: Ask for a batch job whatever the number of nodes.
    """

    partition: str | None
    account: str | None
    time_limit: str
    gpus_per_node: int
    cpus_per_task: int
    sbatch_args: tuple[str, ...] = ()
    submit: bool = False

    def named(self) -> str:
        """Return what asks for a batch job on one node: an option and its value, empty if nothing does."""
        if self.submit:
            return "launch.submit=true"
        named = {"partition": self.partition, "account": self.account, "sbatch_args": " ".join(self.sbatch_args)}
        return next((f"launch.{name}={value}" for name, value in named.items() if value), "")


@dataclass(frozen=True)
class MachineFacts:
    """What the machine has.

    Attributes:
        environment: Environment variables.
        programs: Those of srun and sbatch that are on the PATH.
        visible_gpus: CUDA devices this process may use.
        cores: CPU cores this process may use.
        python: Python interpreter with synfundus installed.
        is_rank: Whether a launcher started this process as a rank.
    """

    environment: Mapping[str, str]
    programs: frozenset[str]
    visible_gpus: int
    cores: int
    python: str
    is_rank: bool


@dataclass(frozen=True)
class ProcessPlan:
    """One process to start: its arguments, and variables to add to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class LaunchPlan:
    """What will be started.

    Attributes:
        kind: ``in_process`` starts nothing: the verb runs in this process.
        processes: None for ``in_process``, one per rank for ``local``, one otherwise.
        world_size: Number of ranks.
        reason: Why it is started this way, in words.
        submission: Where a batch job's settings and log are kept; None = nowhere.
        notes: What the user should know before it starts, a sentence each.
    """

    kind: LaunchKind
    processes: tuple[ProcessPlan, ...]
    world_size: int
    reason: str
    submission: Submission | None = None
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the plan as text, one process a line."""
        lines = [f"{self.kind}: {self.reason}; {self.world_size} rank(s)"]
        for process in self.processes:
            variables = [f"{name}={value}" for name, value in process.environment.items()]
            lines.append("  " + " ".join([*variables, shlex.join(process.arguments)]))
        if self.kind == "sbatch":
            lines.append(self.submission.describe() if self.submission else NOT_FROZEN)
        return "\n".join(lines)


def first_host(node_list: str) -> str:
    """Return the first host of a SLURM node list.

    ``gpu[03-05,9],login1`` -> ``gpu03``; ``rack[1-2]node[04-09]`` -> ``rack1node04``.

    Raises:
        LaunchError: The list is not one.
    """
    match = re.match(r"((?:[A-Za-z0-9_.-]+|\[\d+[\d,-]*\])+)(?:,|$)", node_list)
    if match is None or match[1].startswith("["):
        raise LaunchError(f"SLURM_JOB_NODELIST={node_list!r} is not a list of nodes", where="environment")
    return re.sub(r"\[(\d+)[\d,-]*\]", r"\1", match[1])


def port_of_job(job_id: str, restarts: str = "0") -> int:
    """Derive the rendezvous port from the job id, below the range of ephemeral ports.

    Args:
        job_id: SLURM's id of the job.
        restarts: How often it was requeued: a port that was in use is not tried again.

    Raises:
        LaunchError: Not a number.
    """
    for name, value in {"SLURM_JOB_ID": job_id, "SLURM_RESTART_COUNT": restarts}.items():
        if not value.isdigit():
            raise LaunchError(f"{name}={value!r} is not a number", where="environment")
    return 12_000 + (int(job_id) + 97 * int(restarts)) % 18_000


def _local_plan(arguments: Sequence[str], ranks: int, machine: MachineFacts) -> LaunchPlan:
    threads = machine.environment.get("OMP_NUM_THREADS") or str(max(1, machine.cores // ranks))
    command = (machine.python, "-m", "synfundus", *arguments)
    processes = tuple(
        ProcessPlan(
            command,
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "OMP_NUM_THREADS": threads,
            },
        )
        for rank in range(ranks)
    )
    return LaunchPlan(
        "local", processes, ranks, f"{ranks} processes on this machine, MASTER_PORT picked when they start"
    )


def slurm_file_name(path: str) -> str:
    """Escape a path for a file-name option of sbatch, so that SLURM takes it literally.

    SLURM replaces ``%j`` and the like. A backslash makes the next character literal, and one backslash anywhere turns
    all replacement off.
    """
    if not {"%", "\\"} & set(path):
        return path
    folder, slash, name = path.replace("\\", "\\\\").rpartition("/")
    return f"{folder}{slash}\\{name}"


def job_name(verb: str, place: str) -> str:
    """Name the jobs that write one place: the same for the same place, so that SLURM starts one of them at a time.

    Args:
        verb: The verb.
        place: Absolute path or location of the folder it writes.
    """
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", place.rstrip("/").rpartition("/")[2])[:24]
    return f"synfundus-{verb}-{folder}-{hashlib.sha256(os.fsencode(place.rstrip('/'))).hexdigest()[:8]}"


def _split_gpus(resources: Resources) -> tuple[str, list[str]]:
    """Take GPUs out of ``--gres``: one request for them, with their type, in place of two that SLURM would add up.

    Returns:
        The value of ``--gpus-per-node`` and the other options.

    Raises:
        LaunchError: Another number than `launch.gpus_per_node`.
    """
    gpus, options = str(resources.gpus_per_node), []
    for option in resources.sbatch_args:
        name, _, value = option.partition("=")
        parts = value.split(",") if name == "--gres" else []
        asked = [part for part in parts if part == "gpu" or part.startswith("gpu:")]
        for part in asked:
            gpus = part.removeprefix("gpu").lstrip(":") or "1"
            if gpus.rpartition(":")[2] != str(resources.gpus_per_node):
                raise LaunchError(
                    f"{option} and launch.gpus_per_node={resources.gpus_per_node} ask for different numbers of GPUs",
                    where="launch.sbatch_args",
                    hint="give the same number in both, or leave the GPUs out of --gres",
                )
        kept = [part for part in parts if part not in asked]
        options += [f"--gres={','.join(kept)}"] if asked and kept else [] if asked else [option]
    return gpus, options


def _job_arguments(nodes: int, tasks_per_node: int, resources: Resources) -> list[str]:
    """Return the options srun and sbatch share. 0 GPUs is passed too: the scripts request some by default."""
    return [
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--cpus-per-task={resources.cpus_per_task}",
        f"--gpus-per-node={resources.gpus_per_node}",
    ]


def _check_resources(resources: Resources, arguments: Sequence[str]) -> None:
    """Refuse values that SLURM or a log could misread. The schema checks the same; this is the last check."""
    partitions = [None] if resources.partition is None else resources.partition.split(",")
    for name in (*partitions, resources.account):
        if name is not None and not _NAME.fullmatch(name):
            raise LaunchError(f"{name!r} is not a name SLURM accepts", where="launch", hint="letters, digits, _ . -")
    if not _TIME_LIMIT.fullmatch(resources.time_limit):
        raise LaunchError(
            f"{resources.time_limit!r} is not a time limit", where="launch.time_limit", hint="like 24:00:00"
        )
    for argument in arguments:
        if any(character in argument for character in "\n\r\0"):
            raise LaunchError(f"the argument {argument!r} contains a line break", where="command line")


def _srun_plan(
    arguments: Sequence[str], nodes: int, tasks_per_node: int, resources: Resources, machine: MachineFacts
) -> LaunchPlan:
    environment = machine.environment
    command = (
        "srun",
        *_job_arguments(nodes, tasks_per_node, resources),
        "--kill-on-bad-exit=1",
        "--export=ALL",
        machine.python,
        "-m",
        "synfundus",
        *arguments,
    )
    rendezvous = {
        "MASTER_ADDR": first_host(environment.get("SLURM_JOB_NODELIST", "")),
        "MASTER_PORT": str(port_of_job(environment["SLURM_JOB_ID"], environment.get("SLURM_RESTART_COUNT", "0"))),
    }
    world_size = nodes * tasks_per_node
    notes = ("launch.sbatch_args are for sbatch: this allocation exists already",) if resources.sbatch_args else ()
    return LaunchPlan("srun", (ProcessPlan(command, rendezvous),), world_size, "inside a SLURM allocation", notes=notes)


def _sbatch_plan(
    arguments: Sequence[str],
    script: str,
    nodes: int,
    tasks_per_node: int,
    resources: Resources,
    machine: MachineFacts,
    submission: Submission | None,
    place: str,
) -> LaunchPlan:
    inherited = inherit(machine.environment)
    gpus, further = _split_gpus(resources)
    options = [
        *further,
        *_job_arguments(nodes, tasks_per_node, resources)[:-1],
        f"--gpus-per-node={gpus}",
        f"--job-name={job_name(arguments[0], place)}",
        f"--time={resources.time_limit}",
        f"--export={','.join([*inherited.passed, 'SYNFUNDUS_PYTHON'])}",
    ]
    notes = inherited.notes()
    if any(option.startswith("--dep") for option in further):  # sbatch takes abbreviations, too
        notes += ("launch.sbatch_args has a dependency: two jobs of this folder no longer wait for each other",)
    else:
        options.append("--dependency=singleton")
    if resources.partition is not None:
        options.append(f"--partition={resources.partition}")
    if resources.account is not None:
        options.append(f"--account={resources.account}")
    # the script itself calls `synfundus <verb>`
    settings = arguments[1:]
    if submission is not None:
        options += [f"--output={slurm_file_name(str(submission.log))}", "--open-mode=append"]
        settings = ("--config", str(submission.config), *(text for text in settings if text in SWITCHES))
    command = ("sbatch", *options, script, *settings)
    why = "more than one node was requested" if nodes > 1 else f"{resources.named()} asks for one"
    turn = "; it waits for an earlier job of this folder" if "--dependency=singleton" in options else ""
    return LaunchPlan(
        "sbatch",
        (ProcessPlan(command, {"SYNFUNDUS_PYTHON": machine.python}),),
        nodes * tasks_per_node,
        f"a batch job, because {why}{turn}",
        submission,
        notes,
    )


def asks_for_job(nodes: int, resources: Resources, machine: MachineFacts) -> bool:
    """Whether a request is for SLURM: several nodes; or one, with an option that only a job can have. Pure.

    A machine without sbatch cannot have the partition of a shared configuration, and an allocation has its own.
    """
    possible = "sbatch" in machine.programs and "SLURM_JOB_ID" not in machine.environment
    return nodes > 1 or resources.submit or bool(resources.named() and possible)


def plan_launch(
    *,
    arguments: Sequence[str],
    nodes: int,
    procs_per_node: int | None,
    device: Literal["auto", "cpu", "cuda"],
    resources: Resources,
    script: str | None,
    machine: MachineFacts,
    submission: Submission | None = None,
    place: str = "",
) -> LaunchPlan:
    """Decide how to start a verb. Pure.

    Args:
        arguments: The command line after the program's name; the first is the verb.
        nodes: Requested nodes.
        procs_per_node: Processes per node; None = one per GPU, or one.
        device: Device to compute on.
        resources: What a cluster job requests.
        script: Batch script of the verb; None if the verb runs in no job.
        machine: What the machine has.
        submission: Where a batch job's settings and log are kept; None passes the command line itself to the job.
        place: Absolute path or location of the folder that the verb writes, for the name of the job.

    Raises:
        LaunchError: Several nodes without SLURM, or values SLURM must not get.
    """
    if machine.is_rank:
        return LaunchPlan("in_process", (), nodes * (procs_per_node or 1), "a launcher started this process as a rank")
    if nodes == 1 and not (script and asks_for_job(nodes, resources, machine)):
        unused = script and resources.named() and "SLURM_JOB_ID" not in machine.environment
        notes = (f"{resources.named()} is not used: there is no sbatch on this machine",) if unused else ()
        ranks = procs_per_node or (machine.visible_gpus if device != "cpu" else 0) or 1
        if ranks == 1:
            return LaunchPlan("in_process", (), 1, "one process", notes=notes)
        return replace(_local_plan(arguments, ranks, machine), notes=notes)
    if script is None:
        raise LaunchError(f"`{arguments[0]}` does not run on several nodes", where="--nodes", hint="remove --nodes")
    _check_resources(resources, (*arguments, *([str(submission.folder)] if submission else [])))
    tasks_per_node = procs_per_node or resources.gpus_per_node or 1
    if "SLURM_JOB_ID" in machine.environment and "srun" in machine.programs and not resources.submit:
        return _srun_plan(arguments, nodes, tasks_per_node, resources, machine)
    if "sbatch" in machine.programs:
        return _sbatch_plan(arguments, script, nodes, tasks_per_node, resources, machine, submission, place)
    what = f"{nodes} nodes were requested" if nodes > 1 else "a batch job was requested"
    raise LaunchError(
        f"{what}, but there is neither an allocation nor sbatch",
        where="--nodes" if nodes > 1 else "--submit",
        hint="run it on a machine with SLURM, or list the hosts and use launchers/torchrun_hostfile.sh",
    )
