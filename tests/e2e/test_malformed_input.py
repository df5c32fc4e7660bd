"""More than 200 malformed configurations and option values: exit 2, one readable message, no traceback, at once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synfundus.cli.app import run_command
from synfundus.cli.verbs import VERBS

SLOWEST_S = 2.0

TRAIN = "train --latents {dir} --run-dir {dir}/run"
VAE = "train-vae --data {dir} --run-dir {dir}/run"
ENCODE = "encode-latents --data {dir} --vae {dir} --out {dir}/latents"
SAMPLE = "sample --model {dir} --out {dir}/samples"
PREPARE = "prepare --source {dir} --labels {file} --out {dir}/set"
PHANTOMS = "phantoms --out {dir}/phantoms"
DEMO = "demo --out {dir}/demo"
VERIFY = "verify-latents --latents {dir} --vae {dir}"
EXPORT = "export --run-dir {dir} --out {dir}/export"

NOT_COUNTS = ("", "0", "-1", "1.5", "many", "1e3", "0x10", "null", "[1]", "nan", "١٢x", "9" * 5000)
NOT_FRACTIONS = ("", "-0.1", "1.1", "nan", "inf", "a", "[0.1]", "0.1.2", "1,5")

COMMAND_LINES: list[tuple[str, ...]] = [
    # the command line itself
    ("no-such-verb",),
    ("trian", "--latents", "x"),
    ("--no-such-option",),
    ("train", "--no-such-option"),
    ("train", "surplus"),
    ("train", "--latents"),
    ("train", "--flip"),
    ("doctor", "--nodes", "2"),
    ("plan", "--gpu", "abacus"),
    ("plan", "--mfu", "1.5"),
    ("ema", "--run-dir", ".", "--sigma-rel", "0.5"),
    ("ema", "--run-dir", "."),
    ("config", "no-such-command"),
    ("config",),
    ("train", "--dry-run=maybe"),
    # nothing a verb needs
    *((verb.name,) for verb in VERBS if any(option.required for option in verb.options)),
    ("train", "--latents", "", "--run-dir", ""),
    ("train", "--latents", " ", "--run-dir", "r"),
    # paths
    ("train", "--latents", "/no/such/folder", "--run-dir", "{dir}/run"),
    ("train", "--latents", "{dir}", "--run-dir", "{file}"),
    ("train", "--latents", "{dir}", "--run-dir", "{dir}/run", "--vae", "/no/such"),
    ("train", "--latents", "x" * 5000, "--run-dir", "{dir}/run"),
    ("train", "--latents", "a\nb", "--run-dir", "{dir}/run"),
    ("train", "--latents", "\x1b[31m", "--run-dir", "{dir}/run"),
    ("train", "--latents", "a\udcff", "--run-dir", "{dir}/run"),
    ("prepare", "--source", "/no/such", "--labels", "/no/such.csv", "--out", "{dir}/set"),
    ("prepare", "--source", "{dir}", "--labels", "{file}", "--out", "{file}"),
    ("prepare", "--source", "{dir}", "--labels", "{file}", "--out", "{dir}/s", "--mapping", "/no/such.yaml"),
    ("demo", "--out", "{dir}/d", "--source", "{dir}"),
    ("demo", "--out", "{dir}/d", "--labels", "{file}"),
    # presets, files and settings
    ("train", "--preset", "fundus1025"),
    ("train", "--preset", ""),
    ("train", "--preset", "../../etc/passwd"),
    ("train", "--config", "/no/such.yaml"),
    ("train", "--config", "{dir}"),
    ("train", "--config", ""),
    ("train", "--config", "a\nb"),
    ("train", "--config", "/dev/null/x"),
    *(
        (*TRAIN.split(), "--set", setting)
        for setting in (
            *("", "=", "=3", "train", "train=3", "train.loop=", "train.loop.=3", ".train=3", "train..lr=3"),
            *("seed.x=1", "seed", " =1"),
            *("Seed=1", "train.loop.lr=1", "loop.precision=fp32", "vae.codec.linear_path=true", "a" * 10_000 + "=1"),
            *("train.unet.block_out_channels=64,x", "train.unet.block_out_channels="),
            *(
                "train.unet.block_out_channels=[64",
                "train.unet.block_out_channels={a: 1}",
                "train.unet.attention_levels=1,0,maybe,1",
            ),
            *(
                "train.unet.block_out_channels=64,128",
                "train.unet.block_out_channels=64,64,64,64,64,64,64",
                "train.unet.norm_num_groups=7",
            ),
            *(
                "train.unet.block_out_channels=65,65,65,65",
                "train.unet.attention_head_dim=100",
                "train.unet.attention_levels=null",
            ),
            *(
                "train.diffusion.zero_terminal_snr=true",
                "train.diffusion.beta_start=0.5",
                "train.diffusion.min_snr_gamma=0",
            ),
            *(
                "train.diffusion.prediction_type=eps",
                "train.diffusion.prediction_type=EPSILON",
                "train.diffusion.beta_schedule=sqrt",
            ),
            *(
                "train.diffusion.num_train_timesteps=1",
                "train.loop.precision=fp16",
                "train.loop.precision=",
                "train.loop.keep_checkpoints=1",
            ),
            *(
                "train.loop.on_nonfinite=ignore",
                "train.loop.channels_last=perhaps",
                "train.optim.lr=0",
                "train.optim.lr=-1e-4",
                "train.optim.lr=nan",
            ),
            *(
                "train.optim.lr=inf",
                "train.optim.lr=fast",
                "train.optim.lr=1e-4,1e-5",
                "train.optim.schedule=linear",
                "train.optim.eps=0",
            ),
            *(
                "train.ema.half_life_images=0",
                "telemetry.console=loud",
                "launch.attention=flash-attn",
                "launch.time_limit=forever",
            ),
            *("launch.time_limit=1:2:3:4", "launch.partition=a b", "launch.partition=a;b", "launch.account=$(id)"),
            *("launch.account=", "launch.ds_config=/no/such.json", "launch.ds_config={file}", "launch.ds_config={dir}"),
            *("train.loop.global_batch_size=null", "train.vae=[a, b]", "sample.label=3", "sample.label={a: 1b}"),
            *("sample.label.dr_grade=1.5", "sample.guidance_interval=0.9,0.1", "sample.guidance_interval=0.5"),
            *(
                "prepare.splits=0.5,0.5",
                "train_vae.autoencoder=3",
                "launch.nodes=1\n#SBATCH",
                "train=",
                "seed=!!python/none ''",
            ),
        )
    ),
    # values of named options
    *((*TRAIN.split(), f"--procs-per-node={value}") for value in ("", "0", "-1", "1.5", "many")),
    *((*TRAIN.split(), f"--budget-images={value}") for value in NOT_COUNTS if value != "1e3"),
    *((*TRAIN.split(), f"--seed={value}") for value in ("", "-1", "1.5", "x", str(2**63), "null", "1 2")),
    *((*TRAIN.split(), f"--nodes={value}") for value in ("", "0", "two", "-3")),
    *((*TRAIN.split(), f"--device={value}") for value in ("", "gpu", "CPU", "cuda:0", "null")),
    (*TRAIN.split(), "--procs-per-node", "7"),
    (*VAE.split(), "--procs-per-node", "7"),
    *((*VAE.split(), "--init-from", value) for value in ("/no/such", "")),
    *((*ENCODE.split(), f"--batch-size={value}") for value in ("0", "all", "")),
    *((*SAMPLE.split(), f"--num-images={value}") for value in NOT_COUNTS if value not in ("1e3",)),
    (*SAMPLE.split(),),
    *(
        (*SAMPLE.split(), "--num-images=1", f"--label={value}")
        for value in ("", "x", "=3", "dr_grade=", "dr_grade=-severe", "dr_grade=1.5", "dr_grade=[1]", "dr_grade==3")
    ),
    *((*SAMPLE.split(), "--num-images=1", f"--sampler={value}") for value in ("", "DDIM", "ddpm", "null")),
    *((*SAMPLE.split(), "--num-images=1", f"--num-steps={value}") for value in ("", "0", "1001", "x")),
    *((*SAMPLE.split(), "--num-images=1", f"--guidance-scale={value}") for value in ("", "-1", "nan", "inf", "high")),
    *((*SAMPLE.split(), "--num-images=1", f"--format={value}") for value in ("", "jpeg", "PNG")),
    (*SAMPLE.split(), "--labels", "/no/such/plan.csv"),
    *((*PREPARE.split(), f"--image-size={value}") for value in ("", "0", "31", "4097", "256px", "256.5")),
    *(
        (*PREPARE.split(), f"--splits={value}")
        for value in ("", "1", "0.5,0.5", "0.5,0.5,0.5", "0,0.5,0.5", "a,b,c", "1.5,-0.5,0", "0.8;0.1;0.1", "nan,0,0")
    ),
    *((*PREPARE.split(), f"--workers={value}") for value in ("", "-1", "all", "1.5")),
    *((*PHANTOMS.split(), f"--num-images={value}") for value in NOT_COUNTS if value != "1e3"),
    *((*PHANTOMS.split(), f"--image-size={value}") for value in ("", "63", "2049", "big")),
    *((*DEMO.split(), f"--minutes={value}") for value in ("", "0", "-5", "soon", "nan", "inf", "1e9")),
    (*VERIFY.split(), "--device", "tpu"),
    (*EXPORT.split(), "--seed", "x"),
    *((*TRAIN.split(), "--set", f"train.loop.max_bad_fraction={value}") for value in NOT_FRACTIONS),
]

CONFIG_FILES: list[bytes] = [
    b"- a list",
    b"just text",
    b"3",
    b"seed 3",
    b"seed: 1\nseed: 2",
    b"train:\n\tvae: a",
    b"train:\n  vae: a\n latents: b",
    b"train: {vae: a",
    b"train: [vae, a]",
    b"train: 3",
    b"train: 'text'",
    b"tran: {}",
    b"loop: {budget_images: 1}",
    b"vae: {codec: {linear_path: true}}",
    b"train: {loop: {budget: 1}}",
    b"train: {loop: {budget_images: {a: 1}}}",
    b"train: {loop: {budget_images: [1]}}",
    b"train: {loop: {budget_images: }}\nseed: -1",
    b"1: 2",
    b"? [a]\n: b",
    b"null: 1",
    b"a: &a [1]\ntrain: *a",
    b"<<: {seed: 1}",
    b"seed: !!int 3",
    b"seed: !!python/object/apply:os.system [id]",
    b"seed: 1\n---\nseed: 2",
    b"%YAML 9.9\n---\nseed: 1",
    b"seed: 'open",
    b"seed: @home",
    b"seed: `id`",
    b"seed: 1 2 3",
    b"seed: 1e3",
    b"seed: 0x10",
    b"seed: true",
    b"seed: .nan",
    b"seed: 2026-01-01",
    b"sample: {label: [a]}",
    b"sample: {label: {dr_grade: 1x}}",
    b"sample: {label: {dr_grade: {a: 1}}}",
    b"prepare: {splits: [1, 2]}",
    b"prepare: {splits: 0.5}",
    b"train: {unet: {attention_levels: [true]}}",
    b"train: {diffusion: {zero_terminal_snr: yes}}",
    b"launch: {time_limit: 99:99:99:99}",
    b'train_vae: {data: "a\\nb"}',
    b'train_vae: {data: "a\\0b"}',
    b'launch: {partition: "gpu\\n#SBATCH --uid=0"}',
    b"\xff\xfe\x00",
    b"seed: \x80",
    b"seed: 1\0",
    b"\x89PNG\r\n\x1a\n\x00",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\x00",
    b"seed: \x07",
    b"[" * 100_000,
    b"{a: " * 5_000,
    b"a: " + b"[" * 500 + b"]" * 500,
    b"#" * 300_000,
    b"\n".join(b"k%d: 1" % number for number in range(20_000)),
    b"a: " + b"x" * 200_000,
    b"\n".join([b"a0: &a0 x", *(b"a%d: &a%d [*a%d, *a%d]" % (n, n, n - 1, n - 1) for n in range(1, 30))]),
]


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("malformed")
    file = folder / "file.csv"
    file.write_text("image,dr_grade\n")
    (folder / "folder").mkdir()
    return {"dir": str(folder / "folder"), "file": str(file)}


def fill(arguments: tuple[str, ...], places: dict[str, str]) -> list[str]:
    filled = []
    for argument in arguments:
        for name, value in places.items():
            argument = argument.replace("{" + name + "}", value)
        filled.append(argument)
    return filled


def assert_one_readable_message(error: str) -> None:
    assert "Traceback" not in error
    assert error.count("error (") + error.count("Usage:") == 1, error
    assert len(error) < 6000
    assert all(character.isprintable() or character in "\n\t" for character in error)


def test_there_are_more_than_two_hundred_cases() -> None:
    assert len(set(COMMAND_LINES)) + len(set(CONFIG_FILES)) > 250


@pytest.mark.parametrize(
    "arguments", COMMAND_LINES, ids=lambda arguments: " ".join(arguments)[:60].encode("unicode_escape").decode()
)
def test_a_malformed_command_line_ends_with_one_message(
    arguments: tuple[str, ...], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.process_time()  # the machine may be busy
    code = run_command(fill(arguments, places))
    seconds = time.process_time() - begin
    assert code == 2
    assert_one_readable_message(capsys.readouterr().err)
    assert seconds < SLOWEST_S


@pytest.mark.parametrize("data", CONFIG_FILES, ids=lambda data: repr(data[:40]).encode("unicode_escape").decode())
def test_a_malformed_file_ends_with_one_message_that_names_it(
    data: bytes, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(data)
    begin = time.process_time()  # the machine may be busy
    code = run_command([*fill(tuple(TRAIN.split()), places), "--config", str(file)])
    seconds = time.process_time() - begin
    error = capsys.readouterr().err
    assert code == 2
    assert_one_readable_message(error)
    assert "run.yaml" in error
    assert seconds < SLOWEST_S


def test_none_of_this_imported_torch_for_its_own_sake() -> None:
    """The same cases in a fresh process: a refusal must not wait for torch."""
    code = (
        "import sys\nfrom synfundus.cli.app import run_command\n"
        "code = run_command(['train', '--set', 'train.optim.lr=fast'])\n"
        "assert code == 2 and 'torch' not in sys.modules and 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-verb",),
        ("train",),
        ("train", "--set", "train.optim.lr=fast"),
        ("train", "--preset", "none"),
        ("train", "--config", "/no/such.yaml"),
        ("train", "--latents", "{dir}", "--run-dir", "{file}"),
        (*TRAIN.split(), "--procs-per-node", "7"),
        (*TRAIN.split(), "--set", "launch.ds_config={file}"),
        (*SAMPLE.split(), "--num-images", "1", "--label", "dr_grade=1x"),
        (*PREPARE.split(), "--splits", "0.5,0.5,0.5"),
        (*DEMO.split(), "--minutes", "soon"),
        ("prepare", "--source", "/no/such", "--labels", "{file}", "--out", "{dir}/set"),
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_the_installed_command_ends_the_same_way(arguments: tuple[str, ...], places: dict[str, str]) -> None:
    """Its time is the processor's: a busy machine takes longer, the command does not do more."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "synfundus", *fill(arguments, places)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert_one_readable_message(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SLOWEST_S
