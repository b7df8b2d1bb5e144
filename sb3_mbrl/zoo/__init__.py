"""Tuned hyperparameters, in RL Zoo's format, and RL Zoo's command line: python -m sb3_mbrl.zoo."""

from sb3_mbrl.zoo.hyperparams import load_env_kwargs, load_hyperparams
from sb3_mbrl.zoo.registration import register

__all__ = ["load_env_kwargs", "load_hyperparams", "register"]
