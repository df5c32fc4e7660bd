"""The folder of a training run: its identity, its settings, and the checkpoint it resumes from."""

from __future__ import annotations

import getpass
import os
import platform
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml

from synfundus import __version__
from synfundus.artifacts.claim import Claim
from synfundus.artifacts.run_changes import CHANGEABLE, way_on
from synfundus.artifacts.run_spool import LEDGER_NAME, RunSpool, SpooledSinks
from synfundus.distributed.agreement import on_rank_0, require_same
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World, new_group
from synfundus.errors import CheckpointError, ConfigError, NumericalError
from synfundus.redaction import redact
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import writers
from synfundus.telemetry.console import Console
from synfundus.telemetry.run_files import read_run
from synfundus.telemetry.sinks import MetricSinks, build_sinks
from synfundus.telemetry.wandb_sink import WandbSink
from synfundus.training.checkpoints.checkpoint import load_checkpoint
from synfundus.training.checkpoints.search import FoundCheckpoint, find_checkpoint, list_checkpoints
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.checkpoints.writer import CheckpointWriter
from synfundus.training.ema import ShardedEma
from synfundus.training.periodic import TrainState

FORMAT_NAME = "synfundus-run"
FORMAT_VERSION = 1
_CLAIM = Claim(
    "run.json",
    FORMAT_NAME,
    FORMAT_VERSION,
    others="another run",
    flag="--run-dir",
    beside=r"submissions(/.*)?",  # a batch job is submitted before its run starts
    free=CHANGEABLE,
)
WANDB_FORMAT_NAME = "synfundus-wandb"
START_NAME = "init.json"
START_FORMAT_NAME = "synfundus-initial-weights"
PACKAGES = ("torch", "deepspeed", "diffusers", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of all that results depend on."""
    return {"synfundus": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES
    }


def operator() -> dict[str, str]:
    """Return who is at work: account, host and, in a job of SLURM, its number."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # a container may know no name for the number
        account = str(os.getuid())
    job = os.environ.get("SLURM_JOB_ID", "")
    return {"account": account, "host": platform.node(), **({"job": job} if job else {})}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, from its files alone; None where there is none."""
    git = checkout / ".git"
    try:
        if git.is_file():  # of a worktree
            git = checkout / _text(git).removeprefix("gitdir: ")
        shared = git / _text(git / "commondir")
        head = _text(git / "HEAD")
        if not head.startswith("ref: "):
            return head or None
        ref = head.removeprefix("ref: ")
        packed = (line.split()[0] for line in _text(shared / "packed-refs").splitlines() if line.endswith(f" {ref}"))
        return _text(git / ref) or _text(shared / ref) or next(packed, None)
    except (OSError, ValueError):
        return None


def begun_precision(url: str) -> str | None:
    """Return the precision of the run in a folder; None where there is no run, or it records none."""
    precision = documents.flatten(_CLAIM.read(url) or {}).get("identity.precision")
    return precision if isinstance(precision, str) else None


def compare_run(url: str, *, kind: str, identity: Mapping[str, Any]) -> None:
    """Compare a run, if there is one, with what is to be trained; a precision that is not settled is that of the run.

    Args:
        url: The folder.
        kind: As of `RunFolder`.
        identity: As of `RunFolder`.

    Raises:
        ConfigError: The folder holds another run; the message names both sides.
    """
    if (found := _CLAIM.read(url)) is None:
        return
    settled = {"precision": begun_precision(url)} if identity.get("precision") == "auto" else {}
    wanted = {"kind": kind, "identity": {**identity, **settled}}
    try:
        _CLAIM.refuse_difference(url, found, wanted)
    except ConfigError as error:
        error.hint = way_on(url, found, wanted)
        raise


class RunFolder:
    """A run directory.

    Collective: opened by all ranks; rank 0 writes.

    Args:
        url: The folder.
        kind: ``vae`` or ``diffusion``.
        identity: All that must not change when the run is resumed (architecture, objective, data, seed), and what it
            begins with of the rest (`run_changes.record_changes`).
        config: The resolved config as a document, written to config.yaml.
        world: The job.
        judged_on: What its validation figures are of, for those who read its files.

    Raises:
        ConfigError: The folder holds another run; the message names both sides.
        LaunchError: The ranks read different data, or start from different models.
        StorageError: On every rank when rank 0 cannot write there.
    """

    def __init__(
        self,
        url: str,
        *,
        kind: str,
        identity: Mapping[str, Any],
        config: Mapping[str, Any],
        world: World,
        judged_on: str = "",
    ) -> None:
        self.url = url
        self._world, self._judged_on = world, judged_on
        self._config = config
        self._open_spool: RunSpool | None = None
        self._damaged: set[str] = set()
        wanted = {"kind": kind, "identity": dict(identity)}
        require_same(wanted, world)
        on_rank_0(lambda: self._claim(wanted), world)

    def path(self, *parts: str) -> str:
        """Return a path in the run."""
        return filesystem.join(self.url, *parts)

    def _claim(self, wanted: dict[str, Any]) -> None:
        """Write run.json, config and environment, or compare with the existing run.json."""
        compare_run(self.url, **wanted)
        if not _CLAIM.make(self.url, wanted):
            return
        config = yaml.safe_dump(dict(self._config), sort_keys=False)
        filesystem.write_bytes(self.path("config.yaml"), config.encode())
        environment = {
            "argv": [redact(text) for text in sys.argv[1:]],
            "world_size": self._world.size,
            "judged_on": self._judged_on,
            "versions": versions(),
            **operator(),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name() if self._world.device == "cuda" else platform.machine(),
            "commit": commit_of(Path(__file__).resolve().parents[2]),
        }
        filesystem.write_bytes(self.path("environment.json"), documents.dump_json(environment))

    def record_start(self, weights: Mapping[str, Any]) -> None:
        """Keep which weights the run starts from, once: ``source``, ``fingerprint`` and more. Called on rank 0.

        Raises:
            ConfigError: It began from other weights, and has no checkpoint yet to resume from.
        """
        url = self.path(START_NAME)
        if not filesystem.exists(url):
            documents.write_document(url, weights, format_name=START_FORMAT_NAME, version=FORMAT_VERSION)
            return
        kept = documents.read_document(url, format_name=START_FORMAT_NAME, version=FORMAT_VERSION).get("fingerprint")
        if kept and kept != weights["fingerprint"] and not any(list_checkpoints(self.path("checkpoints"))):
            raise ConfigError(
                f"this run began from weights {kept[:12]}, at their place are now {weights['fingerprint'][:12]}",
                where=str(weights["source"]),
                hint="put those back that it began from, or give another --run-dir",
            )

    def resume(self, *, zero: ZeroEngine, average: ShardedEma, console: Console) -> TrainState:
        """Load the newest checkpoint that verifies and return the state of the run. Collective.

        Raises:
            CheckpointError: Everybody may write to the checkpoints, so their hashes prove nothing.
        """
        root = self.path("checkpoints")
        found = find_checkpoint(root, world=self._world)
        self._check_writers([self.url, root, *([found.url] if found else [])], console)
        on_rank_0(lambda: self._trim_ledger(0 if found is None else found.images_seen), self._world)
        if found is None:
            return TrainState()
        self._pass_over(found, console)
        counters = load_checkpoint(found.url, engine=zero, ema=average, world=self._world)
        console.message(f"resumed at {found.images_seen:,} images from {found.url}")
        counters.pop("owed", None)  # of earlier versions; owed work is now found from the files
        return TrainState(images_seen=found.images_seen, **counters)

    def has_judged(self, images_seen: int, key: str) -> bool:
        """Whether the metrics have a figure of the validation at this place."""
        return any(row["images_seen"] == images_seen and key in row for row in read_run(self.url).validation)

    def rewind(self, *, zero: ZeroEngine, average: ShardedEma, console: Console) -> int:
        """Load the newest checkpoint's weights, optimizer moments and averages; returns its images. Collective.

        Raises:
            NumericalError: There is no checkpoint yet.
        """
        found = find_checkpoint(self.path("checkpoints"), world=self._world)
        if found is None:
            raise NumericalError(
                "there is no checkpoint to go back to", where=self.url, hint="lower checkpoint_every_images"
            )
        self._pass_over(found, console)
        load_checkpoint(found.url, engine=zero, ema=average, world=self._world)
        return found.images_seen

    def _pass_over(self, found: FoundCheckpoint, console: Console) -> None:
        """Record and report the damaged checkpoints that are newer than the one found."""
        self._damaged |= found.damaged
        for line in found.passed_over:
            console.warning(f"damaged checkpoint passed over: {line}")

    def _check_writers(self, folders: Sequence[str], console: Console) -> None:
        """Refuse folders that everybody may write to; warn of those a group may write to."""
        for folder in folders:
            if writers(folder) == "everybody":
                raise CheckpointError(
                    "everybody may write to this folder, so nothing proves that its checkpoints are this run's",
                    where=folder,
                    hint="check what is in it, then chmod o-w",
                )
            if writers(folder) == "its group":
                console.warning(f"a whole group may write to {folder}, and so replace its checkpoints")

    def saver(
        self,
        state: TrainState,
        *,
        zero: ZeroEngine,
        average: ShardedEma,
        keep: int,
        background_timeout_s: float | None,
        watchdog: Watchdog,
        parts: Sequence[ModelPart] = (),
    ) -> CheckpointWriter:
        """Return the checkpoint writer, which uploads the rows up to a checkpoint before it. Collective.

        Args:
            state: State after a resume, or of a new run.
            zero: Weights and optimizer moments.
            average: Averaged weights.
            keep: Number of checkpoints to keep.
            background_timeout_s: Timeout of the process group of a background thread, to which the step only hands a
                copy of the state; None: all is done in the step.
            watchdog: Ends the job when a save hangs.
            parts: Parts of the network with a folder for diffusers.
        """
        return CheckpointWriter(
            self.path("checkpoints"),
            engine=zero,
            ema=average,
            keep=keep,
            world=self._world,
            background=None if background_timeout_s is None else new_group(self._world, timeout_s=background_timeout_s),
            watchdog=watchdog,
            before=self._upload_rows,
            saved_images=state.images_seen,
            damaged=self._damaged,
            parts=parts,
        )

    @property
    def _spool(self) -> RunSpool:
        """Where rank 0 appends rows."""
        if self._open_spool is None or self._open_spool.closed:
            self._open_spool = RunSpool(self.url)
        return self._open_spool

    def _upload_rows(self, world: World) -> None:
        """Bring metrics and ledger up to date in an object store. Collective.

        Raises:
            StorageError: On every rank when rank 0 failed.
        """
        if filesystem.is_local(self.url):
            return
        on_rank_0(lambda: self._spool.upload(), world)

    def sinks(
        self,
        *,
        resume_images: int,
        tensorboard: bool,
        wandb_project: str | None,
        wandb_labels: Mapping[str, object] = MappingProxyType({}),
        console: Console,
    ) -> MetricSinks:
        """Open the metric sinks of this rank. Collective.

        Args:
            resume_images: Images seen at the resume.
            tensorboard: Write TensorBoard files.
            wandb_project: Weights & Biases project; None or empty for none.
            wandb_labels: Its entity, group and tags, where they are given.
            console: Shows warnings of the sinks.

        Raises:
            ConfigError: On every rank when rank 0 cannot open one.
        """
        opened = MetricSinks([])

        def work() -> None:
            nonlocal opened
            sinks = build_sinks(
                self._spool.folder,
                rank=self._world.rank,
                tensorboard=tensorboard,
                wandb=partial(self._wandb, wandb_project, wandb_labels, console) if wandb_project else None,
                resume_images=resume_images,
                settings=yaml.safe_dump(dict(self._config), sort_keys=False),
                warn=console.warning,
            )
            opened = SpooledSinks(sinks.sinks, self._spool)

        on_rank_0(work, self._world)
        return opened

    def _wandb(self, project: str, labels: Mapping[str, object], console: Console, folder: Path) -> WandbSink:
        """Open the sink to Weights & Biases, with the run id of this folder."""
        path = self.path("wandb.json")
        if not filesystem.exists(path):
            new = {"id": secrets.token_hex(8)}
            documents.write_document(path, new, format_name=WANDB_FORMAT_NAME, version=FORMAT_VERSION)
        found = documents.read_document(path, format_name=WANDB_FORMAT_NAME, version=FORMAT_VERSION)
        return WandbSink(
            project,
            name=self._name(),
            run_id=str(found.get("id")),
            folder=folder,
            config=dict(self._config),
            labels=labels,
            warn=console.warning,
        )

    def _name(self) -> str:
        """Return the last part of the run's location."""
        if filesystem.is_local(self.url):
            return filesystem.local_path(self.url).resolve().name
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    def _trim_ledger(self, images_seen: int) -> None:
        """Drop the rows after the checkpoint a run resumes from: they will be written again."""
        path = self.path(LEDGER_NAME)
        if filesystem.exists(path):
            rows = documents.read_lines(path)
            documents.write_lines(path, [row for row in rows if row.get("images_seen", 0) <= images_seen])

    def append_ledger(self, row: Mapping[str, Any]) -> None:
        """Add a row to ledger.jsonl; called on rank 0."""
        path = self._spool.folder / LEDGER_NAME
        with filesystem.storage_errors("write the ledger", str(path)), path.open("ab") as stream:
            stream.write(documents.dump_line(row))
