"""When does an imagined step end the task? The answers of Gymnasium's own tasks, read from the environment."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import registry
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_mbrl.tasks.termination_rules import (
    Bound,
    BuiltinTermination,
    NeverTerminates,
    TerminatesAboveBar,
    TerminatesBelowTip,
    TerminatesInside,
    TerminatesOutside,
)

_Read = Callable[[str], Any]
"""Reads an attribute of one sub-environment, whatever wraps it."""


def _healthy_unless_outside(read: _Read, bounds: Sequence[Bound]) -> BuiltinTermination:
    """
    :param read: reads an attribute of the environment
    :param bounds: its health ranges
    :return: the termination of a MuJoCo walker, which a constructor flag switches off
    """
    return TerminatesOutside(tuple(bounds)) if read("_terminate_when_unhealthy") else NeverTerminates()


def _bound(start: int, stop: int | None, limits: Sequence[float], inclusive: bool = False) -> Bound:
    """
    :param start: first observation index
    :param stop: one past the last observation index; ``None`` for all the rest
    :param limits: lower and upper end
    :param inclusive: whether the ends themselves belong to the interval
    :return: the bound, with plain Python floats so that it compares and serialises alike whatever the user passed
    """
    low, high = limits
    return Bound(start, stop, float(low), float(high), inclusive)


def _hopper(read: _Read) -> BuiltinTermination:
    """
    ``hopper_v4.py``/``hopper_v5.py: is_healthy``. Velocities are clipped to ±10 in the observation but not in the
    test, so of ``healthy_state_range`` the part beyond ±10 (all of the default ±100, for velocities) is not visible.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    z = 0 if read("_exclude_current_positions_from_observation") else 1
    bounds = (
        _bound(z, z + 1, read("_healthy_z_range")),
        _bound(z + 1, z + 2, read("_healthy_angle_range")),
        _bound(z + 1, None, read("_healthy_state_range")),
    )
    return _healthy_unless_outside(read, bounds)


def _walker2d(read: _Read) -> BuiltinTermination:
    """
    ``walker2d_v4.py``/``walker2d_v5.py: is_healthy``.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    z = 0 if read("_exclude_current_positions_from_observation") else 1
    bounds = (_bound(z, z + 1, read("_healthy_z_range")), _bound(z + 1, z + 2, read("_healthy_angle_range")))
    return _healthy_unless_outside(read, bounds)


def _ant(read: _Read) -> BuiltinTermination:
    """
    ``ant_v4.py``/``ant_v5.py: is_healthy``: the one walker whose ends are inclusive.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    z = 0 if read("_exclude_current_positions_from_observation") else 2
    return _healthy_unless_outside(read, (_bound(z, z + 1, read("_healthy_z_range"), inclusive=True),))


def _humanoid(read: _Read) -> BuiltinTermination:
    """
    ``humanoid_v4.py``/``humanoid_v5.py: is_healthy``.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    z = 0 if read("_exclude_current_positions_from_observation") else 2
    return _healthy_unless_outside(read, (_bound(z, z + 1, read("_healthy_z_range")),))


def _inverted_pendulum(read: _Read) -> BuiltinTermination:
    """
    ``inverted_pendulum_v4.py``/``inverted_pendulum_v5.py: step``: ends when ``abs(angle) > 0.2`` rad.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    return TerminatesOutside((Bound(1, 2, -0.2, 0.2, inclusive=True),))


def _inverted_double_pendulum(read: _Read) -> BuiltinTermination | None:
    """
    ``inverted_double_pendulum_v4.py``/``inverted_double_pendulum_v5.py: step``.

    :param read: reads an attribute of the environment
    :return: its termination; ``None`` for a custom ``xml_file``, whose poles may have other lengths
    """
    from gymnasium.envs.mujoco import mujoco_env  # needs MuJoCo, which is optional

    stock_file = os.path.join(os.path.dirname(mujoco_env.__file__), "assets", "inverted_double_pendulum.xml")
    return TerminatesBelowTip() if read("fullpath") == stock_file else None


def _cart_pole(read: _Read) -> BuiltinTermination:
    """
    ``cartpole.py: step``: the ends themselves belong to what is healthy.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    position, angle = read("x_threshold"), read("theta_threshold_radians")
    return TerminatesOutside(
        (_bound(0, 1, (-position, position), inclusive=True), _bound(2, 3, (-angle, angle), inclusive=True))
    )


def _acrobot(read: _Read) -> BuiltinTermination:
    """
    ``acrobot.py: _terminal``.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    return TerminatesAboveBar()


def _mountain_car(read: _Read) -> BuiltinTermination:
    """
    ``mountain_car.py: step``, ``continuous_mountain_car.py: step``: ends at the goal position with at least the goal velocity.

    :param read: reads an attribute of the environment
    :return: its termination
    """
    return TerminatesInside(
        (
            _bound(0, 1, (read("goal_position"), math.inf), inclusive=True),
            _bound(1, 2, (read("goal_velocity"), math.inf), inclusive=True),
        )
    )


def _never(read: _Read) -> BuiltinTermination:
    """
    :param read: reads an attribute of the environment
    :return: the termination of a task that has none
    """
    return NeverTerminates()


