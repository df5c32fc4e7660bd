"""What the scripts about training share: a run's config, a look into the running loop, ranks as processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measuring import write_random_latents
from synfundus.config.base import Section
from synfundus.config.schema import RunConfig
from synfundus.stages import build
from synfundus.stages.trial_step import latent_shape
from synfundus.telemetry.console import Progress, SilentConsole

AnySection = TypeVar("AnySection", bound=Section)


def changed(section: AnySection, changes: Mapping[str, Any]) -> AnySection:
    """Return a section of a config, or a whole one, with other values; a mapping is for the section of its name."""
    given = {
        name: changed(getattr(section, name), value) if isinstance(getattr(section, name), Section) else value
        for name, value in changes.items()
    }
    return section.model_copy(update=given)


def write_autoencoder_and_latents(base: RunConfig, folder: Path, *, sizes: Sequence[int]) -> None:
    """Write the config's autoencoder, untrained, to ``folder/vae`` and random latents bound to it to ``latents``."""
    autoencoder = build.autoencoder(base.train_vae.autoencoder, image_size_px=base.prepare.image_size_px, seed=0)
    autoencoder.save_pretrained(folder / "vae")
    channels, height, width = latent_shape(base.train_vae.autoencoder, image_size_px=base.prepare.image_size_px)
    write_random_latents(
        folder / "latents",
        shape=(2 * channels, height, width),
        sizes=sizes,
        autoencoder_folder=folder / "vae",
    )


def run_config(base: RunConfig, folder: Path, *, name: str, steps: int) -> RunConfig:
    """Return the config with a budget in steps, without checkpoints and previews, in a run directory of its own."""
    batch = base.train.loop.global_batch_size
    loop = {
        "budget_images": steps * batch,
        "log_every_images": 8 * batch,
        "checkpoint_every_images": 10**9,
        "preview_every_images": 0,
        "validate_every_images": 0,
        "validation_images": 1,
        # what is read ahead while the other side of a pair runs is not our time: keep it small
        "prefetch_batches": 1,
    }
    paths = {"latents": (str(folder / "latents"),), "vae": str(folder / "vae"), "run_dir": str(folder / name)}
    return changed(base, {"train": {**paths, "loop": loop}})


class _StepProgress:
    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Call back after a step; rows of metrics move the bar by nothing."""
        if amount:
            self._after_step()


class StepConsole(SilentConsole):
    """Calls back after every training step: what is measured beside `train` is measured inside its loop.

    Args:
        after_step: Called on the training thread.
    """

    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Yield what the trainer moves on after each step."""
        del description, total, unit, start
        yield _StepProgress(self._after_step)


def start_ranks(module: str, arguments: Sequence[str], *, ranks: int) -> list[subprocess.Popen[str]]:
    """Start a script as the ranks of one job on this machine; each has one thread if it asks torch for no more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    place = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def last_lines(processes: Sequence[subprocess.Popen[str]], *, timeout_s: float) -> list[str]:
    """Wait for processes and return the last line each has printed.

    Raises:
        SystemExit: One of them failed.
    """
    answers = [process.communicate(timeout=timeout_s)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a rank ended with {[process.returncode for process in processes]}")
    return [(answer.splitlines() or [""])[-1] for answer in answers]
