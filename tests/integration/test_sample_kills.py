"""A sample set is the same bytes from any number of ranks, killed at any point; a kill costs a rank at most a batch.

The long campaign takes the model in ``SYNFUNDUS_SOAK_MODEL``, a run of `make demo` for example, or else one with random
weights, and draws ``SYNFUNDUS_SOAK_IMAGES`` images.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns import report
from forked_python import Popen
from rank_processes import Ended, clean_environment, rank_environments, run_cli
from tiny_pipeline import write_tiny_pipeline

from synfundus.artifacts.model import CPU_BATCH_SIZE

SCRIPT = Path(__file__).with_name("killed_run.py")
FEW = 96
MANY = int(os.environ.get("SYNFUNDUS_SOAK_IMAGES", "2000"))
PATIENCE_S = 3600.0
LEFT_OUT = {"PROVENANCE.json", "README.md", "croissant.json", "SHA256SUMS"}
"""They tell the date and the command too, or have sums of those that do."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("SYNFUNDUS_SOAK_MODEL"):
        return Path(given)
    return write_tiny_pipeline(tmp_path_factory.mktemp("run") / "export").parent


def command(model: Path, out: Path, num_images: int, image_format: str, *more: str) -> tuple[str, ...]:
    steps = ("--num-steps", "2", "--sampler", "dpmpp", "--label", "is_gc=1", "--device", "cpu")
    given = ("--model", str(model), "--out", str(out), "--num-images", str(num_images), "--format", image_format)
    return ("sample", *given, *steps, *more)


def contents(out: Path) -> dict[str, str]:
    """Return the hash of every file of a set."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in LEFT_OUT]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


class Ranks:
    """The ranks of a job, which write down what they draw."""

    def __init__(self, log: Path, arguments: tuple[str, ...], *, world_size: int) -> None:
        self.log = log
        line = [sys.executable, str(SCRIPT), f"drawn:{log}", *arguments]
        environments = rank_environments(world_size) if world_size > 1 else [clean_environment()]
        self.processes = [
            Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for environment in environments
        ]

    def drawn(self) -> int:
        """Return how many batches all jobs have drawn so far."""
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def kill(self, *, behind: int, first: random.Random) -> None:
        """Kill one rank when so many batches have been drawn, and then the others, as a launcher does."""
        ends = time.monotonic() + PATIENCE_S
        while self.drawn() < behind and time.monotonic() < ends and all(one.poll() is None for one in self.processes):
            time.sleep(0.01)
        for process in first.sample(self.processes, len(self.processes)):
            process.send_signal(signal.SIGKILL)
            time.sleep(0.2 * first.random())
        self.wait()

    def wait(self) -> list[Ended]:
        """Wait for all ranks."""
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in self.processes]
        return [Ended(one.returncode, output) for one, output in zip(self.processes, outputs, strict=True)]


@pytest.mark.parametrize(
    ("num_images", "kills", "image_formats"),
    [
        pytest.param(FEW, 1, ("shards",), id="short"),
        pytest.param(MANY, 5, ("shards", "png"), id="all", marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_killed_ranks_lose_a_batch_each_and_the_set_is_that_of_one_rank(
    model: Path,
    tmp_path: Path,
    num_images: int,
    kills: int,
    image_formats: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failures, choice = [], random.Random(num_images)
    batches = -(-num_images // CPU_BATCH_SIZE)
    for image_format in image_formats:
        whole = tmp_path / f"whole-{image_format}"
        run_cli(*command(model, whole, num_images, image_format), timeout_s=PATIENCE_S).check()
        expected = contents(whole)
        for world_size in (1, 2) if kills > 1 else (2,):
            out, log = tmp_path / f"{image_format}-{world_size}", tmp_path / f"{image_format}-{world_size}.log"
            arguments = command(model, out, num_images, image_format, "--set", f"sample.batch_size={world_size + 2}")
            points = sorted(choice.sample(range(1, batches), kills))
            for point in points:
                Ranks(log, arguments, world_size=world_size).kill(behind=point, first=choice)
            ended = Ranks(log, arguments, world_size=world_size).wait()
            redone = log.read_text().count("\n") - batches
            place = f"{image_format}, {world_size} ranks, killed behind {points} batches"
            if any(one.returncode for one in ended):
                failures.append(f"{place}: {ended[0].output}")
            elif contents(out) != expected:
                failures.append(f"{place}: other bytes")
            elif not 0 <= redone <= kills * world_size:
                failures.append(f"{place}: {redone} batches drawn again")
    of = len(image_formats) * (2 if kills > 1 else 1)
    report(f"sample_kills of {num_images} images", failures, of, capsys)
