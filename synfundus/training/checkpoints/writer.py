"""Asynchronous checkpoints: the step copies the state, a background thread hashes, writes and commits it.

One is written at a time; the next waits for it. The ranks agree on the commit as in `checkpoint`, in a separate process
group, so that their messages do not mix with the training loop's. Every rank learns of a failure, and the loop raises
it at the next step boundary (ADR-0008).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.requeue import forget_faults
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World
from synfundus.training.checkpoints.checkpoint import StateCopy, copy_state, write_checkpoint
from synfundus.training.checkpoints.search import checkpoint_name
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.ema import ShardedEma

_NICENESS = 10
"""Added to the thread's niceness: it gets a tenth of a core it shares."""


@dataclass(kw_only=True, eq=False)
class CheckpointWriter:
    """Saves the checkpoints of one run.

    Collective: every rank has one and saves at the same steps.

    Attributes:
        root: Folder of the checkpoints.
        engine: Weights and moments.
        ema: Averaged weights.
        keep: Checkpoints to keep, at least 2.
        world: The job.
        background: The same ranks in another process group, for the thread; None writes in the step.
        watchdog: Ends the job if a save does not end.
        before: Called before anything is written, with the world in use; collective.
        saved_images: Images of the last checkpoint, which is not saved again; at first that the run resumed from.
        damaged: Names of damaged checkpoints, which do not count as kept; the caller may add to it.
        parts: Parts of the network that get a folder diffusers can open.
        stall_s: Seconds the caller was held up so far: by copying, and by waiting for the previous save.
    """

    root: str = field(kw_only=False)
    engine: ZeroEngine
    ema: ShardedEma
    keep: int
    world: World
    background: World | None
    watchdog: Watchdog
    before: Callable[[World], None] | None = None
    saved_images: int = -1
    damaged: set[str] = field(default_factory=set)
    parts: Sequence[ModelPart] = ()
    stall_s: float = field(default=0.0, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _failure: BaseException | None = field(default=None, init=False)

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Save the current state. Collective.

        A state that was saved already is not saved again: a signal may come right after a checkpoint.

        Raises:
            StorageError: This checkpoint or the previous one could not be written; the last committed one is intact.
        """
        began = time.perf_counter()
        try:
            self.wait()
            if images_seen == self.saved_images:
                return
            copy = copy_state(engine=self.engine, ema=self.ema, images_seen=images_seen, state=state, world=self.world)
            self.saved_images = images_seen
            if self.background is None:
                self._write(copy, self.world)
            else:
                self._thread = threading.Thread(
                    target=self._write_in_background, args=(copy, self.background), name="checkpoint", daemon=True
                )
                self._thread.start()
        finally:
            self.stall_s += time.perf_counter() - began

    def _write(self, copy: StateCopy, world: World) -> None:
        with self.watchdog.expect_end(lambda: f"the writing of the checkpoint at {copy.images_seen:,} images"):
            if self.before is not None:
                self.before(world)
            write_checkpoint(self.root, copy, keep=self.keep, world=world, damaged=self.damaged, parts=self.parts)
            self.damaged.discard(checkpoint_name(copy.images_seen))
        if world.rank == 0:
            forget_faults()

    def _write_in_background(self, copy: StateCopy, world: World) -> None:
        _yield_cores()
        try:
            self._write(copy, world)
        except BaseException as error:  # noqa: BLE001 - handed to the loop, which raises it
            self._failure = error

    @property
    def failed(self) -> bool:
        """Whether a save has failed and `wait` has not raised it yet; it fails on the other ranks too."""
        return self._failure is not None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written in the background."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the checkpoint is written. Collective.

        Raises:
            StorageError: A rank could not write it.
        """
        self.close()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """Wait until the checkpoint is written or has failed, without raising: another error is being raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _yield_cores() -> None:
    """Give this thread a lower priority than the step's, for when all cores are busy; on Linux only."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
