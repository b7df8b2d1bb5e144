"""Learned transition models: networks, fitting, termination, branched rollouts."""

from sb3_mbrl.common.model import DynamicsModel, ModelStep
from sb3_mbrl.dynamics.ensemble import Prediction, ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import FitReport
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.dynamics.rollout_length import AdaptiveRolloutLength
from sb3_mbrl.dynamics.rollouts import branched_rollouts
from sb3_mbrl.tasks.simulator import SimulatorModel
from sb3_mbrl.tasks.termination import known_termination

__all__ = [
    "AdaptiveRolloutLength",
    "DynamicsModel",
    "FitReport",
    "LearnedTermination",
    "ModelStep",
    "Prediction",
    "ProbabilisticEnsemble",
    "SimulatorModel",
    "branched_rollouts",
    "known_termination",
]
