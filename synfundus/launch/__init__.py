"""Who starts whom: `plan_launch` decides and touches nothing, `execute` carries the plan out. Neither imports torch."""

from synfundus.launch.plan import LaunchPlan, ProcessPlan, Resources, Surroundings, plan_launch
from synfundus.launch.processes import Outcome, execute, leave_on_signals, look_around, tie_to_launcher

__all__ = [
    "LaunchPlan",
    "Outcome",
    "ProcessPlan",
    "Resources",
    "Surroundings",
    "execute",
    "leave_on_signals",
    "look_around",
    "plan_launch",
    "tie_to_launcher",
]
