"""What failures cost a run that saves now and then: closed forms, and a simulation they are tested against. Pure.

Failures come independently of each other at a constant rate, of every GPU the same. A run computes for a while, saves,
and goes on; a failure takes it back to what was saved last, after a restart, in which it may fail again.

Source: Young 1974, "A first order approximation to the optimum checkpoint interval" (CACM 17); Daly 2006, "A higher
order estimate of the optimum checkpoint interval for restart dumps" (FGCS 22).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from synfundus.seeding import keyed_generator

HOURS_A_DAY = 24.0
_DRAWS = 4096


@dataclass(frozen=True)
class Record:
    """What a published run has met.

    Attributes:
        name: The run, with its source.
        failures: That stopped it.
        gpus: It ran on.
        days: It took.
    """

    name: str
    failures: int
    gpus: int
    days: float

    @property
    def per_gpu_day(self) -> float:
        """Failures a GPU has in a day."""
        return self.failures / (self.gpus * self.days)

    def mean_time_h(self, gpus: int) -> float:
        """Return the hours between two failures of a run on so many GPUs."""
        return HOURS_A_DAY / (self.per_gpu_day * gpus)


LLAMA_3 = Record("Llama 3 405B, 2024 (arXiv 2407.21783, section 3.3.4)", failures=419, gpus=16_384, days=54)
OPT_175B = Record("OPT-175B, 2022 (arXiv 2205.01068, section 2.5)", failures=100, gpus=992, days=60)


@dataclass(frozen=True)
class Costs:
    """What saving and starting again take, in hours.

    Attributes:
        stall_h: The loop stands for so long at every save.
        restart_h: From a failure to the first step after it: queue, start, load.
        behind_h: What is saved counts so long after the loop went on: it is written behind the steps.
    """

    stall_h: float
    restart_h: float
    behind_h: float = 0.0


def young_interval_h(mean_time_h: float, stall_h: float) -> float:
    """Return the time to compute between saves that loses least, to first order: sqrt(2 x stall x mean time)."""
    return math.sqrt(2.0 * stall_h * mean_time_h)


def useful_share(interval_h: float, mean_time_h: float, costs: Costs) -> float:
    """Return the part of all time in which work is done that stays.

    Exact for failures at a constant rate where a save counts at once: a stretch of computing and saving is tried until
    it ends without a failure, and so is every restart (Daly 2006, the complete model). Writing behind the steps adds
    what a failure then takes back besides, a stretch if it comes within that time, and is not in it.
    """
    stretch = math.expm1((interval_h + costs.stall_h) / mean_time_h)
    return interval_h / (mean_time_h * math.exp(costs.restart_h / mean_time_h) * stretch)


@dataclass(frozen=True)
class Simulated:
    """What a run has met.

    Attributes:
        wall_h: It took.
        failures: It had.
        lost_h: Computed and lost again, parts of saves included.
        stalled_h: It stood in saves that counted.
        restarting_h: It spent on starting again.
    """

    wall_h: float
    failures: int
    lost_h: float
    stalled_h: float
    restarting_h: float


def _gaps(mean_time_h: float, seed: int) -> Iterator[float]:
    """Yield the hours from one failure to the next."""
    block = 0
    while True:
        yield from keyed_generator(seed, "failures", index=block).exponential(mean_time_h, _DRAWS).tolist()
        block += 1


def simulate(*, work_h: float, interval_h: float, mean_time_h: float, costs: Costs, seed: int) -> Simulated:
    """Let a run that needs so many hours of computing meet failures.

    Args:
        work_h: Hours of computing that have to stay; a whole number of intervals is done.
        interval_h: Hours of computing between two saves.
        mean_time_h: Mean time between failures of the whole job.
        costs: Of saving and of starting again; a save is written before the next one.
        seed: Which failures it meets.
    """
    gaps = _gaps(mean_time_h, seed)
    stretches = math.ceil(work_h / interval_h)
    stretch_h = interval_h + costs.stall_h
    wall = lost = restarting = 0.0
    failures = done = since_restart = 0
    left = next(gaps)  # hours until the next failure
    while done < stretches:
        saved = min(int(left / stretch_h), stretches - done)
        done, since_restart = done + saved, since_restart + saved
        wall += saved * stretch_h
        left -= saved * stretch_h
        if done == stretches:
            break
        wall, lost, failures = wall + left, lost + left, failures + 1
        if left < costs.behind_h and since_restart:
            done, lost = done - 1, lost + stretch_h
        left, since_restart = next(gaps), 0
        while left < costs.restart_h:
            wall, restarting, failures = wall + left, restarting + left, failures + 1
            left = next(gaps)
        wall, restarting, left = wall + costs.restart_h, restarting + costs.restart_h, left - costs.restart_h
    return Simulated(wall, failures, lost, stretches * costs.stall_h, restarting)
