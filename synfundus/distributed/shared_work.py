"""Work that the ranks of a job take one by one: none waits for a slower one, and each is done once.

A rank's clock, its node or its GPU may be slower than the others', and images are not all the same work: with fixed
shares the job lasts as long as the slowest rank.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from synfundus.distributed.world import StatusStore, World, status_store

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class SharedWork:
    """Counts that all ranks share.

    Attributes:
        store: Where they are.
        name: What tells them from those of another work of the same ranks.
    """

    store: StatusStore
    name: str

    def take(self, what: str) -> int:
        """Return the number of the next unit of some kind, from 0; every number goes to one rank."""
        return self.add(f"{what} taken", 1) - 1

    def add(self, what: str, amount: int) -> int:
        """Add to one of the counts, and return what all ranks together have added."""
        return self.store.add(f"{self.name}/{what}", amount)

    @contextmanager
    def watched(self, what: str, show: Callable[[int], None]) -> Iterator[None]:
        """Show a count now and then while the block runs: the other ranks may be still at work."""
        ended = threading.Event()

        def look() -> None:
            with suppress(RuntimeError):  # the rank that keeps the counts is gone: the block will notice
                while not ended.wait(_LOOK_EVERY_S):
                    show(self.add(what, 0))

        thread = threading.Thread(target=look, name="shared-work", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def share_work(world: World) -> SharedWork:
    """Begin a work that the ranks share. Collective."""
    name = world.all_gather(secrets.token_hex(8))[0]
    return SharedWork(status_store(world), f"work-{name}")
