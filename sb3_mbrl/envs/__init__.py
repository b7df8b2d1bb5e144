"""A learned model as an environment of Gymnasium and as a vector of environments for Stable-Baselines3."""

from sb3_mbrl.common.collection import collect
from sb3_mbrl.envs.datasets import read_dataset
from sb3_mbrl.envs.imagination import Imagination
from sb3_mbrl.envs.learned_env import LearnedModelEnv
from sb3_mbrl.envs.learned_vec_env import LearnedModelVecEnv
from sb3_mbrl.envs.rules import ImaginationRules

__all__ = ["Imagination", "ImaginationRules", "LearnedModelEnv", "LearnedModelVecEnv", "collect", "read_dataset"]