_MUJOCO_TASKS: dict[str, Callable[[_Read], BuiltinTermination | None]] = {
    "hopper_v{}:HopperEnv": _hopper,
    "walker2d_v{}:Walker2dEnv": _walker2d,
    "ant_v{}:AntEnv": _ant,
    "humanoid_v{}:HumanoidEnv": _humanoid,
    "inverted_pendulum_v{}:InvertedPendulumEnv": _inverted_pendulum,
    "inverted_double_pendulum_v{}:InvertedDoublePendulumEnv": _inverted_double_pendulum,
    "half_cheetah_v{}:HalfCheetahEnv": _never,
    "swimmer_v{}:SwimmerEnv": _never,
    "reacher_v{}:ReacherEnv": _never,
    "pusher_v{}:PusherEnv": _never,
    "humanoidstandup_v{}:HumanoidStandupEnv": _never,
}


# Keyed by class, written as an entry point: another id or other constructor flags of the same class work too, while a
# subclass, which may override the termination, is not known.
_TASKS: dict[str, Callable[[_Read], BuiltinTermination | None]] = {
    **{
        f"gymnasium.envs.mujoco.{entry_point.format(version)}": task
        for entry_point, task in _MUJOCO_TASKS.items()
        for version in (4, 5)
    },
    "gymnasium.envs.classic_control.pendulum:PendulumEnv": _never,
    "gymnasium.envs.classic_control.cartpole:CartPoleEnv": _cart_pole,
    "gymnasium.envs.classic_control.acrobot:AcrobotEnv": _acrobot,
    "gymnasium.envs.classic_control.mountain_car:MountainCarEnv": _mountain_car,
    "gymnasium.envs.classic_control.continuous_mountain_car:Continuous_MountainCarEnv": _mountain_car,
}


def _entry_point(cls: object) -> str:
    """
    :param cls: a class
    :return: where it is defined, written as Gymnasium writes it: ``"module:Class"``
    """
    return f"{getattr(cls, '__module__', '')}:{getattr(cls, '__qualname__', '')}"


def _described_entry_point(description: str) -> str | None:
    """
    :param description: ``str(env)``, for instance ``<TimeLimit<OrderEnforcing<HopperEnv<Hopper-v5>>>>``
    :return: entry point of the innermost environment, found by its id; ``None`` when it has no registered id
    """
    *_, class_name, env_id = ["", *description.rstrip(">").split("<")]
    spec = registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return None
    entry_point = spec.entry_point if isinstance(spec.entry_point, str) else _entry_point(spec.entry_point)
    # The id may have been re-registered here and not there
    return entry_point if entry_point.endswith(f":{class_name}") else None


def _task_entry_point(env: VecEnv, index: int) -> str | None:
    """
    Other processes are asked for ``str(env)`` and not for ``env.spec``: a spec holds the arguments of every wrapper,
    and one that cannot be pickled (``TransformReward(env, lambda ...)``) would kill the worker.

    :param env: the vectorised environment
    :param index: which sub-environment
    :return: class of the unwrapped environment as ``"module:Class"``, if it can be told
    """
    if isinstance(env.unwrapped, DummyVecEnv):
        return _entry_point(type(env.unwrapped.envs[index].unwrapped))
    try:
        return _described_entry_point(env.env_method("__str__", indices=[index])[0])
    except (AttributeError, NotImplementedError):
        return None  # not a vector of Gymnasium environments


def _observation_is_rewritten(env: VecEnv, index: int) -> bool:
    """
    :param env: the vectorised environment
    :param index: which sub-environment
    :return: whether a wrapper stands between the task's observation and the one the agent sees. ``VecNormalize``
        does not count: models work on raw observations
    """
    if env.env_is_wrapped(gym.ObservationWrapper, indices=[index])[0]:
        return True
    if isinstance(env.unwrapped, DummyVecEnv):
        return env.observation_space.shape != env.unwrapped.envs[index].unwrapped.observation_space.shape
    # The task's own space is hidden in the other process, but the v5 tasks describe it
    if env.has_attr("observation_structure"):
        structure: dict[str, int] = env.get_attr("observation_structure", indices=[index])[0]
        return env.observation_space.shape != (sum(n for part, n in structure.items() if part != "skipped_qpos"),)
    # Anything that stacks frames, in the process or around the vector
    shape = env.get_attr("observation_space", indices=[index])[0].shape
    return len(shape) != 1 or env.observation_space.shape != shape


def _known_termination_of(env: VecEnv, index: int) -> BuiltinTermination | None:
    """
    :param env: the vectorised environment
    :param index: which sub-environment
    :return: its termination, or ``None`` when the task is not known
    """
    task = _TASKS.get(_task_entry_point(env, index) or "")
    if task is None:
        return None
    termination = task(lambda name: env.get_attr(name, indices=[index])[0])
    # A task that never ends does so however it is observed
    if not isinstance(termination, NeverTerminates) and _observation_is_rewritten(env, index):
        return None
    return termination


def known_termination(env: VecEnv) -> BuiltinTermination | None:
    """
    The exact termination function of a Gymnasium task: MuJoCo v4 and v5, and classic control (``Pendulum-v1``,
    ``CartPole-v1``, ``Acrobot-v1``, ``MountainCar-v0``, ``MountainCarContinuous-v0``), under any registered id.

    Health ranges, thresholds, goals, ``terminate_when_unhealthy`` and ``exclude_current_positions_from_observation`` are
    read from the environment itself. A wrapper that ends episodes by its own rule cannot be seen here: compare with real
    transitions (:func:`check_termination`).

    :param env: the environment, with any ``VecEnv`` wrapper that leaves the raw observation layout alone
    :return: the termination function; ``None`` when the task is not known, is a subclass of a known one, has its
        observation rewritten by a wrapper, or when the sub-environments disagree
    """
    terminations = {_known_termination_of(env, index) for index in range(env.num_envs)}
    return terminations.pop() if len(terminations) == 1 else None
