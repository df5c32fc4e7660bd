"""What is shipped works: presets, DeepSpeed files and shell scripts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from synfundus.cli.app import run_command
from synfundus.cli.verbs import VERBS
from synfundus.config.assets import list_assets, read_ds_file
from synfundus.config.auto import assumed_micro_batch
from synfundus.config.loader import list_presets, load_config, preset_text
from synfundus.config.yaml_text import parse_mapping
from synfundus.diffusion.parametrisation import loss_weight
from synfundus.diffusion.sampling import scheduler_for
from synfundus.distributed.ds_config import build_ds_config, check_ds_file, plan_batch
from synfundus.launch.plan import port_of_job
from synfundus.stages import build
from synfundus.stages.verb import Verb

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("slurm/*.sh"), *ROOT.glob("launchers/*.sh")])
STEP_SCRIPTS = {
    "prepare.sh": "prepare",
    "vae.sh": "train-vae",
    "encode_latents.sh": "encode-latents",
    "ldm.sh": "train",
    "sample.sh": "sample",
}
"""Those of the chain, in its order."""
VERB_SCRIPTS = {**STEP_SCRIPTS, "augment.sh": "augment", "judge.sh": "judge", "demo.sh": "demo"}


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    mask = os.umask(0o022)
    yield
    os.umask(mask)


def minimal(verb: Verb) -> list[str]:
    """Return the shortest command line the verb accepts."""
    numbers = {"--sigma-rel": "0.1"}
    required = [
        text
        for option in verb.options
        if option.required
        for text in (option.flag, numbers.get(option.flag, "somewhere"))
    ]
    either = {
        "sample": ["--num-images", "1"],
        "prepare": ["--labels", "somewhere"],
        "judge": ["--samples", "somewhere"],
        "progress": ["--label", "dr_grade=0..4"],
        "augment": ["--fill", "dr_grade=500"],
        "edit": ["--label", "dr_grade=3"],
    }
    return [verb.name, *required, *either.get(verb.name, [])]


def test_the_presets_of_the_documents_are_shipped() -> None:
    assert list_presets() == ["demo-cpu", "fundus1024", "fundus256", "fundus512"]


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.usefixtures("inputs_elsewhere")
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_dry_runs_with_every_preset(verb: Verb, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*minimal(verb), "--preset", preset, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"# synfundus {verb.name}")
    assert "# launch\n" in text


@pytest.mark.parametrize("ds_config", list_assets("ds_configs"))
@pytest.mark.usefixtures("inputs_elsewhere")
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.trains is not None], ids=lambda verb: verb.name)
def test_every_training_verb_dry_runs_with_every_deepspeed_file(
    verb: Verb, ds_config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*minimal(verb), "--set", f"launch.ds_config={ds_config}", "--dry-run"]) == 0
    assert f"{ds_config})" in capsys.readouterr().out


@pytest.mark.parametrize("name", list_assets("ds_configs"))
def test_deepspeed_files_hold_zero_and_communication_knobs_only(name: str) -> None:
    path, document = read_ds_file(name, device="cuda")
    checked = check_ds_file(document, where=str(path))
    zero = checked["zero_optimization"]
    assert zero["overlap_comm"] is False
    assert zero["contiguous_gradients"] is True
    assert zero["round_robin_gradients"] is False
    assert isinstance(zero["reduce_bucket_size"], int)
    assert isinstance(zero["allgather_bucket_size"], int)
    assert checked["data_types"] == {"grad_accum_dtype": "fp32"}
    assert checked["zero_force_ds_cpu_optimizer"] is False
    batch = plan_batch(global_batch_size=8, max_micro_batch_size=4, world_size=2)
    json.dumps(build_ds_config(checked, batch=batch, precision="bf16", max_grad_norm=1.0))


@pytest.mark.parametrize("preset", [name for name in list_presets() if name.startswith("fundus")])
def test_research_presets_say_why_and_share_their_batch_over_eight_gpus(preset: str) -> None:
    text = preset_text(preset)
    assert text.startswith("#")
    assert text.count("#") >= 4
    config = load_config(preset=preset, file=None, settings=[], flags=[]).config
    for loop in (config.train.loop, config.train_vae.loop):
        plan = plan_batch(
            global_batch_size=loop.global_batch_size, max_micro_batch_size=assumed_micro_batch(loop), world_size=8
        )
        assert plan.micro_batch_size * plan.gradient_accumulation_steps * 8 == loop.global_batch_size
        assert loop.precision == "bf16"
    factor = 2 ** (len(config.train_vae.autoencoder.block_out_channels) - 1)
    assert config.prepare.image_size_px == int(preset.removeprefix("fundus"))
    latent = config.prepare.image_size_px // factor
    assert latent % 2 ** (len(config.train.unet.block_out_channels) - 1) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of diffusers
@pytest.mark.parametrize("preset", list_presets())
def test_the_first_timestep_that_a_preset_samples_has_its_weight_in_the_loss(preset: str) -> None:
    config = load_config(preset=preset, file=None, settings=[], flags=[]).config
    diffusion = config.train.diffusion
    settings = build.sampler_settings(config.sample)
    scheduler = scheduler_for(settings.sampler, build.schedule_settings(diffusion))
    scheduler.set_timesteps(settings.num_steps)
    weight = loss_weight(
        scheduler.timesteps[:1],
        schedule=build.forward_process(diffusion),
        prediction_type=diffusion.prediction_type,
        min_snr_gamma=diffusion.min_snr_gamma,
    )
    assert float(weight) > 0.5
    assert build.unweighted_start(diffusion) is None


@pytest.mark.parametrize("preset", list_presets())
def test_presets_name_no_paths(preset: str) -> None:
    loaded = load_config(preset=preset, file=None, settings=[], flags=[])
    paths = [option.path for verb in VERBS for option in verb.options if option.role]
    assert {loaded.provenance[path] for path in paths} == {"default"}
    assert parse_mapping(preset_text(preset), where=preset)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_are_executable_and_short(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/bash\n")
    assert len(script.read_text().splitlines()) <= 40


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shell_scripts_pass_shellcheck() -> None:
    subprocess.run(["shellcheck", *map(str, SCRIPTS)], check=True)


@pytest.mark.parametrize(("name", "verb"), VERB_SCRIPTS.items())
def test_batch_scripts_append_requeue_and_warn_in_time(name: str, verb: str) -> None:
    text = (ROOT / "slurm" / name).read_text()
    for header in ("--open-mode=append", "--requeue", "--signal=B:USR2@300"):
        assert f"#SBATCH {header}\n" in text
    assert f'-m synfundus {verb} "$@" &' in text
    assert "srun --export=ALL --kill-on-bad-exit=1" in text
    assert "SECRET" not in text


def test_batch_scripts_differ_only_in_verb_and_size() -> None:
    def body(name: str, verb: str) -> str:
        text = (ROOT / "slurm" / name).read_text()
        return text[text.index("set -uo pipefail") :].replace(f"synfundus {verb} ", "synfundus VERB ")

    assert len({body(name, verb) for name, verb in VERB_SCRIPTS.items()}) == 1


def test_every_batch_script_a_verb_names_is_shipped() -> None:
    assert {verb.script: verb.name for verb in VERBS if verb.script} == VERB_SCRIPTS
    assert VERB_SCRIPTS.keys() <= set(list_assets("slurm"))


SLURM_STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*" >> "$RECORD"; fi',
    "squeue": 'echo "$STATE $PREEMPTED"',
    "srun": """
