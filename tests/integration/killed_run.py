"""A synfundus command line that kills itself, without warning, at a chosen point.

python killed_run.py step:13 train --latents ...        in the middle of the 13th optimizer step of this process
python killed_run.py settled:13 train --latents ...     the same, once no checkpoint is being written any more
python killed_run.py write:TEXT train --latents ...     half-way through writing the first file whose place has TEXT
python killed_run.py after:TEXT train --latents ...     right after that file was written
python killed_run.py save:N:SECONDS train --latents ... so long after the N-th save of a checkpoint began
python killed_run.py timed:FILE train --latents ...     not at all: how long each save took is added to the file

python killed_run.py drawn:FILE sample --model ...      not at all: the first image of each batch it has drawn is
                                                        added to the file

And one that is sent a signal, or whose disk is full, at a chosen point:

python killed_run.py signal:SIGUSR2:MODULE:FUNCTION:N train --latents ...  at the N-th call of the function

python killed_run.py full:TEXT:BYTES train --latents ...  when it is to write the first file whose place has TEXT, so
                                                         many bytes are left: a file called ballast takes the rest
python killed_run.py hang:KIND:MODULE:FUNCTION:N train --latents ...  at the N-th call of the function: `sleep` waits
                                                         for ever, `stop` stops the process, `gil` keeps the
                                                         interpreter, a number waits so many seconds
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from synfundus.storage import filesystem

INSIDE = "killed inside the save"


def die() -> None:
    """End as a machine that loses its power does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm_step(number: int, *, settled: bool) -> None:
    """Die when the weights of the given step are updated and nothing else is.

    Args:
        number: Optimizer steps of this process, from 1.
        settled: Let a checkpoint that is being written behind the steps be finished before.
    """
    from synfundus.distributed import engine

    original = engine.ZeroEngine.step
    done = 0

    def step(self: engine.ZeroEngine, **settings: Any) -> engine.StepResult | None:
        nonlocal done
        result = original(self, **settings)
        done += result is not None
        if done == number:
            for thread in threading.enumerate():
                if settled and thread.name == "checkpoint":
                    thread.join()
            die()
        return result

    engine.ZeroEngine.step = step  # type: ignore[method-assign]


def arm_write(place: str, *, finish: bool) -> None:
    """Die while, or right after, a file is written whose location contains a text."""
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        if place not in url:
            original(url, data)
            return
        if finish:
            original(url, data)
            die()
        with filesystem.atomic_write(url) as stream:
            stream.write(data[: len(data) // 2])
            stream.flush()
            die()

    filesystem.write_bytes = write


def die_inside() -> None:
    """Die while a save goes on."""
    os.write(2, f"{INSIDE}\n".encode())
    die()


def arm_save(number: int, delay_s: float) -> None:
    """Die a while after a save has begun, and say so; when it is over by then, right after it."""
    checkpoint_writer: Any = importlib.import_module("synfundus.training.checkpoints.writer")
    original: Callable[..., str] = checkpoint_writer.write_checkpoint
    begun = 0

    def save(*arguments: Any, **settings: Any) -> str:
        nonlocal begun
        begun += 1
        if begun != number:
            return original(*arguments, **settings)
        threading.Timer(delay_s, die_inside).start()
        original(*arguments, **settings)
        die()
        raise AssertionError

    checkpoint_writer.write_checkpoint = save


def time_saves(log: str) -> None:
    """Add the seconds that each save took to a file."""
    checkpoint_writer: Any = importlib.import_module("synfundus.training.checkpoints.writer")
    original: Callable[..., str] = checkpoint_writer.write_checkpoint

    def save(*arguments: Any, **settings: Any) -> str:
        began = time.monotonic()
        url = original(*arguments, **settings)
        with open(log, "a", encoding="ascii") as stream:
            stream.write(f"{time.monotonic() - began}\n")
        return url

    checkpoint_writer.write_checkpoint = save


def log_draws(log: str) -> None:
    """Add the first image of each batch that the network has drawn to a file."""
    factory: Any = importlib.import_module("synfundus.stages.sample.factory")
    original = factory._draw

    def draw(work: Any, images: range) -> Any:
        pixels = original(work, images)
        with open(log, "a", encoding="ascii") as stream:
            stream.write(f"{images[0]}\n")
        return pixels

    factory._draw = draw


def take_all_but(room: int, descriptor: int) -> None:
    """Make a file so long that so many bytes are left; the other ranks are writing meanwhile."""
    while True:
        disk = os.fstatvfs(descriptor)
        more = disk.f_bavail * disk.f_bsize - room
        if more <= 0:
            return
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, more)


def arm_full_disk(place: str, room: int) -> None:
    """Fill the disk for real before a file is written."""
    original = filesystem.write_bytes
    full = False

    def write(url: str, data: bytes) -> None:
        nonlocal full
        if place in url and not full:
            full = True
            mount = filesystem.local_path(url)
            while not os.path.ismount(mount):
                mount = mount.parent
            with (mount / "ballast").open("wb") as ballast:
                take_all_but(room, ballast.fileno())
        original(url, data)

    filesystem.write_bytes = write


def hang(kind: str) -> None:
    """Do nothing any more, in one of three ways, or for some seconds."""
    if kind.isdigit():
        time.sleep(int(kind))
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "gil":
        re.match("(a+)+$", "a" * 64 + "b")  # takes longer than anyone has, and lets no other thread run
    else:
        threading.Event().wait()


def arm_call(act: Callable[[], None], place: str, call: int) -> None:
    """Do something when a function, ``module:Class.name``, is called for the n-th time."""
    module, _, path = place.partition(":")
    *holders, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for part in holders:
        holder = getattr(holder, part)
    original = getattr(holder, name)
    calls = 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(*arguments, **settings)

    setattr(holder, name, counted)


if __name__ == "__main__":
    kind, _, where = sys.argv[1].partition(":")
    if kind in ("step", "settled"):
        arm_step(int(where), settled=kind == "settled")
    elif kind == "save":
        which, _, seconds = where.partition(":")
        arm_save(int(which), float(seconds))
    elif kind == "drawn":
        log_draws(where)
    elif kind == "timed":
        time_saves(where)
    elif kind in ("signal", "hang"):
        what, _, function = where.partition(":")
        function, _, which = function.rpartition(":")
        act = partial(hang, what) if kind == "hang" else partial(os.kill, os.getpid(), signal.Signals[what])
        arm_call(act, function, int(which))
    elif kind == "full":
        place, _, room = where.rpartition(":")
        arm_full_disk(place, int(room))
    else:
        arm_write(where, finish=kind == "after")
    from synfundus.cli import main

    main(sys.argv[2:])
