"""Whatever a run is doing when a signal comes, it ends, and the same command later ends as if nothing had been."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from campaigns import report
from phantom_clinic import config_of, keyed_crosswalk, write_clinic
from rank_processes import run_cli, run_cli_with_fault, run_ranks_with_fault
from tiny_pipeline import tiny_denoiser, write_tiny_pipeline
from tiny_runs import assert_same_run, settings, train_here
from tiny_sets import hashes, write_config

from synfundus.artifacts.ema_snapshots import write_snapshot
from synfundus.distributed.world import LocalWorld, World
from synfundus.processes.stop_signals import STOP_SIGNALS, exit_code_of
from synfundus.storage.manifest import ShardSet
from synfundus.training.ema import Profile

SIZE = 64
POINTS = 5
NO_FAULT = "step:1000000"
LOOKS = {"preview_every_images": 160}


Disturb = Callable[[str, int, signal.Signals], None]


@dataclass(frozen=True)
class Phase:
    """Something a run does.

    Attributes:
        verb: Whose run it is.
        function: Called in it, ``module:name``.
        calls: At which of its calls signals are sent.
    """

    verb: str
    function: str
    calls: tuple[int, ...]


PHASES = {
    "start": Phase("train", "synfundus.distributed.engine:ZeroEngine.__init__", (1,) * POINTS),
    "step": Phase("train", "synfundus.distributed.engine:ZeroEngine.step", (1, 9, 22, 37, 49)),
    "data": Phase("train", "synfundus.shards.loader:BatchLoader._take", (1, 10, 20, 35, 50)),
    "save": Phase("train", "synfundus.training.checkpoints.checkpoint:_write_all", (1, 2, 3, 4, 5)),
    "validation": Phase("train", "synfundus.stages.training_run:TrainingRun._validate", (1, 1, 2, 2, 3)),
    "preview": Phase("train", "synfundus.stages.train.job:preview_images", (1, 1, 2, 2, 3)),
    "export": Phase("train", "synfundus.stages.training_run:TrainingRun._finish", (1,) * POINTS),
    "encode": Phase(
        "encode-latents", "synfundus.stages.encode_latents.shard_encoder:ShardEncoder._write", (1, 2, 3, 4, 6)
    ),
    "sample": Phase("sample", "synfundus.stages.sample.factory:_draw", (1, 2, 3, 4, 5)),
    "prepare": Phase("prepare", "synfundus.stages.prepare.shards:_read_members", (1, 3, 6, 9, 12)),
}
IN_THE_LOOP = ("step", "data", "save", "validation", "preview")
"""Phases of a training loop, which saves at every signal; elsewhere TERM is not told from that of a failed job."""
COUNTED = ("encode", "sample", "prepare")
"""Phases in which the line says how far the work came."""
BEHIND_THE_LAST_STEP = {("save", 4)}
"""Points behind which only a preview comes: the run is stopped before or in it, or ends if it is nearly drawn."""


@dataclass(frozen=True)
class Job:
    """A command line, and the check that its result is the undisturbed one's."""

    arguments: tuple[str, ...]
    check: Callable[[], None]


