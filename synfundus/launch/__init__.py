"""Starting the processes of a job: `plan_launch` decides, `execute` carries the plan out. Neither imports torch."""

from synfundus.launch.plan import LaunchPlan, MachineFacts, ProcessPlan, Resources, asks_for_job, plan_launch
from synfundus.launch.processes import Outcome, die_with_launcher, execute, inspect_machine

__all__ = [
    "LaunchPlan",
    "MachineFacts",
    "Outcome",
    "ProcessPlan",
    "Resources",
    "asks_for_job",
    "die_with_launcher",
    "execute",
    "inspect_machine",
    "plan_launch",
]
