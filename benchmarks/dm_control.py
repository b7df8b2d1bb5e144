"""
The DeepMind Control Suite as TD-MPC2's paper takes it: flat observations, two frames a step, 500 steps an episode.

dm_control needs a MuJoCo before 4.0: an environment of its own, ``make dmcontrol``.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation

ACTION_REPEAT = 2
EPISODE_STEPS = 500
PREFIX = "dmc-"


class RepeatAction(gym.Wrapper[Any, Any, Any, Any]):
    """Each action for ``ACTION_REPEAT`` frames, whose rewards are added."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(ACTION_REPEAT):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make(task: str) -> gym.Env:
    """
    :param task: domain and task, for instance ``"walker-walk"``
    :return: it, which ends after 1000 frames
    """
    import shimmy

    gym.register_envs(shimmy)
    return RepeatAction(FlattenObservation(gym.make(f"dm_control/{task}-v0")))


def register(env_id: str) -> None:
    """
    :param env_id: ``"dmc-walker-walk"``, for ``gymnasium.make``; ids of other environments are left alone
    """
    if env_id.startswith(PREFIX) and env_id not in gym.registry:
        task = env_id.removeprefix(PREFIX)
        gym.register(
            env_id, entry_point=make, kwargs={"task": task}, max_episode_steps=EPISODE_STEPS, disable_env_checker=True
        )
