"""A verb from its options to its job: request -> checks -> dry run | launch | run here."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from typing import Any, Literal

from synfundus.cli.request import Request, load_request
from synfundus.cli.submit import find_place, submit, written_place
from synfundus.config.assets import find_asset
from synfundus.config.auto import (
    PRECISION_KEYS,
    WORKING_PRECISIONS,
    WorkingPrecision,
    settle_precision,
    slow_precisions,
)
from synfundus.config.base import value_at
from synfundus.config.dump import dump_config
from synfundus.config.loader import fingerprint, leaf_fields
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0, together
from synfundus.distributed.lost_ranks import device_fault, lost_rank_error
from synfundus.distributed.rank_info import RankInfo, rank_info
from synfundus.distributed.requeue import how_to_resume, open_fault_report, report_fault
from synfundus.distributed.world import LocalWorld, World, connect, disconnect, has_native_bf16, in_process_group
from synfundus.errors import ConfigError
from synfundus.launch import (
    LaunchPlan,
    MachineFacts,
    Resources,
    asks_for_job,
    die_with_launcher,
    execute,
    inspect_machine,
    plan_launch,
)
from synfundus.launch.inheritance import wandb_note
from synfundus.launch.submission import PACKAGE, belongs_to_a_job, changed_code, installed, source_hash
from synfundus.processes.stop_signals import ENDING
from synfundus.redaction import redact
from synfundus.stages import Summary
from synfundus.stages.training_plan import plan_training
from synfundus.stages.verb import CACHE, NODES, Verb, closing_lines
from synfundus.storage import documents, filesystem
from synfundus.storage.writer_lock import one_writer, require_free
from synfundus.telemetry.console import Console, SilentConsole


def plan_verb(request: Request, arguments: tuple[str, ...], machine: MachineFacts) -> LaunchPlan:
    """Decide how the verb starts; a verb without these options runs in one process, whatever the config says."""
    verb, launch = request.verb, request.config.launch
    nodes = launch.nodes if NODES in verb.options else 1
    workers = int(getattr(request.section, "workers", 0)) if verb.host_only else 0
    own = request.loaded.provenance["launch.cpus_per_task"] == "default"
    cores = max(launch.cpus_per_task, workers) if own else launch.cpus_per_task
    resources = Resources(
        partition=launch.partition,
        account=launch.account,
        time_limit=launch.time_limit,
        gpus_per_node=0 if verb.host_only or launch.device == "cpu" else launch.gpus_per_node,
        cpus_per_task=cores,
        sbatch_args=launch.sbatch_args,
        submit=launch.submit,
    )
    job = not machine.is_rank and asks_for_job(nodes, resources, machine)
    if job and verb.distributed and not verb.script and "SLURM_JOB_ID" not in machine.environment:
        raise ConfigError(
            f"{resources.named()} asks for a batch job, and `{verb.name}` computes where it is started",
            where="launch",
            hint="start it inside an allocation (salloc, srun), or leave that setting out to run it here",
        )
    job = job and bool(verb.script)
    plan = plan_launch(
        arguments=arguments,
        nodes=nodes,
        procs_per_node=launch.procs_per_node if verb.distributed and not verb.one_process else 1,
        device="cpu" if verb.host_only else launch.device,
        resources=resources,
        script=str(find_asset("slurm", verb.script)) if verb.script else None,
        machine=machine,
        submission=find_place(request) if job else None,
        place=written_place(request) if job else "",
    )
    if plan.kind == "sbatch" and 0 < workers != cores:
        told = f"{workers} worker processes on {cores} cores of a task: --workers, --set launch.cpus_per_task=..."
        plan = replace(plan, notes=(*plan.notes, told))
    if launch.nodes > nodes:
        plan = replace(plan, notes=(*plan.notes, f"`{verb.name}` runs on one node, not on {launch.nodes}"))
    if plan.kind == "sbatch" and verb.trains and request.config.telemetry.wandb_project:
        plan = replace(plan, notes=(*plan.notes, *wandb_note(machine.environment)))
    return plan


def likely_device(request: Request, machine: MachineFacts, plan: LaunchPlan) -> Literal["cpu", "cuda"]:
    """Return the device of the run, without torch: of a cluster job that of its nodes, not that of this machine."""
    launch = request.config.launch
    if launch.device != "auto":
        return launch.device
    gpus = launch.gpus_per_node if plan.kind in ("srun", "sbatch") else machine.visible_gpus
    return "cuda" if gpus and not request.verb.host_only else "cpu"


def describe(request: Request, plan: LaunchPlan, device: Literal["cpu", "cuda"]) -> str:
    """Describe a dry run: values with their origins, the batch arithmetic, the processes."""
    verb, config = request.verb, request.config
    text = f"# synfundus {verb.name}, configuration {fingerprint(config)[:16]}, device {device}\n"
    text += dump_config(request.loaded, only=frozenset(verb.sections)) + "\n"
    if verb.trains is not None:
        ds_file = config.launch.ds_config
        text += plan_training(request.training, ds_file, world_size=plan.world_size, device=device).describe()
    text += "\n".join(["# launch", plan.describe(), *(f"note: {note}" for note in plan.notes), ""])
    if plan.kind == "sbatch" and verb.script:
        script = find_asset("slurm", verb.script)
        text += f"\n# {script}\n{script.read_text(encoding='utf-8')}"
    return redact(text)


def rehearse(request: Request, *, starts_now: bool) -> str:
    """Open inputs and output folders, and describe what the run would find.

    Args:
        request: What was asked for.
        starts_now: Whether the run would start now, and not as a job that waits for others of its name.

    Raises:
        SynfundusError: As the run: a dry run ends with its exit code.
    """
    from synfundus.stages.rehearsal import RUN_BESIDE, open_inputs
    from synfundus.storage.local_folder import holds_ours, require_writable

    filesystem.configure(filesystem.StoreSettings(**request.config.storage.model_dump()))
    inputs, outputs = [], []
    for option in request.verb.options:
        texts = request.texts(option)
        for text in texts if option.role in ("output", "run") else []:
            if starts_now or option is not CACHE:  # that may be a disk of the nodes
                require_writable(text)
            if starts_now:
                require_free(text, flag=option.flag)
        inputs += [(option.holds, texts)] if option.holds and texts and not {*texts} & {*option.names} else []
        outputs += [(option, text) for text in texts if option.proof]
    found = open_inputs(inputs, flip=request.verb.key == "train" and request.config.train.diffusion.flip)
    verb, config = request.verb, request.config
    found += verb.dry_run(request.section, config.seed) if verb.dry_run else ""
    found += verb.rehearse(config) if verb.rehearse else ""
    for option, text in outputs:
        beside = RUN_BESIDE if option.role == "run" else ""
        if holds_ours(text, proof=option.proof, beside=beside, flag=option.flag) and verb.compare:
            verb.compare(request.section, config.seed)
    return redact(found and f"\n{found}")


_OF_A_HOST = ("launch.nodes", "launch.procs_per_node", "launch.cpus_per_task", "storage.cache_dir", "telemetry.console")
"""Options that may differ between the hosts of a job."""


def start_facts(request: Request) -> dict[str, Any]:
    """Return what all ranks of a job must have been started with: verb, values, code, versions, DeepSpeed file."""
    values = {path: value_at(request.config, path) for path in leaf_fields() if not path.startswith(_OF_A_HOST)}
    code = {
        "the source": source_hash(PACKAGE),
        **{f"the version of {name}": text for name, text in installed().items()},
        "the DeepSpeed file": _content(request.config.launch.ds_config),
    }
    facts: dict[str, Any] = documents.as_json({"the verb": request.verb.name, **values, **code})
    return facts


def _content(ds_file: str | None) -> str:
    """Return the hash of a DeepSpeed file, or why there is none: that is refused when all ranks have met."""
    if ds_file is None:
        return ""  # a shipped one, of the source
    try:
        return hashlib.sha256(find_asset("ds_configs", ds_file).read_bytes()).hexdigest()
    except (ConfigError, OSError) as error:
        return f"unreadable: {error}"


@contextmanager
def _joined(request: Request) -> Iterator[World]:
    """Join the process group while the verb runs."""
    verb, launch = request.verb, request.config.launch
    if not verb.distributed or (verb.host_only and rank_info(os.environ).world_size == 1):
        yield LocalWorld()
        return
    world, callers = None, in_process_group()  # a caller's group is used, and left to it
    try:
        world = connect(
            device="cpu" if verb.host_only else launch.device,
            timeout_s=launch.collective_timeout_s,
            num_threads=request.training.loop.num_threads,
            facts=start_facts(request),
        )
        yield world
    except BaseException:
        # NCCL waits for the other ranks to leave the group, and they may be in a step: this process just ends
        if not callers and (world is None or world.device == "cpu"):
            disconnect()
        raise
    if not callers:
        disconnect()


def _console(request: Request, info: RankInfo, *, as_json: bool) -> Console:
    from synfundus.telemetry.sinks import build_console

    if request.verb.results_on_stdout and as_json:
        return SilentConsole()
    stream = sys.stdout if request.verb.results_on_stdout else sys.stderr
    return build_console(request.config.telemetry.console, info.rank, stream=stream)


def _run_here(request: Request, info: RankInfo, *, file: str | None, as_json: bool) -> int:
    """Run the job in this process."""
    request.check_installed()
    die_with_launcher(os.environ)
    open_fault_report(info.rank)
    filesystem.configure(filesystem.StoreSettings(**request.config.storage.model_dump()))
    job = importlib.import_module(f"synfundus.stages.{request.verb.key}.job")
    console = _console(request, info, as_json=as_json)
    if file is not None and info.rank == 0 and (changes := changed_code(file)):
        console.warning(f"this is not the code the job was submitted with: {'; '.join(changes)}")
    stale_after_s = request.training.loop.watchdog_s if request.verb.trains else 0.0
    # what libraries print is no result
    aside = nullcontext() if request.verb.results_on_stdout else redirect_stdout(sys.stderr)
    if request.begun:
        console.message(f"settings of {request.begun}, where nothing else is given")
    with aside, one_writer(stale_after_s), _joined(request) as world:
        summary = _run_job(request, job.run, world, console)
    if request.verb.closing and summary and info.rank == 0:
        recipe = () if file is not None and belongs_to_a_job(file) else request.recipe
        for line in closing_lines(request.verb, request.section, summary, recipe=recipe):
            console.message(redact(line))
    if as_json and info.rank == 0:
        sys.stdout.write(json.dumps(summary, indent=2, default=str) + "\n")
    return 0 if summary.get("ok", True) else int(summary.get("exit_code", 1))


def _check_rank(request: Request, world: World) -> None:
    """Check what the schema cannot, for the files of this rank's host too."""
    request.check(look=True)
    if request.verb.trains is not None:
        ds_file = request.config.launch.ds_config
        plan_training(request.training, ds_file, world_size=world.size, device=world.device)


