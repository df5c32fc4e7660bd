"""Which variables a batch job inherits, through the command that is given to sbatch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from synfundus.cli.app import run_command
from synfundus.launch.inheritance import BY_HAND, inherit, wandb_note

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("prepare.sh", "vae.sh", "encode_latents.sh", "ldm.sh", "sample.sh", "augment.sh", "judge.sh", "demo.sh")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "offline"),
        ("WANDB_BASE_URL", "https://wandb.hospital.example"),
        ("WANDB_ENTITY", "eye-lab"),
        ("HTTPS_PROXY", "http://proxy.example:3128"),
        ("https_proxy", "http://proxy.example:3128"),
        ("NO_PROXY", "localhost,.hospital.example"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo"),
        ("NCCL_IB_PKEY", "0x8001"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/run/token"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/home/me/credentials"),
        ("HF_HOME", "/scratch/hf"),
        ("OMP_NUM_THREADS", "4"),
        ("PYTHONPATH", "/opt/code"),
        ("SYNFUNDUS_MAX_RESTARTS", "3"),
    ],
)
def test_settings_and_locations_reach_the_job(name: str, value: str) -> None:
    found = inherit({name: value})
    assert (found.passed, found.notes()) == ((name,), ())


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WANDB_API_KEY", "x", "the key"),
        ("HF_TOKEN", "x", "the key"),
        ("HF_HUB_TOKEN", "x", "the key"),
        ("AWS_ACCESS_KEY_ID", "x", "the key"),
        ("AWS_SECRET_ACCESS_KEY", "x", "the key"),
        ("AWS_SESSION_TOKEN", "x", "the key"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x", "the key"),
        ("HTTPS_PROXY", "http://me:word@proxy.example:3128", "credentials"),
        ("http_proxy", "me:word@proxy.example:3128", "credentials"),
        ("ALL_PROXY", "socks5://me@proxy.example", "credentials"),
        ("WANDB_BASE_URL", "https://me:word@wandb.example", "credentials"),
        ("WANDB_NOTES", "hf_" + "a1B2" * 8, "credentials"),
        ("SYNFUNDUS_MAX_RESTART", "3", "nothing reads it"),
    ],
)
def test_keys_and_credentials_stay_here_and_are_named(name: str, value: str, why: str) -> None:
    found = inherit({name: value})
    assert found.passed == ()
    (note,) = found.notes()
    assert f"{name} (" in note
    assert why in note
    assert value not in note or value == "x" or value == "3"


def test_the_value_of_a_secret_reaches_the_job_under_no_name() -> None:
    environment = {"OTHER_PASSWORD": "correct-horse", "WANDB_TAGS": "a,correct-horse", "WANDB_NOTES": "plain"}
    assert inherit(environment).passed == ("WANDB_NOTES",)


def test_what_is_not_ours_is_neither_passed_on_nor_named() -> None:
    found = inherit({"EDITOR": "vi", "MY_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "0", "WANDB_SERVICE": "2-1-tcp-h-3"})
    assert (found.passed, found.notes()) == ((), ())


def test_the_key_of_weights_and_biases_is_missed_only_by_a_job_that_goes_online() -> None:
    (note,) = wandb_note({"WANDB_API_KEY": "x"})
    assert "wandb login" in note
    assert "WANDB_MODE=offline" in note
    for environment in ({}, {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, {"WANDB_MODE": "online"}):
        assert wandb_note(environment) == ()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_header_of_a_script_has_the_names_that_are_documented(script: str) -> None:
    text = (ROOT / "slurm" / script).read_text()
    found = re.search(r"^#SBATCH --export=(.*)$", text, re.MULTILINE)
    assert found
    assert tuple(found[1].split(",")) == BY_HAND
    assert inherit(dict.fromkeys(BY_HAND, "1")).notes() == ()
    documented = set(re.findall(r"\b[A-Za-z_0-9]{2,}\b", (ROOT / "docs" / "cluster.md").read_text()))
    assert set(BY_HAND) <= documented


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node whose sbatch runs the batch script with nothing but the variables of --export, as SLURM does."""
    programs = tmp_path / "bin"
    programs.mkdir()
    sbatch = f"""#!{sys.executable}
import os, subprocess, sys
names = [word[len("--export="):] for word in sys.argv if word.startswith("--export=")][-1].split(",")
kept = {{name: os.environ[name] for name in names if name in os.environ}}
kept |= {{"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}}
script = next(word for word in sys.argv[1:] if word.endswith(".sh"))
rest = sys.argv[sys.argv.index(script) + 1 :]
subprocess.run(["bash", script, *rest], env=kept, check=False)
print("Submitted batch job 7")
"""
    for name, body in {
        "sbatch": sbatch,
        "srun": f"#!/bin/bash\nenv > {tmp_path}/rank\n",
        "scontrol": "#!/bin/bash\necho node1\n",
        "squeue": "#!/bin/bash\necho RUNNING N/A\n",
    }.items():
        (programs / name).write_text(body)
        (programs / name).chmod(0o755)
    (tmp_path / "latents").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "WANDB_", "HF_"))]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.usefixtures("inputs_elsewhere")
def test_offline_reaches_the_rank_and_the_key_does_not(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word@proxy.example")
    options = ("--nodes", "2", "--device", "cpu", "--set", "telemetry.wandb_project=eyes")
    assert run_command(["train", "--latents", "latents", "--run-dir", "run", *options]) == 0
    rank = dict(line.partition("=")[::2] for line in (desk / "rank").read_text().splitlines())
    assert rank["WANDB_MODE"] == "offline"
    assert not {"WANDB_API_KEY", "HTTPS_PROXY"} & set(rank)
    said = capfd.readouterr()
    assert "note: the job does not inherit WANDB_API_KEY (" in said.err
    assert "HTTPS_PROXY (the value holds credentials" in said.err
    assert "wandb login" not in said.err, "nothing is missed offline"
    assert "correct-horse" not in said.out + said.err
    assert "word@" not in said.out + said.err
    assert run_command(["train", "--latents", "latents", "--run-dir", "run", *options, "--dry-run"]) == 0
    assert "note: the job does not inherit WANDB_API_KEY (" in capfd.readouterr().out


def test_a_rank_imports_nothing_from_the_folder_of_the_submission(desk: Path) -> None:
    assert run_command(["train", "--latents", "latents", "--run-dir", "run", "--nodes", "2", "--device", "cpu"]) == 0
    assert "PYTHONSAFEPATH=1" in (desk / "rank").read_text().splitlines()


def test_sbatch_by_hand_and_the_chain_pass_the_same_on(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("NCCL_CUMEM_ENABLE", "0")
    monkeypatch.setenv("SYNFUNDUS_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = str(ROOT / "slurm" / "ldm.sh")
    header = next(word for word in Path(script).read_text().split() if word.startswith("--export="))
    subprocess.run(["sbatch", header, script], check=True, capture_output=True)
    by_hand = (desk / "rank").read_text()
    (desk / "run.yaml").touch()
    chain = subprocess.run(
        ["bash", str(ROOT / "slurm" / "pipeline.sh"), str(desk / "run.yaml")],
        check=True,
        capture_output=True,
        text=True,
    )
    of_the_chain = (desk / "rank").read_text()
    assert "WANDB_MODE=offline\n" in by_hand
    assert "WANDB_MODE=offline\n" in of_the_chain
    assert "NCCL_CUMEM_ENABLE=0\n" in of_the_chain
    assert "correct-horse" not in by_hand + of_the_chain
    assert "the job does not inherit WANDB_API_KEY" in chain.stderr
