"""Gymnasium's own tasks: their rules of termination, their simulators, their parameters and how they are rendered."""

from sb3_mbrl.tasks.simulator import SimulatorModel
from sb3_mbrl.tasks.termination import known_termination

__all__ = ["SimulatorModel", "known_termination"]
