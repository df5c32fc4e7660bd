"""`make mutants`: puts each fault of mutants.yaml into a copy of the program, and says which ones no test noticed.

usage: python tests/mutate.py [--jobs N] [--sample N] [WORD ...]; a WORD is a part of a mutant's name or of its file.
Ends with 1 if a mutant survived.
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("mutants.yaml")
LIMIT_S = 900.0
"""A mutant whose tests take longer makes something hang: it is caught."""
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", "*.egg-info", "demo*-out", "node_modules")
_PASSED, _FAILED, _BROKEN = 0, 1, 2
_FORKED = multiprocessing.get_context("forkserver")
_LOADED = ["torch", "deepspeed", "diffusers", "scipy.ndimage", "PIL.Image", "pytest", "hypothesis"]
"""What tests spend seconds to import, and no mutant changes: loaded once, by the process theirs are forked from."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: What the program then does wrong.
        file: Where it is put, relative to the root.
        old: The text it replaces.
        new: What it is replaced by.
        tests: The test files that notice it, relative to the root.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self, root: Path) -> str:
        """Return the file with the fault."""
        return (root / self.file).read_text(encoding="utf-8").replace(self.old, self.new)


def read_table(path: Path = TABLE) -> list[Mutant]:
    """Return all mutants, in the order of the table."""
    table: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutant(
            name, file, text["old"], text["new"], tuple(f"tests/{test}" for test in text.get("tests", part["tests"]))
        )
        for file, part in table.items()
        for name, text in part["mutants"].items()
    ]


def problems(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """Return what does not fit the tree: a text that is not there once, a missing test, a fault that is no program."""
    found = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutant.file}, {mutant.name}: {mutant.old!r} is there {count} times")
        elif mutant.old == mutant.new:
            found.append(f"{mutant.file}, {mutant.name}: nothing is changed")
        elif path.suffix == ".py":
            try:
                compile(mutant.source(root), mutant.file, "exec")
            except SyntaxError as error:
                found.append(f"{mutant.file}, {mutant.name}: no program any more: {error}")
        found += [f"{mutant.name}: {test} is missing" for test in mutant.tests if not (root / test).is_file()]
    return found


def _arguments(tests: Sequence[str]) -> list[str]:
    return ["-q", "-p", "no:cacheprovider", "--randomly-dont-reorganize", *tests]


def _forked_pytest(copy: str, tests: tuple[str, ...], log: str) -> None:
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, copy)
    # mutants are not compiled to the disk: what was changed and changed back within a second would stay in its cache
    os.environ |= {"PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    with open(log, "wb") as stream:
        for output in (1, 2):
            os.dup2(stream.fileno(), output)
    import pytest

    code = int(pytest.main(["-x", "-n", "0", *_arguments(tests)]))
    atexit._run_exitfuncs()  # multiprocessing does not, and servers of tests end there
    sys.exit(code)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run test files in a copy of the tree until the first fails; returns pytest's exit code and its last lines."""
    log = copy.with_name(f"{copy.name}.log")
    process = _FORKED.Process(target=_forked_pytest, args=(str(copy), tuple(tests), str(log)))
    process.start()
    process.join(LIMIT_S)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return _FAILED, f"nothing came in {LIMIT_S:.0f} s"
    return process.exitcode, "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def run_sound(copy: Path, tests: Sequence[str], jobs: int) -> tuple[int, str]:
    """Run all these test files without a mutant; returns as `run_tests`."""
    command = [sys.executable, "-m", "pytest", "-x", "-n", str(jobs), *_arguments(tests)]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, "\n".join(done.stdout.splitlines()[-15:] + done.stderr.splitlines()[-5:])


def is_caught(mutant: Mutant, copy: Path) -> bool:
    """Return whether a test fails with the fault; the copy is as before afterwards.

    Raises:
        RuntimeError: The tests could not be run.
    """
    path = copy / mutant.file
    sound, times = path.read_bytes(), path.stat()
    path.write_text(mutant.source(copy), encoding="utf-8")
    try:
        code, text = run_tests(copy, mutant.tests)
    finally:
        path.write_bytes(sound)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if code not in (_PASSED, _FAILED, _BROKEN):
        raise RuntimeError(f"{mutant.name}: pytest ended with {code}\n{text}")
    return code != _PASSED


def run_all(mutants: Sequence[Mutant], copies: Sequence[Path]) -> list[Mutant]:
    """Try each mutant in one of the copies, as many at a time as there are; returns those that survived, in order."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    survived: set[Mutant] = set()
    tried: list[Mutant] = []
    faults: list[BaseException] = []

    def work(copy: Path) -> None:
        while not faults:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                caught = is_caught(mutant, copy)
            except BaseException as error:  # noqa: BLE001 - raised below
                faults.append(error)
                return
            if not caught:
                survived.add(mutant)
            tried.append(mutant)
            print(
                f"{len(tried):>4} of {len(mutants)}  {'caught  ' if caught else 'SURVIVED'}  "
                f"{mutant.file}: {mutant.name}",
                flush=True,
            )

    threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return [mutant for mutant in mutants if mutant in survived]


def chosen(mutants: Sequence[Mutant], words: Sequence[str], sample: int) -> list[Mutant]:
    """Return the mutants that have one of the words, of these at most so many, drawn at random but always the same."""
    named = [one for one in mutants if not words or any(word in f"{one.file} {one.name}" for word in words)]
    if not sample or sample >= len(named):
        return named
    drawn = set(random.Random(0).sample(named, sample))
    return [one for one in named if one in drawn]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 1 if a mutant survived, 2 if it could not be run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD", help="only mutants with this in their name or file")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at the same time")
    parser.add_argument("--sample", type=int, default=0, help="only so many of them")
    given = parser.parse_args(arguments)
    every = read_table()
    if wrong := problems(every, ROOT):
        print("\n".join(wrong))
        return 2
    mutants = chosen(every, given.words, given.sample)
    _FORKED.set_forkserver_preload(_LOADED)
    with tempfile.TemporaryDirectory(prefix="synfundus-mutants-") as scratch:
        copies = [Path(scratch) / str(number) for number in range(max(1, min(given.jobs, len(mutants))))]
        for copy in copies:
            shutil.copytree(ROOT, copy, ignore=_LEFT_OUT, symlinks=True)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        print(f"{len(tests)} test files without a mutant first, then {len(mutants)} mutants", flush=True)
        code, text = run_sound(copies[0], tests, len(copies)) if tests else (_PASSED, "")
        if code != _PASSED:
            print(f"these tests fail without a mutant, too:\n{text}")
            return 2
        survivors = run_all(mutants, copies)
    for mutant in survivors:
        print(
            f"no test fails: {mutant.file}: {mutant.name}: {mutant.old!r} -> {mutant.new!r}; {' '.join(mutant.tests)}"
        )
    print(json.dumps({"name": "mutants", "passed": len(mutants) - len(survivors), "of": len(mutants)}))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