def _run_job(request: Request, job: Callable[..., Summary], world: World, console: Console) -> Summary:
    """Run it; the error of another rank is reported by that rank.

    Raises:
        LaunchError: Another rank has ended, or (Stalled) does not respond.
    """
    settle = request.verb.distributed and not request.verb.host_only
    try:
        if world.size > 1:
            with together(world):
                _check_rank(request, world)
        config = _with_precision(request, world, console) if settle else request.config
        return job(config, world, console)
    except RuntimeError as error:
        failed = device_fault(error, rank=world.rank)
        if failed is not None:
            report_fault(failed.message)
            raise failed from error
        lost = lost_rank_error(error, hint="run the same command again to resume")
        if lost is None:
            raise
        raise lost from error


def _with_precision(request: Request, world: World, console: Console) -> RunConfig:
    """Resolve ``auto``, the same on all ranks, and warn of a slow precision. Collective."""
    native = not world.any(not has_native_bf16(world.device))
    settled = settle_precision(request.config, native_bf16=native, begun=_begun(request, world))
    precisions = {key: value_at(settled, key) for key in PRECISION_KEYS}
    slow = [] if native else slow_precisions(precisions, sections=request.verb.sections)
    if slow:
        console.warning(
            f"{', '.join(slow)}: bf16, for which this {world.device} has no instructions; expect it to be many times "
            "slower than fp32. A new run: take auto or fp32"
        )
    return settled