echo "srun $* at $MASTER_ADDR:$MASTER_PORT with $SRUN_CPUS_PER_TASK cores" >> "$RECORD"
trap 'exit 75' USR2
touch "$READY"
eval "$STEP"
""",
}


def run_batch_script(
    tmp_path: Path,
    step: str,
    *,
    signal_name: str | None = None,
    restarts: str = "0",
    state: str = "RUNNING",
    preempted: str = "N/A",
    stubs: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run ldm.sh with stand-ins for SLURM's programs; returns the exit code and what they were asked.

    What it prints lies in ``tmp_path / "log"``.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {**SLURM_STUBS, **(stubs or {})}.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    record, ready = tmp_path / "record", tmp_path / "ready"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "RECORD": str(record),
        "READY": str(ready),
        "STEP": step,
        "STATE": state,
        "PREEMPTED": preempted,
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_RESTART_COUNT": restarts,
        "SLURM_CPUS_PER_TASK": "5",
    }
    script = ROOT / "slurm" / "ldm.sh"
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(["bash", str(script), "--run-dir", "a b"], env=environment, stdout=log)
    if signal_name is not None:
        waiting = subprocess.run(
            ["bash", "-c", f'for i in $(seq 500); do [ -e "{ready}" ] && exit 0; sleep 0.02; done; exit 1'], check=False
        )
        assert waiting.returncode == 0
        subprocess.run(["kill", f"-{signal_name}", str(job.pid)], check=True)
    code = job.wait(timeout=60)
    return code, record.read_text()


def test_a_batch_script_passes_arguments_and_exit_code_on(tmp_path: Path) -> None:
    code, record = run_batch_script(tmp_path, "exit 3")
    assert code == 3
    # from 22.05 on srun does not take the cores of a task over from sbatch
    assert "-m synfundus train --run-dir a b at node7:16711 with 5 cores" in record
    assert "requeue" not in record


@pytest.mark.parametrize("signal_name", ["USR2", "TERM"])
def test_a_batch_script_forwards_the_warning_and_requeues_what_was_saved(tmp_path: Path, signal_name: str) -> None:
    code, record = run_batch_script(tmp_path, "while :; do sleep 0.05; done", signal_name=signal_name)
    assert code == 75
    assert "scontrol requeue 4711" in record


def test_a_batch_script_requeues_what_a_signal_ended_before_it_could_save(tmp_path: Path) -> None:
    step = "trap - USR2; while :; do sleep 0.05; done"
    code, record = run_batch_script(tmp_path, step, signal_name="USR2")
    assert code == 128 + signal.SIGUSR2
    assert "scontrol requeue 4711" in record


def test_a_batch_script_does_not_requeue_what_was_killed_without_a_signal_to_it(tmp_path: Path) -> None:
    code, record = run_batch_script(tmp_path, "exit 137")
    assert code == 137
    assert "requeue" not in record


@pytest.mark.parametrize(
    ("step", "again"), [("exit 143", True), ("exit 137", True), ("exit 3", False), ("true", False)]
)
def test_a_batch_script_requeues_what_a_preemption_ended(tmp_path: Path, step: str, again: bool) -> None:
    code, record = run_batch_script(tmp_path, step, preempted="2026-11-26T09:53:45")
    assert code == (int(step.split()[1]) if " " in step else 0)
    assert ("scontrol requeue 4711" in record) == again


def test_a_batch_script_does_not_take_a_rank_that_srun_ended_for_a_preemption(tmp_path: Path) -> None:
    code, record = run_batch_script(tmp_path, "exit 143")
    assert code == 143
    assert "requeue" not in record


def test_a_cancelled_job_is_not_requeued(tmp_path: Path) -> None:
    step = "while :; do sleep 0.05; done"
    code, record = run_batch_script(tmp_path, step, signal_name="TERM", state="COMPLETING")
    assert code == 75
    assert "requeue" not in record


def test_a_job_is_not_requeued_for_ever(tmp_path: Path) -> None:
    code, record = run_batch_script(tmp_path, "exit 75", restarts="20")
    assert code == 75
    assert "requeue" not in record
    log = (tmp_path / "log").read_text()
    assert "restart 20 of 20" in log
    assert f"at node7:{port_of_job('4711', '20')} " in record, "not at a port that somebody has"
    assert "that was the last restart" in log


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    """While it fails over: what was saved must not stay out of the queue for it."""
    stubs = {
        "squeue": f'echo >> "$RECORD.asked"; [ $(wc -l < "$RECORD.asked") -lt 4 ] && exit 1; {SLURM_STUBS["squeue"]}',
        "sleep": 'echo "slept $*" >> "$RECORD"',
    }
    code, record = run_batch_script(tmp_path, "exit 75", stubs=stubs)
    assert code == 75
    assert record.count("slept 20") == 3
    assert "scontrol requeue 4711" in record


def test_a_controller_that_never_answers_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    stubs = {"squeue": "exit 1", "sleep": 'echo "slept $*" >> "$RECORD"'}
    code, record = run_batch_script(tmp_path, "exit 75", stubs=stubs)
    assert code == 75
    assert record.count("slept 20") == 9
    assert "requeue" not in record


def test_the_pipeline_chains_its_jobs(tmp_path: Path) -> None:
    record = tmp_path / "record"
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\necho "$*" >> "$RECORD"\necho "$(wc -l < "$RECORD");cluster"\n')
    sbatch.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RECORD": str(record)}
    command = ["bash", str(ROOT / "slurm" / "pipeline.sh"), "my run.yaml", "--partition=gpu"]
    (tmp_path / "my run.yaml").touch()
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=tmp_path)
    jobs = record.read_text().splitlines()
    assert [Path(job.split(" --config")[0].split()[-1]).name for job in jobs] == list(STEP_SCRIPTS)
    assert "dependency" not in jobs[0]
    assert all(f"--dependency=afterok:{number}" in job for number, job in enumerate(jobs[1:], start=1))
    assert all("--partition=gpu" in job and job.endswith("--config my run.yaml") for job in jobs)
