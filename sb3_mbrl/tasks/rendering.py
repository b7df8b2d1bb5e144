"""Put a real environment where an imagined one stands, to see it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_mbrl.tasks.classic_control import CLASSIC_TASKS


def state_setter(env: gym.Env) -> Callable[[np.ndarray], None]:
    """
    :param env: of Gymnasium's classic control or its MuJoCo tasks, wrapped or not; it is reset
    :return: a function that puts it into the state that a raw observation (1, O) float64 shows, as far as it shows it
    :raises ValueError: another environment, or a wrapper changes its observations
    """
    task: Any = env.unwrapped
    set_state = None
    if not _observation_is_rewritten(env):
        entry_point = f"{type(task).__module__}:{type(task).__qualname__}"
        if entry_point in CLASSIC_TASKS:
            set_state = _classic_setter(task, entry_point)
        elif entry_point.startswith("gymnasium.envs.mujoco."):
            set_state = _mujoco_setter(task)
    if set_state is None:
        raise ValueError(
            f"{env} cannot be put into the state that an observation shows, and so not be rendered: Gymnasium's classic "
            "control and MuJoCo tasks can, as long as no wrapper changes their observations."
        )
    env.reset()
    return set_state


def _classic_setter(task: Any, entry_point: str) -> Callable[[np.ndarray], None]:
    simulator = CLASSIC_TASKS[entry_point](task)

    def set_state(obs: np.ndarray) -> None:
        task.state = simulator.start(obs)[0]

    return set_state


def _mujoco_setter(task: Any) -> Callable[[np.ndarray], None] | None:
    from sb3_mbrl.tasks.mujoco import known_mujoco_task  # imports MuJoCo, which others need not

    physics = known_mujoco_task(task)
    if physics is None:
        return None

    def set_state(obs: np.ndarray) -> None:
        states = physics.state_of(obs)
        task.set_state(physics.qpos(states)[0], physics.qvel(states)[0])

    return set_state


def _observation_is_rewritten(env: gym.Env) -> bool:
    if env.observation_space.shape != env.unwrapped.observation_space.shape:
        return True
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.ObservationWrapper):
            return True
        env = env.env
    return False