def _begun(request: Request, world: World) -> dict[str, WorkingPrecision]:
    """Return the precision of a resumed run, by its option; empty for a new run. Collective."""
    runs = [url for option in request.verb.options if option.role == "run" for url in request.texts(option)]
    if not runs:
        return {}
    from synfundus.artifacts.run_folder import begun_precision

    found = on_rank_0(lambda: begun_precision(*runs), world)
    known = next((one for one in WORKING_PRECISIONS if one == found), None)
    return {} if known is None else {f"{request.verb.trains}.loop.precision": known}


def run_verb(verb: Verb, given: Mapping[str, Any], arguments: tuple[str, ...]) -> int:
    """Run a verb and return the exit code.

    Args:
        verb: The verb.
        given: Options as typed, by Python name.
        arguments: The command line after the program's name, for the processes to start.
    """
    info = rank_info(os.environ) if verb.distributed else RankInfo(0, 1, 0, 1, "single")
    ENDING.going_on, ENDING.quiet = how_to_resume() if verb.resumes else "", info.rank != 0
    request = load_request(verb, given)
    if request.config.launch.group_readable:
        os.umask(0o027)
    # a rank is checked when all have met, so that all learn of it
    is_rank = info.world_size > 1 and not given["dry_run"]
    try:
        if not is_rank:
            request.check(look=not given["dry_run"])
    except ConfigError:
        request.check(look=True)  # a dry run is refused with all that the run is refused for
        raise
    machine = inspect_machine(os.environ, is_rank=info.source != "single")
    plan = plan_verb(request, tuple(text for text in arguments if text != "--dry-run"), machine)
    device = likely_device(request, machine, plan)
    if verb.trains is not None and not is_rank:
        world_size = info.world_size if info.source != "single" else plan.world_size
        plan_training(request.training, request.config.launch.ds_config, world_size=world_size, device=device)
    if given["dry_run"]:
        sys.stdout.write(describe(request, plan, device))
        request.check(look=True)
        if plan.kind != "sbatch":  # there it is looked for where the job runs
            request.check_installed()
        sys.stdout.write(rehearse(request, starts_now=plan.kind != "sbatch"))
        return 0
    sys.stderr.write("".join(f"note: {note}\n" for note in filter(None, (request.unread, *plan.notes))))
    if plan.kind == "in_process":
        return _run_here(request, info, file=given["config"], as_json=given["json"])
    outcome = submit(request.loaded, plan, os.environ) if plan.kind == "sbatch" else execute(plan, os.environ)
    if outcome.message:  # the output of sbatch is the result
        (sys.stderr if outcome.exit_code else sys.stdout).write(f"{outcome.message}\n")
    return outcome.exit_code
