"""Finds the simulation of an environment's task."""

from typing import TYPE_CHECKING, Any

from sb3_mbrl.tasks.classic_control import CLASSIC_TASKS, ClassicTask
from sb3_mbrl.tasks.registry import TASKS, entry_point

if TYPE_CHECKING:
    from sb3_mbrl.tasks.mujoco import MujocoTask


def simulated_task(env: Any) -> "ClassicTask | MujocoTask | None":
    """
    :param env: an unwrapped environment
    :return: a simulation of its task; None if the task is not known or cannot be simulated
    """
    if entry_point(type(env)) not in TASKS:
        return None
    if type(env).__qualname__ in CLASSIC_TASKS:
        return CLASSIC_TASKS[type(env).__qualname__](env)
    from sb3_mbrl.tasks.mujoco import known_mujoco_task  # imports MuJoCo, which classic control does not need

    return known_mujoco_task(env)
