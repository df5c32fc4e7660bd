"""What an error of a collective says about the other ranks."""

from __future__ import annotations

import pytest

from synfundus.distributed.world import _join_error, lost_rank_error
from synfundus.errors import ErrorReport, LaunchError, PortTaken, Stalled, SynfundusError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation", Stalled),
        ("wait timeout after 1000ms, keys: /default_pg/0//1//cpu//1/1", Stalled),
        ("Connection closed by peer [127.0.0.1]:41234", LaunchError),
    ],
)
def test_a_rank_that_is_silent_is_told_from_one_that_has_gone(text: str, kind: type[SynfundusError]) -> None:
    found = lost_rank_error(RuntimeError(text), hint="start it again")
    assert type(found) is kind
    assert text in str(found)
    assert "start it again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        TimeoutError("Timed out"),
        ErrorReport.of(ValueError("Timed out")).to_error(source="rank 3"),
    ],
)
def test_other_errors_are_none_of_them(error: Exception) -> None:
    """The last is what another rank has met: its text is a traceback, whatever that quotes."""
    assert lost_rank_error(error, hint="") is None


@pytest.mark.parametrize(
    ("rank", "text", "kind"),
    [
        (0, "The server socket has failed to listen on any local network address. name: EADDRINUSE", PortTaken),
        (1, "Ping failed, invalid value returned from server. Expected: 1, Got: 7", PortTaken),
        (0, "Timed out after 1801 seconds waiting for clients. 1/2 clients joined.", Stalled),
        (1, "hostname cannot be retrieved", LaunchError),
    ],
)
def test_ranks_that_do_not_meet_say_why(rank: int, text: str, kind: type[SynfundusError]) -> None:
    found = _join_error(RuntimeError(text), rank=rank, master="tcp://node7:16711")
    assert type(found) is kind
    assert kind is Stalled or "tcp://node7:16711" in str(found)
