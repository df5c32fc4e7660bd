"""`synfundus plan`: memory per rank, time, disk space and cost of autoencoder, latents and diffusion model, beforehand.

Networks are built on the meta device: nothing is allocated, computed or started.
"""

from __future__ import annotations

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.stages import Summary
from synfundus.stages.plan.estimate import work_out
from synfundus.stages.plan.planned import PlannedRun, count_networks
from synfundus.stages.plan.report import report
from synfundus.telemetry.console import Console


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Estimate and show the needs of the chain; returns the result of `work_out`."""
    del world
    planned = PlannedRun.of(config)
    summary = work_out(planned, count_networks(planned))
    report(planned, console, summary)
    return summary
