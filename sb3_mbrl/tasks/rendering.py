"""Put a real environment where an imagined one stands, to see it."""

import functools
from collections.abc import Callable

import gymnasium as gym
import numpy as np

from sb3_mbrl.tasks.simulated import simulated_task
from sb3_mbrl.tasks.wrappers import observation_is_rewritten


def state_setter(env: gym.Env) -> Callable[[np.ndarray], None]:
    """
    :param env: of Gymnasium's classic control or its MuJoCo tasks, wrapped or not; it is reset
    :return: a function that puts it into the state that a raw observation (1, O) float64 shows, as far as it shows it
    :raises ValueError: another environment, or a wrapper changes its observations
    """
    task = None if observation_is_rewritten(env) else simulated_task(env.unwrapped)
    if task is None:
        raise ValueError(
            f"{env} cannot be put into the state that an observation shows, and so not be rendered: Gymnasium's classic "
            "control and MuJoCo tasks can, as long as no wrapper changes their observations."
        )
    env.reset()
    return functools.partial(task.show, env.unwrapped)
