"""Model predictive control: planners as policies of Stable-Baselines3."""

from sb3_mbrl.mpc.planning_policy import PlanningPolicy
from sb3_mbrl.mpc.policy import MPCPolicy

__all__ = ["MPCPolicy", "PlanningPolicy"]
