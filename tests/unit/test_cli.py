"""From a command line to a job, in one process: options, origins, errors, exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from synfundus import __version__
from synfundus.cli.app import run_command
from synfundus.cli.report import printable, report_error
from synfundus.cli.request import Request
from synfundus.cli.verbs import COMMON, VERBS
from synfundus.config.loader import leaf_fields, load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import CheckpointError, ConfigError, DataError, NumericalError, Preempted, SynfundusError
from synfundus.launch import LaunchPlan, Outcome
from synfundus.stages.verb import Option, Verb, closing_lines, few_patients
from synfundus.storage import filesystem

Calls = list[RunConfig]
VERB_BY_NAME = {verb.name: verb for verb in VERBS}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Replace the job of a verb; returns the configurations it was called with."""

    def replace(verb: str, summary: dict[str, Any] | None = None, error: BaseException | None = None) -> Calls:
        calls: Calls = []

        def run(config: RunConfig, world: World, console: object) -> dict[str, Any]:
            del world, console
            calls.append(config)
            if error is not None:
                raise error
            return summary or {}

        module = types.ModuleType("fake_job")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"synfundus.stages.{VERB_BY_NAME[verb].key}.job", module)
        return calls

    return replace


@contextmanager
def local_world(request: Request) -> Iterator[World]:
    """A world without a process group, so that no test here imports torch."""
    del request
    yield LocalWorld()


def all_options() -> list[tuple[Verb, Option]]:
    return [(verb, option) for verb in VERBS for option in (*verb.options, *COMMON)]


@pytest.mark.parametrize(
    ("verb", "option"), all_options(), ids=lambda value: getattr(value, "flag", None) or value.name
)
def test_every_option_sets_a_leaf_of_the_schema(verb: Verb, option: Option) -> None:
    if option.path:
        assert option.path in leaf_fields()
        assert option.path.split(".")[0] in verb.sections or option.path == "seed"


def test_no_verb_has_two_options_of_one_name() -> None:
    for verb in VERBS:
        flags = [option.flag for option in (*verb.options, *COMMON)]
        assert len(flags) == len(set(flags))


def test_the_interface_named_in_the_documents_exists() -> None:
    expected = {
        "phantoms": "--out --num-images --image-size --seed",
        "prepare": "--source --labels --mapping --out --image-size --splits --workers",
        "train-vae": "--data --run-dir --init-from",
        "encode-latents": "--data --vae --out --flip",
        "verify-latents": "--latents --vae",
        "train": "--latents --run-dir --procs-per-node --nodes --vae --init-from",
        "sample": "--model --out --num-images --label --labels --sampler --num-steps --guidance-scale --seed --format",
        "demo": "--out --minutes --source --labels --mapping",
        "export": "--run-dir --out",
        "doctor": "--json",
    }
    for name, flags in expected.items():
        verb = VERB_BY_NAME[name]
        have = {option.flag for option in (*verb.options, *COMMON)}
        assert set(flags.split()) <= have
        assert {"--preset", "--config", "--set", "--dry-run", "--debug"} <= have


def test_options_reach_the_job_as_checked_values(job: Callable[..., Calls], tmp_path: Path) -> None:
    calls = job("phantoms")
    out = tmp_path / "out"
    arguments = [
        "phantoms",
        "--out",
        str(out),
        "--num-images",
        "12",
        "--image-size",
        "64",
        "--seed",
        "5",
        "--workers",
        "0",
    ]
    assert run_command(arguments) == 0
    (config,) = calls
    assert (config.phantoms.out, config.phantoms.num_images, config.phantoms.image_size_px) == (str(out), 12, 64)
    assert (config.seed, config.phantoms.workers) == (5, 0)


def test_flags_win_over_settings_over_the_file(job: Callable[..., Calls], tmp_path: Path) -> None:
    calls = job("phantoms")
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: 1\nphantoms: {{out: {tmp_path / 'out'}, num_images: 1, image_size_px: 100}}\n")
    arguments = ["phantoms", "--config", str(file), "--set", "seed=2", "--set", "phantoms.num_images=2", "--seed", "3"]
    assert run_command(arguments) == 0
    assert (calls[0].seed, calls[0].phantoms.num_images, calls[0].phantoms.image_size_px) == (3, 2, 100)


