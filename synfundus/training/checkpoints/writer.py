"""Checkpoints behind the steps: the step copies the state, a thread hashes, writes and commits it.

One is written at a time; the next one waits for it. The ranks agree on the commit as they do in `training.checkpoint`,
on a channel of their own, so that no message of theirs meets one of the training loop. A failed one is known on every
rank, and the loop raises it at its next boundary (ADR-0008).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World
from synfundus.training.checkpoints.checkpoint import Snapshot, take_snapshot, write_snapshot
from synfundus.training.checkpoints.model_files import ModelPart
from synfundus.training.checkpoints.search import checkpoint_name
from synfundus.training.ema import ShardedEma

_NICENESS = 10
"""Added to the thread's: a tenth of a core it has to share."""


class CheckpointWriter:
    """Saves one run.

    Collective: every rank has one and saves at the same places.

    Args:
        root: Folder of the checkpoints.
        engine: Weights and moments.
        ema: Averaged weights.
        keep: Checkpoints to keep, at least 2.
        world: The job.
        behind: The same ranks on another channel, for a thread; None writes in the step.
        watchdog: Ends the job when a save does not end.
        before: Called with the world in use before anything is written; collective.
        saved_images: A place that needs no saving: where the run goes on from.
        damaged: Names of checkpoints that were passed over, not counted as kept; whoever passes more over adds them.
        parts: Parts of the network that get a folder diffusers opens.

    Attributes:
        stall_s: Seconds the caller has stood still so far: copying, and waiting for the save before.
    """

    def __init__(
        self,
        root: str,
        *,
        engine: ZeroEngine,
        ema: ShardedEma,
        keep: int,
        world: World,
        behind: World | None,
        watchdog: Watchdog,
        before: Callable[[World], None] | None = None,
        saved_images: int = -1,
        damaged: set[str] | None = None,
        parts: Sequence[ModelPart] = (),
    ) -> None:
        self._root = root
        self._engine = engine
        self._ema = ema
        self._keep = keep
        self._world = world
        self._behind = behind
        self._watchdog = watchdog
        self._before = before
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._last_images = saved_images
        self._damaged = set() if damaged is None else damaged
        self._parts = parts
        self.stall_s = 0.0

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Take the state as it is now and have it written. Collective.

        A place that was saved already is not saved again: a signal may come right behind a checkpoint.

        Raises:
            StorageError: This checkpoint, or the one before it, could not be written; the last committed one is whole.
        """
        began = time.perf_counter()
        try:
            self.wait()
            if images_seen == self._last_images:
                return
            snapshot = take_snapshot(
                engine=self._engine, ema=self._ema, images_seen=images_seen, state=state, world=self._world
            )
            self._last_images = images_seen
            if self._behind is None:
                self._write(snapshot, self._world)
            else:
                self._thread = threading.Thread(
                    target=self._write_behind, args=(snapshot, self._behind), name="checkpoint", daemon=True
                )
                self._thread.start()
        finally:
            self.stall_s += time.perf_counter() - began

    def _write(self, snapshot: Snapshot, world: World) -> None:
        with self._watchdog.expect_end(lambda: f"the writing of the checkpoint at {snapshot.images_seen:,} images"):
            if self._before is not None:
                self._before(world)
            write_snapshot(self._root, snapshot, keep=self._keep, world=world, damaged=self._damaged, parts=self._parts)
            self._damaged.discard(checkpoint_name(snapshot.images_seen))

    def _write_behind(self, snapshot: Snapshot, world: World) -> None:
        _yield_cores()
        try:
            self._write(snapshot, world)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            self._failure = error

    @property
    def failed(self) -> bool:
        """Whether a save of this rank has failed that nobody was told of. The others' will, or have."""
        return self._failure is not None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written behind the steps."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until everything is written. Collective.

        Raises:
            StorageError: It could not be, on any rank.
        """
        self._join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """Wait until everything is written or has failed, and say nothing of it: a worse error is being raised."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _yield_cores() -> None:
    """Let the threads of the step go first where there are no more cores than them; of this thread only, on Linux."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
