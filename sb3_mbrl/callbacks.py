"""The callbacks of all rooms in one place. They work together with those of ``stable_baselines3.common.callbacks``."""

from sb3_mbrl.algorithms.callbacks import ExactCheckpointCallback
from sb3_mbrl.diagnostics.callback import ModelDiagnosticsCallback

__all__ = ["ExactCheckpointCallback", "ModelDiagnosticsCallback"]
