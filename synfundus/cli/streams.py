"""Standard output and standard error that cannot break a job: closed, full, or unable to encode a text."""

from __future__ import annotations

import os
import sys
from typing import IO, Any, cast

from synfundus.errors import StorageError
from synfundus.telemetry.console import lose_messages


class OutputClosed(Exception):
    """Nobody reads standard output any more, as after ``| head -1``."""


class _Stream:
    """A text stream in front of another one; what is not defined here is the other's."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._gone = False

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 - as the stream has it
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        """Write a text."""
        if not self._gone:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        """Write nothing from now on; what the interpreter still flushes when it ends goes nowhere."""
        self._gone = True
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):
            return


class MessageStream(_Stream):
    """Falls silent once it cannot be written: the work its messages tell of does not stop."""

    def _lose(self, error: OSError | ValueError) -> None:
        super()._lose(error)
        lose_messages(f"standard error: {getattr(error, 'strerror', None) or error}")


class ResultStream(_Stream):
    """Says why it cannot be written, once.

    Raises:
        OutputClosed: Its reader has gone.
        StorageError: Any other reason, such as a full disk.
    """

    def _lose(self, error: OSError | ValueError) -> None:
        super()._lose(error)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from error
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"the result cannot be written: {reason}", where="standard output") from error


def guard_streams() -> None:
    """Put these streams in place of the interpreter's.

    A descriptor that was closed (``>&-``) is opened on nothing, lest the next file that is opened gets its number.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for output, guard in (("stdout", ResultStream), ("stderr", MessageStream)):
        stream = getattr(sys, output)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, output, cast(IO[str], guard(stream)))
