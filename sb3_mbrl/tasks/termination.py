"""Finds the termination rule of one of Gymnasium's own tasks, with its limits read from the environment."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import registry
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_mbrl.tasks.registry import TASKS, entry_point
from sb3_mbrl.tasks.termination_rules import NeverTerminates, TerminationRule
from sb3_mbrl.tasks.wrappers import observation_is_rewritten


def _described_entry_point(description: str) -> str | None:
    """
    :param description: ``str(env)``, for instance ``<TimeLimit<OrderEnforcing<HopperEnv<Hopper-v5>>>>``
    :return: entry point of the innermost environment, found by its id; ``None`` when it has no registered id
    """
    *_, class_name, env_id = ["", *description.rstrip(">").split("<")]
    spec = registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return None
    defined_in = spec.entry_point if isinstance(spec.entry_point, str) else entry_point(spec.entry_point)
    # In this process the id may be registered for another class than in the environment's process
    return defined_in if defined_in.endswith(f":{class_name}") else None


def _task_entry_point(env: VecEnv, index: int) -> str | None:
    """
    Environments in other processes are asked for ``str(env)`` rather than ``env.spec``: a spec holds the arguments of every
    wrapper, and one that cannot be pickled (``TransformReward(env, lambda ...)``) would kill the worker.

    :param env: the vectorised environment
    :param index: index of the sub-environment
    :return: class of the unwrapped environment as ``"module:Class"``; None if it cannot be determined
    """
    if isinstance(env.unwrapped, DummyVecEnv):
        return entry_point(type(env.unwrapped.envs[index].unwrapped))
    try:
        return _described_entry_point(env.env_method("__str__", indices=[index])[0])
    except (AttributeError, NotImplementedError):
        return None  # not a vector of Gymnasium environments


def _observation_is_rewritten(env: VecEnv, index: int) -> bool:
    """
    :param env: the vectorised environment
    :param index: index of the sub-environment
    :return: whether a wrapper changes the observation of the task. ``VecNormalize`` does not count, because models work on raw
        observations
    """
    if isinstance(env.unwrapped, DummyVecEnv):
        inner = env.unwrapped.envs[index]
        return observation_is_rewritten(inner) or env.observation_space.shape != inner.observation_space.shape
    if env.env_is_wrapped(gym.ObservationWrapper, indices=[index])[0]:
        return True
    # The observation space of the unwrapped task cannot be read from another process, but v5 tasks describe its layout
    if env.has_attr("observation_structure"):
        structure: dict[str, int] = env.get_attr("observation_structure", indices=[index])[0]
        return env.observation_space.shape != (sum(n for part, n in structure.items() if part != "skipped_qpos"),)
    # Frames may be stacked by a wrapper in the other process or around the vectorised environment
    shape = env.get_attr("observation_space", indices=[index])[0].shape
    return len(shape) != 1 or env.observation_space.shape != shape


def _known_termination_of(env: VecEnv, index: int) -> TerminationRule | None:
    """
    :param env: the vectorised environment
    :param index: index of the sub-environment
    :return: its termination rule, or ``None`` if the task is not known or its observation is not enough to apply the rule
    """
    task = TASKS.get(_task_entry_point(env, index) or "")
    if task is None:
        return None

    def read(name: str) -> Any:
        return env.get_attr(name, indices=[index])[0]

    rule = task.end(read) if task.can_end(read) else NeverTerminates()
    # "Never" holds whatever the observation is; any other rule needs the task's own observation
    if isinstance(rule, NeverTerminates) or (task.shows_end(read) and not _observation_is_rewritten(env, index)):
        return rule
    return None


def known_termination(env: VecEnv) -> TerminationRule | None:
    """
    The exact termination function of a Gymnasium task: MuJoCo v4 and v5, and classic control (``Pendulum-v1``,
    ``CartPole-v1``, ``Acrobot-v1``, ``MountainCar-v0``, ``MountainCarContinuous-v0``), under any registered id.

    Health ranges, thresholds, goals, ``terminate_when_unhealthy`` and ``exclude_current_positions_from_observation`` are
    read from the environment itself. A wrapper that ends episodes by its own rule is not detected here, but in a fit, which
    compares the function with real transitions.

    :param env: the environment, with any ``VecEnv`` wrapper that does not change the layout of raw observations
    :return: the termination function; ``None`` if the task is not known or is a subclass of a known one, if a wrapper changes
        its observation, or if the sub-environments have different rules
    """
    terminations = {_known_termination_of(env, index) for index in range(env.num_envs)}
    return terminations.pop() if len(terminations) == 1 else None