def test_labels_are_repeatable_and_can_be_unknown(job: Callable[..., Calls], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("synfundus.cli.run._joined", local_world)
    calls = job("sample")
    labels = ["--label", "dr_grade=3", "--label", "is_gc=unknown", "--label", "eye_side=0"]
    assert run_command(["sample", "--model", str(tmp_path), "--out", str(tmp_path), "--num-images", "2", *labels]) == 0
    assert calls[0].sample.label == {"dr_grade": 3, "is_gc": None, "eye_side": 0}


def test_the_demo_starts_from_its_preset_unless_another_is_named(
    job: Callable[..., Calls], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("synfundus.cli.run._joined", local_world)
    calls = job("demo")
    assert run_command(["demo", "--out", str(tmp_path)]) == 0
    assert run_command(["demo", "--out", str(tmp_path), "--preset", "fundus256", "--device", "cpu"]) == 0
    assert calls[0].launch.device == "cpu"
    assert calls[0].prepare.image_size_px == 128
    assert calls[1].prepare.image_size_px == 256


def test_what_a_verb_needs_is_named_before_anything_starts(
    job: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = job("prepare")
    assert run_command(["prepare"]) == 2
    error = capsys.readouterr().err
    for flag in ("--source", "--labels", "--out"):
        assert f"{flag} is missing" in error
    assert calls == []


def test_inputs_must_exist_and_outputs_must_not_be_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    missing = str(tmp_path / "missing")
    assert run_command(["prepare", "--source", missing, "--labels", str(file), "--out", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"--source: {missing!r} does not exist" in error
    assert "is a file, not a folder" in error
    assert "--labels:" not in error


def test_object_store_paths_are_left_to_the_job(job: Callable[..., Calls], tmp_path: Path) -> None:
    calls = job("prepare")
    table = tmp_path / "labels.csv"
    table.touch()
    assert (
        run_command(["prepare", "--source", "s3://bucket/raw", "--labels", str(table), "--out", "s3://bucket/set"]) == 0
    )
    assert calls[0].prepare.source == "s3://bucket/raw"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("dr_grad=1", "unknown label 'dr_grad' (did you mean dr_grade?); labels of this schema: dr_grade"),
        ("DR-Grade=3", "unknown label 'DR-Grade' (did you mean dr_grade?); labels of this schema: dr_grade"),
        ("dr_grade=5", "not one of 0..4"),
        ("dr_grade=-1", "not one of 0..4"),
    ],
)
@pytest.mark.parametrize("place", ["run/export", "run"])
def test_labels_a_model_does_not_have_are_refused_without_loading_it(
    label: str, expected: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    schema = [{"name": "dr_grade", "num_values": 5, "ordinal": True}]
    (folder / "synfundus.json").write_text(json.dumps({"label_schema": schema}))
    arguments = ["sample", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "o"), "--num-images", "1"]
    assert run_command([*arguments, "--label", label]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "--help" not in said, "which says nothing of a wrong value"


def test_a_model_whose_labels_cannot_be_told_is_left_to_the_job(
    job: Callable[..., Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synfundus.cli.run._joined", local_world)
    calls = job("sample")
    (tmp_path / "synfundus.json").write_text("{broken")
    arguments = ["sample", "--model", str(tmp_path), "--out", str(tmp_path / "o"), "--num-images", "1"]
    assert run_command([*arguments, "--label", "anything=1"]) == 0
    assert len(calls) == 1


def test_photographs_and_their_table_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["demo", "--out", str(tmp_path / "o"), "--source", str(tmp_path)]) == 2
    assert "--source and --labels belong together" in capsys.readouterr().err
    for option, value in (("--labels", str(tmp_path)), ("--importer", "idrid")):
        assert run_command(["demo", "--out", str(tmp_path / "o"), option, value]) == 2
        assert f"--source and {option} belong together" in capsys.readouterr().err
    known_set = ["demo", "--out", str(tmp_path / "o"), "--source", str(tmp_path), "--importer", "idrid", "--dry-run"]
    assert run_command(known_set) == 2
    said = capsys.readouterr()
    assert "importer: idrid" in said.out
    assert "IDRiD has a label table, but none is given" in said.err, "it reads the table, as the run would"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SynfundusError("x"), 1),
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (CheckpointError("x"), 4),
        (NumericalError("x"), 6),
        (Preempted("x"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_fault_ends_with_its_exit_code(
    error: BaseException, code: int, job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("phantoms", error=error)
    assert run_command(["phantoms", "--out", str(tmp_path)]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_adds_the_traceback(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("phantoms", error=DataError("broken", where="here", hint="mend it"))
    assert run_command(["phantoms", "--out", str(tmp_path), "--debug"]) == 3
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("error (data): broken\nwhere: here\nwhat to do: mend it\n")


def test_a_bug_is_not_disguised_as_the_users_mistake(job: Callable[..., Calls], tmp_path: Path) -> None:
    job("phantoms", error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run_command(["phantoms", "--out", str(tmp_path)])


def test_the_summary_goes_to_standard_output_as_json(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job("phantoms", summary={"num_images": 3, "path": tmp_path})
    assert run_command(["phantoms", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"num_images": 3, "path": str(tmp_path)}


def test_a_summary_that_is_not_ok_ends_with_one(job: Callable[..., Calls]) -> None:
    job("doctor", summary={"ok": False})
    assert run_command(["doctor"]) == 1
    job("doctor", summary={"ok": True})
    assert run_command(["doctor"]) == 0


def test_what_is_written_is_private_and_a_callers_umask_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(config: RunConfig, world: World, console: object) -> dict[str, Any]:
        del config, world, console
        (tmp_path / "file").touch()
        return {}

    module = types.ModuleType("fake_job")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "synfundus.stages.phantoms.job", module)
    before = os.umask(0o022)
    try:
        assert run_command(["phantoms", "--out", str(tmp_path)]) == 0
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.usefixtures("inputs_elsewhere")
def test_a_dry_run_shows_origins_arithmetic_engine_and_plan_and_starts_nothing(
    job: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = job("train")
    settings = [
        "--set",
        "train.loop.global_batch_size=48",
        "--set",
        "train.loop.micro_batch_size=10",
        "--set",
        "train.loop.budget_images=100",
    ]
    code = run_command(
        ["train", "--latents", "no/such", "--run-dir", "r", "--procs-per-node", "2", *settings, "--dry-run"]
    )
    text = capsys.readouterr().out
    assert code == 0
    assert calls == []
    assert "latents: [no/such]" in text
    assert "# --latents" in text
    assert "global batch 48 = 2 rank(s) x 8 images x 3 accumulation step(s)" in text
    assert "100 images / 48 = 3 optimizer steps" in text
    assert '"gradient_accumulation_steps": 3' in text
    assert "RANK=1" in text
    assert "--dry-run" not in text.split("# launch")[1]


@pytest.mark.usefixtures("inputs_elsewhere")
@pytest.mark.parametrize(("verb", "needed"), [("train", "--latents"), ("train-vae", "--data")])
def test_a_dry_run_says_that_a_micro_batch_is_found_at_start(
    job: Callable[..., Calls], capsys: pytest.CaptureFixture[str], verb: str, needed: str
) -> None:
    calls = job(verb)
    sizes = ["--procs-per-node", "2", "--micro-batch", "auto", "--set"]
    sizes.append(f"{verb.replace('-', '_')}.loop.global_batch_size=48")
    assert run_command([verb, needed, "no/such", "--run-dir", "r", *sizes, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert calls == []
    assert "micro_batch_size: auto" in text
    assert "global batch 48 = 2 rank(s) x as many images as memory holds x accumulation steps" in text
    assert "the micro-batch is found at start; below all 24 images of a rank fit at once" in text
    assert '"train_micro_batch_size_per_gpu": 24' in text


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "AUTO"])
def test_a_micro_batch_is_a_number_or_auto(
    job: Callable[..., Calls], capsys: pytest.CaptureFixture[str], value: str
) -> None:
    calls = job("train")
    assert run_command(["train", "--latents", "l", "--run-dir", "r", f"--micro-batch={value}"]) == 2
    assert calls == []
    said = capsys.readouterr().err
    assert said.count("train.loop.micro_batch_size") == 1
    assert "Input should be 'auto'" in said


@pytest.mark.usefixtures("inputs_elsewhere")
def test_a_dry_run_of_a_batch_job_prints_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = tmp_path / "called"
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert run_command(["train", "--latents", "l", "--run-dir", "r", "--nodes", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "sbatch --nodes=2 --ntasks-per-node=8" in text
    assert '-m synfundus train "$@" &' in text
    assert not called.exists()


@pytest.mark.usefixtures("inputs_elsewhere")
@pytest.mark.parametrize(
    ("given", "cores", "note"),
    [
        (["--workers", "32"], 32, ""),
        ([], 8, "note: 2 worker processes on 8 cores"),
        (["--workers", "32", "--set", "launch.cpus_per_task=4"], 4, "note: 32 worker processes on 4 cores"),
    ],
)
def test_a_job_has_a_core_for_each_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], cores: int, note: str
) -> None:
    line = [
        "prepare",
        "--source",
        "s",
        "--labels",
        "l.csv",
        "--out",
        str(tmp_path / "set"),
        "--nodes",
        "2",
        "--dry-run",
    ]
    assert run_command([*line, *given]) == 0
    text = capsys.readouterr().out
    assert f"--cpus-per-task={cores}" in text
    assert note in text
    assert note or "worker processes on" not in text


def test_a_batch_the_ranks_cannot_share_is_refused_before_they_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--latents", str(tmp_path), "--run-dir", str(tmp_path), "--procs-per-node", "3"]
    assert run_command(arguments) == 2
    assert "is not a multiple of 3 ranks" in capsys.readouterr().err


def test_several_processes_are_launched_with_the_same_command_line(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    launched: list[LaunchPlan] = []

    def execute(plan: LaunchPlan, environment: object) -> Outcome:
        del environment
        launched.append(plan)
        return Outcome(4, "rank 1 ended with exit code 4")

    monkeypatch.setattr("synfundus.cli.run.execute", execute)
    arguments = ["train", "--latents", str(tmp_path), "--run-dir", str(tmp_path), "--procs-per-node", "2"]
    assert run_command(arguments) == 4
    assert launched[0].processes[1].arguments[1:] == ("-m", "synfundus", *arguments)
    assert "rank 1 ended with exit code 4" in capsys.readouterr().err


def test_a_rank_runs_the_job_instead_of_launching(
    job: Callable[..., Calls], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synfundus.cli.run._joined", local_world)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    calls = job("train")
    assert run_command(["train", "--latents", str(tmp_path), "--run-dir", str(tmp_path), "--procs-per-node", "2"]) == 0
    assert len(calls) == 1


def test_other_ranks_report_in_one_line_with_their_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    report_error(DataError("two\nlines", hint="do this"), debug=False)
    assert capsys.readouterr().err == "rank 3: Data: two; lines\n"
    report_error(DataError("a line", where="/set/a.tar", hint="do this"), debug=False)
    assert capsys.readouterr().err == "rank 3: Data: a line (/set/a.tar)\n"


def test_one_process_verbs_ignore_the_nodes_of_a_shared_file(job: Callable[..., Calls], tmp_path: Path) -> None:
    calls = job("phantoms")
    file = tmp_path / "run.yaml"
    file.write_text(f"launch: {{nodes: 8, procs_per_node: 8}}\nphantoms: {{out: {tmp_path / 'o'}}}\n")
    assert run_command(["phantoms", "--config", str(file)]) == 0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--version"], 0, f"synfundus {__version__}"),
        ([], 0, "Commands:"),
        (["--help"], 0, "Exit codes:"),
        (["train", "-h"], 0, "--latents"),
        (["config", "presets"], 0, "fundus256"),
    ],
)
def test_questions_are_answered_on_standard_output(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == code
    assert expected in capsys.readouterr().out


def test_the_schema_is_printed_as_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "Peak learning rate." in schema["$defs"]["OptimConfig"]["properties"]["lr"]["description"]


@pytest.mark.parametrize("loaded", ["sys", "torch"])
def test_main_ends_the_process_with_the_code(loaded: str) -> None:
    script = f"import {loaded}; from synfundus.cli import main; main(['no-such-verb'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no-such-verb" in done.stderr


def test_a_terminal_gets_one_panel_and_no_escape_sequences_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    report_error(ConfigError("bad \x1b[2Jvalue", where="a.b", hint="fix"), debug=False)
    text = terminal.getvalue()
    assert text.count("╭") == 1
    assert "\\x1b[2Jvalue" in text


def test_text_is_made_printable_without_losing_letters() -> None:
    assert printable("Größe\t\n\x00\u202e\ud800") == "Größe\t\n\\x00\\u202e\\ud800"


def begun_run(folder: str, *, preset: str | None = None, **changes: str) -> str:
    """Write the documents of a run that has begun; returns its folder."""
    settings = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    config = load_config(preset=preset, file=None, settings=settings, flags=[]).config
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    for name, data in {
        "config.yaml": text.encode(),
        "run.json": b'{"format": "synfundus-run", "schema_version": 1}',
    }.items():
        filesystem.write_bytes(filesystem.join(folder, name), data)
    return folder


@pytest.mark.usefixtures("memory_store")
@pytest.mark.parametrize("place", ["disk", "memory://runs"])
@pytest.mark.parametrize(("verb", "needed"), [("train", "latents"), ("train-vae", "data")])
def test_a_run_goes_on_with_its_own_settings_where_none_are_given(
    job: Callable[..., Calls],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    needed: str,
    place: str,
) -> None:
    calls, key = job(verb), verb.replace("-", "_")
    (tmp_path / "inputs").mkdir()
    given = {
        f"{key}__{needed}": str(tmp_path / "inputs"),
        f"{key}__optim__lr": "3e-4",
        f"{key}__loop__precision": "fp32",
    }
    run_dir = begun_run(f"{place}/{verb}" if "://" in place else str(tmp_path / "run"), preset="demo-cpu", **given)
    assert run_command([verb, "--run-dir", run_dir, "--device", "cpu", "--budget-images", "77", "--seed", "5"]) == 0
    (config,) = calls
    section = getattr(config, key)
    assert (section.optim.lr, section.loop.budget_images, config.seed) == (3e-4, 77, 5)
    assert section.loop.global_batch_size == load_preset("demo-cpu", key).loop.global_batch_size
    assert section.run_dir == run_dir
    assert f"settings of {run_dir}/config.yaml, where nothing else is given" in capsys.readouterr().err


def load_preset(name: str, key: str) -> Any:
    return getattr(load_config(preset=name, file=None, settings=[], flags=[]).config, key)


def test_settings_of_a_run_are_not_mixed_into_those_of_a_preset_and_are_kept_without_one(
    job: Callable[..., Calls], tmp_path: Path
) -> None:
    calls = job("train")
    (tmp_path / "inputs").mkdir()
    run_dir = begun_run(str(tmp_path / "run"), train__optim__lr="3e-4", train__latents=str(tmp_path / "inputs"))
    line = ["train", "--run-dir", run_dir, "--latents", str(tmp_path / "inputs"), "--device", "cpu"]
    assert run_command([*line, "--preset", "demo-cpu"]) == 0
    assert calls[0].train.optim.lr == load_preset("demo-cpu", "train").optim.lr
    assert run_command(line) == 0
    assert calls[1].train.optim.lr == 3e-4 != RunConfig().train.optim.lr
    assert run_command([*line, "--set", "train.optim.lr=1e-5"]) == 0
    assert calls[2].train.optim.lr == 1e-5
    assert run_command(["train", "--set", f"train.run_dir={run_dir}", "--device", "cpu"]) == 0
    assert calls[3].train.optim.lr == 3e-4, "the run is named by --set"


@pytest.mark.parametrize("value", ["$SCRATCH/run", "${SCRATCH}/run", "~/run", "~", "~somebody/run"])
@pytest.mark.parametrize("way", ["flag", "file"])
def test_what_a_shell_would_have_expanded_is_refused(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str, way: str
) -> None:
    calls = job("phantoms")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"phantoms": {"out": value}}))
    assert run_command(["phantoms", f"--out={value}"] if way == "flag" else ["phantoms", "--config", str(file)]) == 2
    assert calls == []
    said = capsys.readouterr().err
    assert f"phantoms.out = {value!r}" in said
    assert "is not expanded here" in said


def test_a_name_with_a_dollar_that_is_there_is_taken(job: Callable[..., Calls], tmp_path: Path) -> None:
    calls = job("inspect")
    (tmp_path / "$RECYCLE.BIN").mkdir()
    assert run_command(["inspect", "--data", str(tmp_path / "$RECYCLE.BIN")]) == 0
    assert calls[0].inspect.data == str(tmp_path / "$RECYCLE.BIN")


def test_a_link_that_leads_nowhere_is_named(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = job("phantoms")
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    assert run_command(["phantoms", "--out", str(tmp_path / "out")]) == 2
    assert f"is a link to '{tmp_path / 'gone'}', which is not there" in capsys.readouterr().err
    assert calls == []


def test_wandb_that_is_not_installed_is_noticed_before_anything_starts(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = job("train")
    line = ["train", "--latents", str(tmp_path), "--run-dir", str(tmp_path / "run"), "--device", "cpu"]
    monkeypatch.setattr("synfundus.cli.request.find_spec", lambda name: None)
    assert run_command([*line, "--set", "telemetry.wandb_project=eyes"]) == 2
    assert "telemetry.wandb_project is 'eyes', but wandb is not installed" in capsys.readouterr().err
    assert calls == []


def test_a_verb_says_what_it_wrote_and_what_comes_next(
    job: Callable[..., Calls], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my set"
    splits, patients = {"train": 1040, "val": 2, "test": 1}, {"train": 500, "val": 2, "test": 1}
    told = {"splits": splits, "num_samples": 1043, "num_patients": patients, "crosswalk": f"{out}.crosswalk"}
    job("prepare", told)
    for name in ("photographs", "labels.csv"):
        (tmp_path / name).mkdir()
    inputs = ["--source", str(tmp_path / "photographs"), "--labels", str(tmp_path / "labels.csv")]
    assert run_command(["prepare", *inputs, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"image set: '{out}' (train 1,040, val 2, test 1)" in said
    assert f"CROSSWALK: '{out}.crosswalk' has file names, patients and the secret key" in said
    assert f"next: synfundus train-vae --data '{out}' --run-dir RUN" in said
    assert "warning: val has 2 patients: figures on it say little" in said
    assert "warning: test has 1 patient: figures" in said
    assert few_patients({"train": 1040, "val": 2, "test": 1}, num_samples=1043)[1].startswith("test has 1 photograph: ")


def test_every_verb_that_writes_says_at_its_end_what_is_there() -> None:
    writes = {verb.name for verb in VERBS if any(o.required and o.role in ("output", "run") for o in verb.options)}
    assert {verb.name for verb in VERBS if verb.closing} >= writes


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.closing], ids=lambda verb: verb.name)
def test_the_next_command_is_one(verb: Verb) -> None:
    summary = {"splits": {"train": 3}, "num_patients": {}, "crosswalk": "c", "out": "o", "figures": {"psnr_db": None}}
    recipe = ("--preset", "demo-cpu", "--config", "my run.yaml")
    line = closing_lines(verb, getattr(RunConfig(), verb.key), summary, recipe=recipe)[-1]
    if verb.name == "gallery":  # it is for eyes
        assert line == "open it in a browser, no server is needed: o/index.html"
        return
    if verb.name == "progress":  # likewise
        assert line == "synthetic, and no forecast for a patient; frames with their figures: o/frames.csv"
        return
    if verb.name == "edit":  # for eyes
        assert line == "drawn by a model, and not anonymous: read o/README.md; figures: o/frames.csv"
        return
    if verb.name == "augment":
        assert line.startswith("val and test are photographs alone")
        return
    if verb.name == "judge":  # the last of its chain
        assert line == "figures and intervals: o/judge.json"
        return
    if verb.name in ("phantoms", "prepare", "train-vae", "encode-latents"):
        assert " --preset demo-cpu --config 'my run.yaml'" in line, "what follows is of the same size and budget"
    program, name, *words = shlex.split(line.removeprefix("next: "))
    assert program == "synfundus"
    known = {option.flag for option in VERB_BY_NAME[name].options} | {"--preset", "--config"}
    assert {word for word in words if word.startswith("--")} <= known
    needed = {option.flag for option in VERB_BY_NAME[name].options if option.required}
    assert needed <= set(words)
