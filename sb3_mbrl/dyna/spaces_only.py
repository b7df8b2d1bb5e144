"""A vectorised environment that has spaces but cannot be stepped."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class SpacesOnly(VecEnv):
    """
    Stands in for imagined environments when an algorithm of Stable-Baselines3 is built, before there is a fitted model.

    :param n_envs: number of environments
    :param observation_space: observation space of each environment
    :param action_space: action space of each environment
    """

    def __init__(self, n_envs: int, observation_space: spaces.Space, action_space: spaces.Space):
        self.render_mode = None
        super().__init__(n_envs, observation_space, action_space)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def reset(self) -> Any:
        raise NotImplementedError("The model is not fitted yet.")

    def step_async(self, actions: np.ndarray) -> None:
        self.reset()

    def step_wait(self) -> Any:
        self.reset()

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self.reset()

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return self.reset()

    def close(self) -> None:
        """Nothing to close."""
