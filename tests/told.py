"""What a user is told: a command line run here, and errors of functions with the hint they have to give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from synfundus.cli.app import run_command
from synfundus.errors import SynfundusError


class Told(NamedTuple):
    """The end of a command line.

    Attributes:
        code: Exit code.
        said: Everything on standard error and output.
        hint: What to do; empty where nothing was refused.
    """

    code: int
    said: str
    hint: str


class Shell:
    """Runs command lines in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Told:
        self._capsys.readouterr()
        code = run_command([str(word) for word in words])
        said = self._capsys.readouterr()
        return Told(code, said.err + said.out, said.err.partition("what to do: ")[2].strip())

    def refused(self, hint: str, *words: object) -> Told:
        """Run a command line that is refused with a hint."""
        told = self(*words)
        assert told.code not in (0, 1), told.said
        assert hint in told.hint, told.said
        return told

    def done(self, *words: object) -> str:
        """Run a command line that ends well; returns what it says."""
        told = self(*words)
        assert told.code == 0, told.said
        return told.said


@contextmanager
def refusal(hint: str) -> Iterator[pytest.ExceptionInfo[SynfundusError]]:
    """Expect an error with a hint."""
    with pytest.raises(SynfundusError) as caught:
        yield caught
    assert hint in caught.value.hint, str(caught.value)
