"""Puts a real environment into an observed state, so that it can render an imagined one."""

import functools
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from sb3_mbrl.tasks.simulated import simulated_task
from sb3_mbrl.tasks.wrappers import observation_is_rewritten


def state_setter(env: gym.Env) -> Callable[[np.ndarray], None]:
    """
    :param env: one of Gymnasium's classic control or MuJoCo tasks, wrapped or not; it is reset
    :return: a function that puts it into the state that a raw observation (1, O) float64 shows. Parts of the state that are
        not observed are set to zero
    :raises ValueError: it is another environment, or a wrapper changes its observations
    """
    task = None if observation_is_rewritten(env) else simulated_task(env.unwrapped)
    if task is None:
        raise ValueError(
            f"{env} cannot be rendered in a model, because its state cannot be set from an observation. Gymnasium's classic "
            "control and MuJoCo tasks can, unless a wrapper changes their observations."
        )
    env.reset()
    return functools.partial(task.show, env.unwrapped)
