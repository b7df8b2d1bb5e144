"""Checks of a model: its errors one step ahead and in open loop, and the states that it imagines."""

from sb3_mbrl.diagnostics.callback import ModelDiagnosticsCallback
from sb3_mbrl.diagnostics.one_step import OneStepError, one_step_error
from sb3_mbrl.diagnostics.open_loop import OpenLoopError, open_loop_error
from sb3_mbrl.diagnostics.state_distribution import StateDistribution, state_distribution

__all__ = [
    "ModelDiagnosticsCallback",
    "OneStepError",
    "OpenLoopError",
    "StateDistribution",
    "one_step_error",
    "open_loop_error",
    "state_distribution",
]
