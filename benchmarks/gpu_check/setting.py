"""What the steps share: sizes, time left, configurations, and the command line of the product as a process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "train.unet.block_out_channels=[64,64,64,64]",
    "train.unet.cross_attention_dim=64",
    "train.loop.micro_batch_size=2",
    "train_vae.autoencoder.block_out_channels=[32,32,32,32]",
    "train_vae.loop.micro_batch_size=2",
    "prepare.image_size_px=128",
)
"""Sizes for a stand-in GPU, whose memory is the host's: they walk the same code."""
NARROW = ("train.unet.block_out_channels=[64,128,192,256]",)
"""A U-Net whose checkpoints are written in a moment, where speed is not looked at."""
QUIET = (
    "train.loop.preview_every_images=0",
    "train.loop.validate_every_images=0",
    "train.loop.validation_images=1",
    "train.ema.sigma_rel=[]",
    "telemetry.tensorboard=false",
)
"""Settings of a short run without what is not looked at."""


def is_stand_in(environment: Mapping[str, str]) -> bool:
    """Whether the GPU is a stand-in, which its runner says by variables."""
    return any(environment.get(name, "0") not in ("", "0") for name in ("STAND_IN_GPU", "STAND_IN_MAJOR"))


@dataclass(frozen=True)
class Setting:
    """How a step runs.

    Attributes:
        small: Use sizes of a stand-in.
        stand_in: The GPU is a stand-in.
        folder: Scratch of the step.
        ends: When its planned time is over, on the clock of `time.monotonic`.
    """

    small: bool
    stand_in: bool
    folder: Path
    ends: float

    @property
    def left_s(self) -> float:
        """Return the planned seconds that are left."""
        return self.ends - time.monotonic()

    def job(self, preset: str, *settings: str) -> tuple[str, ...]:
        """Return the settings of a job: the preset's, not compiled, small if wanted, and the given ones last."""
        small = SMALL if self.small else ()
        if self.small and preset == "fundus1024":  # it has five levels
            small = (*small, "train_vae.autoencoder.block_out_channels=[32,32,32,32,32]")
        return ("train.loop.compile=false", *small, *settings)

    def config(self, preset: str, *settings: str) -> RunConfig:
        """Return the configuration of a job."""
        return load_config(preset=preset, file=None, settings=list(self.job(preset, *settings)), flags=[]).config

    def micro_batch(self, preset: str) -> int:
        """Return the preset's micro-batch."""
        size = self.config(preset).train.loop.micro_batch_size
        return size if isinstance(size, int) else 8


def complaint_of(output: str) -> str:
    """Return the last line that names an error, else the last one: warnings may follow an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"(?i)\b\w*(error|exception|fault)\b.*[:(]", line)]
    return (named or lines or [""])[-1]


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: Its exit code; negative for a signal.
        output: Both its streams.
        seconds: How long it ran.
    """

    code: int
    output: str
    seconds: float

    def said(self, pattern: str) -> str | None:
        """Return the first group of a pattern in its output; None if it is not there."""
        found = re.search(pattern, self.output)
        return None if found is None else found[1]

    @property
    def complaint(self) -> str:
        """Return the line of its output that says what went wrong."""
        return complaint_of(self.output)


class VerbProcess:
    """A verb that runs as a user starts it.

    Args:
        arguments: The verb and its options.
        log: Where its output goes.
        settings: Values for ``--set``.
    """

    def __init__(self, *arguments: str, log: Path, settings: Sequence[str] = ()) -> None:
        flags = [word for one in settings for word in ("--set", one)]
        self._log, self._began = log, time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "synfundus", *arguments, *flags],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=dict(os.environ),
            )

    def output(self) -> str:
        """Return what it has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, timeout_s: float) -> Ended:
        """Wait until it has ended; past the timeout it is killed with all its processes."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return Ended(self.process.returncode, self.output(), time.monotonic() - self._began)

    def wait_for(self, seen: Callable[[], bool], *, timeout_s: float) -> bool:
        """Wait until something is seen while it runs; returns whether it was."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            running = self.process.poll() is None
            if seen():
                return True
            if not running:
                return False
            time.sleep(0.05)
        return False

    def kill(self) -> None:
        """Kill it with all processes below it."""
        end_tree(self.process)


def below(process: int) -> list[int]:
    """Return the ids of the processes below one, parents before their children."""
    found = [process]
    for parent in found:  # grows while it is walked
        children = Path(f"/proc/{parent}/task/{parent}/children")
        with contextlib.suppress(OSError):
            found += [int(word) for word in children.read_text().split()]
    return found[1:]


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs, and the processes below it."""
    if process.poll() is None:
        for one in [process.pid, *below(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    process.wait()


def run_verb(*arguments: str, log: Path, settings: Sequence[str] = (), timeout_s: float) -> Ended:
    """Run a verb to its end."""
    return VerbProcess(*arguments, log=log, settings=settings).wait(timeout_s)
