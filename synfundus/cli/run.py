"""One verb from its options to its job: configuration -> checks -> dry run | launch | run here."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from synfundus.cli.label_check import label_problems
from synfundus.cli.submit import find_place, submit, value_at
from synfundus.cli.verbs import COMMON, PROCS, Option, Verb
from synfundus.config.assets import find_asset
from synfundus.config.loader import Assignment, LoadedConfig, load_config
from synfundus.config.precision import WORKING_PRECISIONS, WorkingPrecision, settle_precision, slow_precisions
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.rank_info import RankInfo, rank_info
from synfundus.distributed.world import LocalWorld, World, connect, disconnect, has_native_bf16, lost_rank_error
from synfundus.errors import ConfigError
from synfundus.launch import (
    LaunchPlan,
    MachineFacts,
    Resources,
    die_with_launcher,
    execute,
    exit_on_signals,
    inspect_machine,
    plan_launch,
)
from synfundus.launch.submission import changed_code
from synfundus.storage import filesystem
from synfundus.storage.locations import parse_weighted
from synfundus.telemetry.console import Console, SilentConsole

UNKNOWN_LABEL = "unknown"


def assignments_of(verb: Verb, values: Mapping[str, Any]) -> list[Assignment]:
    """Turn the options that were given into assignments.

    Raises:
        ConfigError: A repeatable NAME=VALUE without an equals sign.
    """
    found: list[Assignment] = []
    for option in (*verb.options, *COMMON):
        value = values.get(option.name)
        if not option.path or value is None or value is False or value == []:
            continue
        if option.kind == "flag":
            found.append(Assignment(option.path, "true", option.flag))
        elif option.kind == "mapping":
            found.extend(_pair(option, text) for text in value)
        else:
            found.append(Assignment(option.path, value, option.flag))
    return found


def _pair(option: Option, text: str) -> Assignment:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ConfigError(
            f"{text!r} is not of the form NAME=VALUE", where=option.flag, hint=f"for example {option.flag} dr_grade=3"
        )
    unknown = value.strip().lower() in (UNKNOWN_LABEL, "null")
    return Assignment(f"{option.path}.{name.strip()}", None if unknown else value.strip(), option.flag)


def _path_problem(option: Option, value: str) -> str | None:
    """Say what is wrong with a path as it lies on the disk; object stores are left to the job."""
    if "://" in value:
        return None
    try:
        path = Path(value)
        if option.role == "input" and not path.exists():
            return f"{option.flag}: {value!r} does not exist ({option.path})"
        if option.role == "output" and path.exists() and not path.is_dir():
            return f"{option.flag}: {value!r} is a file, not a folder ({option.path})"
    except OSError as error:
        return f"{option.flag}: {value[:80]!r} cannot be used as a path: {error.strerror} ({option.path})"
    return None


def _location_problem(option: Option, text: str, *, look: bool) -> str | None:
    """Say what is wrong with a location, or nothing."""
    if not text.strip():
        return f"{option.flag} is empty ({option.path})"
    url = parse_weighted(text)[0] if option.kind == "many" else text
    return _path_problem(option, url) if look else None


def check_request(verb: Verb, config: RunConfig, *, look: bool) -> None:
    """Check what the schema cannot: that a verb has what it needs.

    Args:
        verb: The verb.
        config: The resolved values.
        look: Also look whether paths exist; a dry run may describe another machine.

    Raises:
        ConfigError: Naming every option that is missing or points nowhere.
    """
    problems: list[str] = []
    for option in verb.options:
        value = value_at(config, option.path)
        texts = [str(text) for text in value] if isinstance(value, tuple) else [] if value is None else [str(value)]
        if option.required and not any(text.strip() for text in texts):
            problems.append(f"{option.flag} is missing ({option.path}): {option.help}")
        elif option.role:
            problems.extend(filter(None, (_location_problem(option, text, look=look) for text in texts)))
    if verb.name == "demo" and (config.demo.source is None) != (config.demo.labels is None):
        problems.append("--source and --labels belong together: photographs and the table that describes them")
    if verb.name == "prepare" and config.prepare.labels is None and config.prepare.importer is None:
        problems.append("--labels is missing (prepare.labels): Label table, CSV")
    if verb.name == "sample" and config.sample.num_images is None and config.sample.labels is None:
        problems.append("--num-images or --labels is missing: how many images?")
    if verb.name == "sample" and look and config.sample.model is not None:
        problems.extend(label_problems(config.sample.model, config.sample.label))
    if problems:
        message = problems[0] if len(problems) == 1 else "\n".join(f"- {problem}" for problem in problems)
        raise ConfigError(message, where=f"synfundus {verb.name}", hint=f"see `synfundus {verb.name} --help`")


def plan_verb(verb: Verb, config: RunConfig, arguments: tuple[str, ...], machine: MachineFacts) -> LaunchPlan:
    """Decide how the verb starts; verbs that take no such option run in one process whatever a shared file says."""
    launch = config.launch
    nodes = launch.nodes if verb.script else 1
    return plan_launch(
        arguments=arguments,
        nodes=nodes,
        procs_per_node=launch.procs_per_node if PROCS in verb.options else 1,
        device="cpu" if verb.host_only else launch.device,
        resources=Resources(
            partition=launch.partition,
            account=launch.account,
            time_limit=launch.time_limit,
            gpus_per_node=0 if verb.host_only or launch.device == "cpu" else launch.gpus_per_node,
            cpus_per_task=launch.cpus_per_task,
        ),
        script=str(find_asset("slurm", verb.script)) if nodes > 1 else None,
        machine=machine,
        submission=find_place(verb, config) if nodes > 1 else None,
    )


def likely_device(config: RunConfig, machine: MachineFacts) -> Literal["cpu", "cuda"]:
    """Say what the run will compute on, without asking torch."""
    device = config.launch.device
    if device == "auto":
        return "cuda" if machine.visible_gpus else "cpu"
    return device


@contextmanager
def _joined(verb: Verb, config: RunConfig) -> Iterator[World]:
    """Join the job for as long as the verb runs."""
    if not verb.distributed or (verb.host_only and rank_info(os.environ).world_size == 1):
        yield LocalWorld()
        return
    loop = config.train_vae.loop if verb.trains == "train_vae" else config.train.loop
    world = None
    try:
        world = connect(
            device="cpu" if verb.host_only else config.launch.device,
            timeout_s=config.launch.collective_timeout_s,
            num_threads=loop.num_threads,
        )
        yield world
    except BaseException:
        # NCCL does not let go of a group before the others do, and they may wait in a step: this process just ends
        if world is None or world.device == "cpu":
            disconnect()
        raise
    disconnect()


def _console(verb: Verb, config: RunConfig, info: RankInfo, *, as_json: bool) -> Console:
    from synfundus.telemetry.sinks import build_console

    if verb.results_on_stdout:
        return SilentConsole() if as_json else build_console(config.telemetry.console, info.rank, stream=sys.stdout)
    return build_console(config.telemetry.console, info.rank)


def _run_here(verb: Verb, config: RunConfig, info: RankInfo, *, file: str | None, as_json: bool) -> int:
    """Run the job in this process."""
    die_with_launcher(os.environ)
    exit_on_signals()
    storage = config.storage
    filesystem.configure(
        filesystem.StoreSettings(
            deadline_s=storage.deadline_s,
            connect_timeout_s=storage.connect_timeout_s,
            read_timeout_s=storage.read_timeout_s,
            cache_dir=storage.cache_dir,
            cache_max_bytes=storage.cache_max_bytes,
        )
    )
    job = importlib.import_module(f"synfundus.stages.{verb.module}.job")
    console = _console(verb, config, info, as_json=as_json)
    if file is not None and info.rank == 0 and (changes := changed_code(file)):
        console.warning(f"this is not the code the job was submitted with: {'; '.join(changes)}")
    with _joined(verb, config) as world:
        summary = _run_job(verb, job, config, world, console)
    if as_json and info.rank == 0:
        sys.stdout.write(json.dumps(summary, indent=2, default=str) + "\n")
    return 0 if summary.get("ok", True) else int(summary.get("exit_code", 1))


def _run_job(
    verb: Verb,
    job: Any,  # noqa: ANN401 - a module of synfundus.stages
    config: RunConfig,
    world: World,
    console: Console,
) -> dict[str, Any]:
    """Run it; what another rank has met is that rank's to explain.

    Raises:
        LaunchError: Another rank has gone, or (Stalled) does not answer.
    """
    try:
        if verb.distributed and not verb.host_only:
            config = _with_precision(verb, config, world, console)
        summary: dict[str, Any] = job.run(config, world, console)
    except RuntimeError as error:
        lost = lost_rank_error(error, hint="the same command goes on from what is there")
        if lost is None:
            raise
        raise lost from error
    return summary


def _with_precision(verb: Verb, config: RunConfig, world: World, console: Console) -> RunConfig:
    """Settle what ``auto`` means, the same on all ranks, and warn of what would take for ever. Collective."""
    native = not world.any(not has_native_bf16(world.device))
    settled = settle_precision(config, native_bf16=native, begun=_begun(verb, config, world))
    slow = [] if native else slow_precisions(settled, sections=verb.sections)
    if slow:
        console.warning(
            f"{', '.join(slow)}: bf16, for which this {world.device} has no instructions; expect it to be many times "
            "slower than fp32. A new run: take auto or fp32"
        )
    return settled


def _begun(verb: Verb, config: RunConfig, world: World) -> dict[str, WorkingPrecision]:
    """Return the precision of the run that goes on, by its option; empty for a new one. Collective."""
    run_dir = next((option.path for option in verb.options if option.path.endswith("run_dir") and option.required), "")
    if verb.trains is None or not run_dir:
        return {}
    from synfundus.artifacts.run_folder import begun_precision

    found = on_rank_0(lambda: begun_precision(str(value_at(config, run_dir))), world)
    known = next((one for one in WORKING_PRECISIONS if one == found), None)
    return {} if known is None else {f"{verb.trains}.loop.precision": known}


def _load(verb: Verb, values: Mapping[str, Any]) -> LoadedConfig:
    return load_config(
        preset=values["preset"] or verb.default_preset,
        file=values["config"],
        settings=values["set"],
        flags=assignments_of(verb, values),
    )


def run_verb(verb: Verb, values: Mapping[str, Any], arguments: tuple[str, ...]) -> int:
    """Do what a command line asks for and return the exit code.

    Args:
        verb: The verb.
        values: Options by their Python name, as typed.
        arguments: The command line after the program's name, for the processes to start.
    """
    loaded = _load(verb, values)
    config = loaded.config
    check_request(verb, config, look=not values["dry_run"])
    info = rank_info(os.environ) if verb.distributed else RankInfo(0, 1, 0, 1, 0, "single")
    machine = inspect_machine(os.environ, is_rank=info.source != "single")
    plan = plan_verb(verb, config, tuple(text for text in arguments if text != "--dry-run"), machine)
    if verb.trains is not None:
        from synfundus.cli.arithmetic import check_training

        check_training(verb, config, world_size=_world_size(plan, info), device=likely_device(config, machine))
    if values["dry_run"]:
        from synfundus.cli.dry_run import describe

        sys.stdout.write(describe(verb, loaded, plan, likely_device(config, machine)))
        return 0
    if plan.kind == "in_process":
        return _run_here(verb, config, info, file=values["config"], as_json=values["json"])
    outcome = submit(loaded, plan, os.environ) if plan.kind == "sbatch" else execute(plan, os.environ)
    if outcome.message:  # what sbatch answers is the result
        (sys.stderr if outcome.exit_code else sys.stdout).write(f"{outcome.message}\n")
    return outcome.exit_code


def _world_size(plan: LaunchPlan, info: RankInfo) -> int:
    return info.world_size if info.source != "single" else plan.world_size
