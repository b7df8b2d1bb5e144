"""Model predictive control: planners as policies of Stable-Baselines3."""

from sb3_mbrl.mpc.acting import ActsByPlanning
from sb3_mbrl.mpc.policy import MPCPolicy

__all__ = ["ActsByPlanning", "MPCPolicy"]
