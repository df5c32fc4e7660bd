"""The start of a job of several ranks: they meet at a store and compare what each was started with.

Nothing else would notice: ranks with another learning rate, another copy of a file or another version of the code train
one wrong model, and those with another budget or world size wait for each other.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from synfundus.distributed.rank_info import RankInfo
from synfundus.errors import LaunchError

Facts = Mapping[str, Any]
"""What must be the same on all ranks, by name; JSON values."""
_MOST_SHOWN = 3
_LONGEST = 100
_POLL_S = 0.05
_READ_S = 5.0
"""Time for the other ranks to read rank 0's verdict, which ends with it."""
_AGREED = "the same"
HINT = "start every rank with the same command, code and files: a copy on one of the hosts may be another version"


def differences(first: Facts, other: Facts, *, rank: int) -> str:
    """Name what a rank was started with that rank 0 was not; empty if there is nothing. Pure."""
    names = [name for name in sorted({*first, *other}) if first.get(name) != other.get(name)]
    shown = [f"{name} is {_short(other.get(name))}, {_short(first.get(name))} on rank 0" for name in names]
    shown[_MOST_SHOWN:] = [f"{len(names) - _MOST_SHOWN} more"] if len(names) > _MOST_SHOWN else []
    return f"rank {rank} was started with something else than rank 0: {'; '.join(shown)}" if names else ""


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def meet(info: RankInfo, facts: Facts, *, timeout_s: float) -> Any:  # noqa: ANN401 - torch.distributed is untyped
    """Return the store of a job's ranks at MASTER_ADDR and MASTER_PORT, after comparing them. Collective.

    Args:
        info: This rank's place.
        facts: What it was started with; its world size is added.
        timeout_s: Longest wait for the others, in seconds.

    Raises:
        LaunchError: On every rank when one was started with something else; names it and what differs.
        RuntimeError: Of torch: the others do not answer, or the port is taken.
    """
    import torch.distributed as dist

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        info.world_size,
        is_master=info.rank == 0 and not hosted,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = dist.PrefixStore(f"synfundus/start/{attempt}", store)  # type: ignore[attr-defined]
    mine = {**facts, "the world size": info.world_size}
    place.set(str(info.rank), json.dumps(mine))
    verdict = _judge(place, mine, info, timeout_s) if info.rank == 0 else _be_judged(place, mine, info)
    if verdict:
        raise LaunchError(verdict, where=f"rank {info.rank}", hint=HINT)
    return store


def _judge(place: Any, mine: Facts, info: RankInfo, timeout_s: float) -> str:  # noqa: ANN401 - as in `meet`
    """Compare every rank as it comes; tell all of the first that differs."""
    waiting, verdict, ends = set(range(1, info.world_size)), "", time.monotonic() + timeout_s
    while waiting and not verdict:
        come = {rank for rank in waiting if place.check([str(rank)])}
        found = (differences(mine, json.loads(place.get(str(rank))), rank=rank) for rank in sorted(come))
        verdict = next(filter(None, found), "")
        waiting -= come
        if not come and time.monotonic() > ends:
            missing = ", ".join(map(str, sorted(waiting)))
            raise RuntimeError(f"wait timeout after {timeout_s:.0f} s for rank {missing} to start")
        if waiting and not verdict:
            time.sleep(_POLL_S)
    place.set("verdict", verdict or _AGREED)
    ends = time.monotonic() + _READ_S
    while verdict and place.add("read", 0) < info.world_size - 1 and time.monotonic() < ends:
        time.sleep(_POLL_S)
    return verdict


def _be_judged(place: Any, mine: Facts, info: RankInfo) -> str:  # noqa: ANN401 - as in `meet`
    """Compare with rank 0, then wait for what it finds on the others."""
    verdict = differences(json.loads(place.get("0")), mine, rank=info.rank)
    if not verdict:
        told = place.get("verdict").decode()
        verdict = "" if told == _AGREED else told
    if verdict:
        place.add("read", 1)
    return verdict
