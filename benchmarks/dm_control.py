"""
The DeepMind Control Suite as in the paper of TD-MPC2: flat observations, two frames per step, 500 steps per episode.

dm_control needs a MuJoCo before 4.0, so ``make dmcontrol`` installs it into a separate virtual environment.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation

ACTION_REPEAT = 2
EPISODE_STEPS = 500
PREFIX = "dmc-"


class RepeatAction(gym.Wrapper[Any, Any, Any, Any]):
    """Repeats each action for ``ACTION_REPEAT`` frames and adds up their rewards."""

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
    :return: the environment, whose episodes end after 1000 frames
    """
    import shimmy

    gym.register_envs(shimmy)
    return RepeatAction(FlattenObservation(gym.make(f"dm_control/{task}-v0")))


def register(env_id: str) -> None:
    """
    :param env_id: an id like ``"dmc-walker-walk"``, which ``gymnasium.make`` then accepts; other ids are ignored
    """
    if env_id.startswith(PREFIX) and env_id not in gym.registry:
        task = env_id.removeprefix(PREFIX)
        gym.register(
            env_id, entry_point=make, kwargs={"task": task}, max_episode_steps=EPISODE_STEPS, disable_env_checker=True
        )
