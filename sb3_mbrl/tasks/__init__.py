"""Gymnasium's own tasks: their termination rules, simulators, physical parameters and rendering."""

from sb3_mbrl.tasks.simulator import SimulatorModel
from sb3_mbrl.tasks.termination import known_termination

__all__ = ["SimulatorModel", "known_termination"]
