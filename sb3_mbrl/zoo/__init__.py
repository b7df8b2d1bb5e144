"""Tuned hyperparameters, in RL Zoo's format."""

from sb3_mbrl.zoo.hyperparams import load_env_kwargs, load_hyperparams

__all__ = ["load_env_kwargs", "load_hyperparams"]