@pytest.fixture(scope="module")
def undisturbed(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every verb makes when nothing disturbs it, and what it makes it of."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(latent_set, folder / "train", world, **LOOKS)
    write_tiny_pipeline(folder / "model" / "export")
    run_cli(*sample_command(folder, folder / "sample")).check()
    write_clinic(folder / "clinic", 12)
    run_cli(*prepare_command(folder, folder / "prepare")).check()
    return folder


def sample_command(folder: Path, out: Path) -> tuple[str, ...]:
    options = ("--set", "sample.batch_size=2", "--set", "sample.num_steps=3", "--device", "cpu")
    return ("sample", "--model", str(folder / "model"), "--out", str(out), "--num-images", "10", *options)


def prepare_command(folder: Path, out: Path) -> tuple[str, ...]:
    crosswalk = out.with_name(f"{out.name}-crosswalk")
    config = config_of(folder / "clinic", out, keyed_crosswalk(crosswalk) if not crosswalk.exists() else crosswalk)
    path = out.with_name(f"{out.name}.yaml")
    path.write_text(yaml.safe_dump({"prepare": config.model_dump(mode="json", exclude_unset=True)["prepare"]}))
    return ("prepare", "--config", str(path))


def job_of(verb: str, out: Path, *, latent_set: ShardSet, image_set: ShardSet, vae_run: Path, undisturbed: Path) -> Job:
    if verb == "train":
        config = write_config(out.with_suffix(".yaml"), settings(latent_set, out, **LOOKS))

        def check() -> None:
            assert_same_run(undisturbed / "train", out)
            assert hashes(undisturbed / "train" / "previews") == hashes(out / "previews")

        return Job(("train", "--config", str(config)), check)
    if verb == "encode-latents":
        section = {"data": image_set.url, "vae": str(vae_run), "out": str(out), "flip": True}
        config = write_config(out.with_suffix(".yaml"), {"encode_latents": section})
        return Job(("encode-latents", "--config", str(config)), lambda: assert_same_files(Path(latent_set.url), out))
    command = sample_command if verb == "sample" else prepare_command
    return Job(command(undisturbed, out), lambda: assert_same_files(undisturbed / verb, out))


def assert_same_files(one: Path, other: Path) -> None:
    """Compare what a reader sees: a process that ends at once may leave a hidden temporary file, as a kill does."""
    assert seen(one) == seen(other)


def seen(folder: Path) -> dict[str, object]:
    """Return what a reader sees, without when, how and of which folder images were generated."""
    found: dict[str, object] = {
        name: digest for name, digest in hashes(folder).items() if not Path(name).name.startswith(".")
    }
    if "PROVENANCE.json" in found:
        del found["README.md"]
        provenance = json.loads((folder / "PROVENANCE.json").read_text())
        del provenance["generated"]
        found["PROVENANCE.json"] = provenance
    return found


@pytest.fixture
def disturb(latent_set: ShardSet, image_set: ShardSet, vae_run: Path, undisturbed: Path, tmp_path: Path) -> Disturb:
    """Send a signal at one of the points of a phase, start the command again and compare."""

    def run(name: str, point: int, sent: signal.Signals) -> None:
        phase, out = PHASES[name], tmp_path / "out"
        for left in tmp_path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        job = job_of(
            phase.verb, out, latent_set=latent_set, image_set=image_set, vae_run=vae_run, undisturbed=undisturbed
        )
        ended = run_cli_with_fault(f"signal:{sent.name}:{phase.function}:{phase.calls[point]}", *job.arguments)
        assert "Traceback" not in ended.output
        if (name, point) not in BEHIND_THE_LAST_STEP or ended.returncode != 0:
            code = 75 if name in IN_THE_LOOP else exit_code_of(sent)
            assert ended.returncode == code, f"exit code {ended.returncode}:\n{ended.output}"
            assert ended.output.count(f"stopped by {sent.name}") == 1
            assert "run the same command again to resume" in ended.output
            if name in COUNTED:
                assert re.search(rf"stopped by {sent.name}: .*, \d+ of \d+ images", ended.output), ended.output
            run_cli(*job.arguments).check()
        job.check()

    return run


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("start", signal.SIGINT),
        ("step", signal.SIGINT),
        ("validation", signal.SIGUSR1),
        pytest.param("preview", signal.SIGTERM, marks=pytest.mark.slow),
        ("encode", signal.SIGXCPU),
        ("prepare", signal.SIGHUP),
        pytest.param("sample", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_that_goes_on_later(disturb: Disturb, name: str, sent: signal.Signals) -> None:
    disturb(name, 1, sent)


@pytest.fixture(scope="module")
def two_ranks(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("two-ranks") / "run"
    config = write_config(run_dir.with_suffix(".yaml"), settings(latent_set, run_dir, **LOOKS))
    for ended in run_ranks_with_fault(NO_FAULT, 0, "train", "--config", config, world_size=2):
        ended.check()
    return run_dir


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["step", "data", "save", "validation"])
def test_a_signal_to_one_rank_has_both_save(
    latent_set: ShardSet, two_ranks: Path, tmp_path: Path, name: str, rank: int
) -> None:
    phase, run_dir = PHASES[name], tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", settings(latent_set, run_dir, **LOOKS))
    point = f"signal:SIGUSR2:{phase.function}:{phase.calls[1]}"
    ended = run_ranks_with_fault(point, rank, "train", "--config", config, world_size=2, patience_s=60)
    assert [end.returncode for end in ended] == [75, 75], "\n".join(end.output for end in ended)
    for end in run_ranks_with_fault(NO_FAULT, 0, "train", "--config", config, world_size=2):
        end.check()
    assert_same_run(two_ranks, run_dir)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_signals_in_every_phase(disturb: Disturb, capsys: pytest.CaptureFixture[str]) -> None:
    failures: list[str] = []
    for name in PHASES:
        for number, sent in enumerate(STOP_SIGNALS):
            for point in (number % POINTS, (number + 1) % POINTS, (number + 3) % POINTS):
                try:
                    disturb(name, point, sent)
                except AssertionError as error:
                    failures.append(f"{name}, point {point}, {sent.name}: {error}")
    report("signals", failures, len(PHASES) * len(STOP_SIGNALS) * 3, capsys)


MINIATURE = {
    "phantoms": {"num_images": 120, "image_size_px": SIZE, "workers": 1},
    "prepare": {"image_size_px": SIZE, "shard_max_samples": 40, "workers": 1},
    "demo": {"num_generated": 24, "fit_to_machine": False},
}
A_BAR = "synfundus.telemetry.console:_PlainProgress.advance"
OTHERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "train-vae": ("synfundus.distributed.engine:ZeroEngine.step", (1, 3, 5)),
    "phantoms": (A_BAR, (1, 3, 6)),
    "demo": (A_BAR, (10, 125, 200)),
    "export": ("synfundus.stages.export.job:resave_pipeline", (1,)),
    "ema": (A_BAR, (1, 2)),
    "verify-latents": (A_BAR, (1,)),
    "inspect": (A_BAR, (1, 2)),
    "plan": ("synfundus.stages.plan.job:run", (1,)),
    "doctor": ("synfundus.stages.doctor.job:run", (1,)),
    "watch": ("synfundus.stages.watch.job:run", (1,)),
    "plot": ("synfundus.stages.plot.job:run", (1,)),
}
"""Verbs beside those of `PHASES`: a function each calls, and at which calls signals come."""


def command_of(verb: str, out: Path, *, latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    run = str(out.with_name("run"))
    options: dict[str, list[str]] = {
        "train-vae": ["--data", image_set.url, "--run-dir", str(out)],
        "phantoms": ["--out", str(out), "--num-images", "224", "--image-size", "64"],
        "demo": ["--out", str(out)],
        "export": ["--run-dir", run, "--out", str(out)],
        "ema": ["--run-dir", run, "--sigma-rel", "0.07", "--out", str(out)],
        "verify-latents": ["--latents", latent_set.url, "--vae", str(vae_run)],
        "inspect": ["--data", image_set.url, "--verify"],
        "watch": ["--run-dir", str(vae_run)],
        "plot": ["--run-dir", str(vae_run), "--out", f"{out}.png"],
    }
    return [verb, *options.get(verb, []), "--config", str(write_config(out.with_suffix(".yaml"), MINIATURE))]


@pytest.fixture
def run_with_snapshots(tmp_path: Path) -> Path:
    """A run that `export` and `ema` can be called on."""
    run = tmp_path / "run"
    write_tiny_pipeline(run / "export")
    (run / "run.json").write_text('{"kind": "diffusion"}')
    weights = {name: tensor.float() for name, tensor in tiny_denoiser().state_dict().items()}
    for width in (0.05, 0.1):
        write_snapshot(str(run), weights, Profile(8, width), LocalWorld())
    return run


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_signals_in_every_other_verb(
    latent_set: ShardSet,
    image_set: ShardSet,
    vae_run: Path,
    run_with_snapshots: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with_snapshots.is_dir()
    failures, count = [], 0
    for verb, (function, calls) in OTHERS.items():
        for sent in STOP_SIGNALS:
            for call in calls:
                out = tmp_path / f"{verb}-{sent.name}-{call}"
                command = command_of(verb, out, latent_set=latent_set, image_set=image_set, vae_run=vae_run)
                ended = run_cli_with_fault(f"signal:{sent.name}:{function}:{call}", *command)
                count += 1
                trained = verb == "train-vae" or (verb == "demo" and "everything is saved" in ended.output)
                if ended.returncode != (75 if trained else exit_code_of(sent)) or "Traceback" in ended.output:
                    failures.append(f"{verb}, {sent.name}, {call}: exit code {ended.returncode}: {ended.output}")
                elif ended.output.count(f"stopped by {sent.name}") != 1:
                    failures.append(f"{verb}, {sent.name}, {call}: {ended.output}")
                elif (again := run_cli(*command)).returncode:
                    failures.append(f"{verb}, {sent.name}, {call}, again: {again.output}")
    report("signals to other verbs", failures, count, capsys)
