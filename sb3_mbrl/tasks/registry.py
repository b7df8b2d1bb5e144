"""Gymnasium's own tasks: their classes, and when each of them terminates."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sb3_mbrl.tasks.termination_rules import (
    Bound,
    NeverTerminates,
    TerminatesAboveBar,
    TerminatesBelowTip,
    TerminatesInside,
    TerminatesOutside,
    TerminationRule,
)

Read = Callable[[str], Any]
"""Reads an attribute of an unwrapped environment, which may live in another process."""


def _always(read: Read) -> bool:
    return True


class Task(NamedTuple):
    """
    When a task terminates. :func:`~sb3_mbrl.tasks.termination.known_termination` applies the rule to observations of models,
    and the simulators apply it to their states.

    :param end: makes the termination rule from the environment's attributes; it applies to observations whose velocities are
        not clipped
    :param can_end: whether the environment is configured to terminate by this rule
    :param shows_end: whether the environment's observation is enough to apply the rule
    """

    end: Callable[[Read], TerminationRule]
    can_end: Callable[[Read], bool] = _always
    shows_end: Callable[[Read], bool] = _always


def entry_point(cls: object) -> str:
    """
    :param cls: a class
    :return: where it is defined, written as Gymnasium writes it: ``"module:Class"``
    """
    return f"{getattr(cls, '__module__', '')}:{getattr(cls, '__qualname__', '')}"


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


def _never(read: Read) -> TerminationRule:
    """Tasks that never terminate by themselves."""
    return NeverTerminates()


def _hopper(read: Read) -> TerminationRule:
    """
    ``hopper_v4.py``/``hopper_v5.py: is_healthy``. The observation clips velocities to ±10, while the environment tests the
    unclipped ones: a velocity beyond the default ``healthy_state_range`` of ±100 cannot be seen in an observation.
    """
    z = 0 if read("_exclude_current_positions_from_observation") else 1
    bounds = (
        _bound(z, z + 1, read("_healthy_z_range")),
        _bound(z + 1, z + 2, read("_healthy_angle_range")),
        _bound(z + 1, None, read("_healthy_state_range")),
    )
    return TerminatesOutside(bounds)


def _walker2d(read: Read) -> TerminationRule:
    """``walker2d_v4.py``/``walker2d_v5.py: is_healthy``."""
    z = 0 if read("_exclude_current_positions_from_observation") else 1
    return TerminatesOutside((_bound(z, z + 1, read("_healthy_z_range")), _bound(z + 1, z + 2, read("_healthy_angle_range"))))


def _ant(read: Read) -> TerminationRule:
    """``ant_v4.py``/``ant_v5.py: is_healthy``: the one walker whose ends are inclusive."""
    z = 0 if read("_exclude_current_positions_from_observation") else 2
    return TerminatesOutside((_bound(z, z + 1, read("_healthy_z_range"), inclusive=True),))


def _humanoid(read: Read) -> TerminationRule:
    """``humanoid_v4.py``/``humanoid_v5.py: is_healthy``."""
    z = 0 if read("_exclude_current_positions_from_observation") else 2
    return TerminatesOutside((_bound(z, z + 1, read("_healthy_z_range")),))


def _terminates_when_unhealthy(read: Read) -> bool:
    """The constructor flag of the walkers."""
    return bool(read("_terminate_when_unhealthy"))


def _inverted_pendulum(read: Read) -> TerminationRule:
    """``inverted_pendulum_v4.py``/``inverted_pendulum_v5.py: step``: ends when ``abs(angle) > 0.2`` rad."""
    return TerminatesOutside((Bound(1, 2, -0.2, 0.2, inclusive=True),))


def _inverted_double_pendulum(read: Read) -> TerminationRule:
    """``inverted_double_pendulum_v4.py``/``inverted_double_pendulum_v5.py: step``."""
    return TerminatesBelowTip()


def _has_stock_poles(read: Read) -> bool:
    """
    Whether InvertedDoublePendulum has its default XML file; in others its poles may have lengths that no observation shows.
    """
    from gymnasium.envs.mujoco import mujoco_env  # imports MuJoCo, which the other tasks here do not need

    stock_file = os.path.join(os.path.dirname(mujoco_env.__file__), "assets", "inverted_double_pendulum.xml")
    return bool(read("fullpath") == stock_file)


def _cart_pole(read: Read) -> TerminationRule:
    """``cartpole.py: step``: at the thresholds themselves the episode continues."""
    position, angle = read("x_threshold"), read("theta_threshold_radians")
    return TerminatesOutside(
        (_bound(0, 1, (-position, position), inclusive=True), _bound(2, 3, (-angle, angle), inclusive=True))
    )


def _acrobot(read: Read) -> TerminationRule:
    """``acrobot.py: _terminal``."""
    return TerminatesAboveBar()


def _mountain_car(read: Read) -> TerminationRule:
    """``mountain_car.py``/``continuous_mountain_car.py: step``: at the goal position with at least the goal velocity."""
    return TerminatesInside(
        (
            _bound(0, 1, (read("goal_position"), math.inf), inclusive=True),
            _bound(1, 2, (read("goal_velocity"), math.inf), inclusive=True),
        )
    )


_MUJOCO = {
    "hopper_v{}:HopperEnv": Task(_hopper, can_end=_terminates_when_unhealthy),
    "walker2d_v{}:Walker2dEnv": Task(_walker2d, can_end=_terminates_when_unhealthy),
    "ant_v{}:AntEnv": Task(_ant, can_end=_terminates_when_unhealthy),
    "humanoid_v{}:HumanoidEnv": Task(_humanoid, can_end=_terminates_when_unhealthy),
    "inverted_pendulum_v{}:InvertedPendulumEnv": Task(_inverted_pendulum),
    "inverted_double_pendulum_v{}:InvertedDoublePendulumEnv": Task(_inverted_double_pendulum, shows_end=_has_stock_poles),
    "half_cheetah_v{}:HalfCheetahEnv": Task(_never),
    "swimmer_v{}:SwimmerEnv": Task(_never),
    "reacher_v{}:ReacherEnv": Task(_never),
    "pusher_v{}:PusherEnv": Task(_never),
    "humanoidstandup_v{}:HumanoidStandupEnv": Task(_never),
}

_CLASSIC_CONTROL = {
    "pendulum:PendulumEnv": Task(_never),
    "cartpole:CartPoleEnv": Task(_cart_pole),
    "acrobot:AcrobotEnv": Task(_acrobot),
    "mountain_car:MountainCarEnv": Task(_mountain_car),
    "continuous_mountain_car:Continuous_MountainCarEnv": Task(_mountain_car),
}

TASKS: dict[str, Task] = {
    **{f"gymnasium.envs.mujoco.{name.format(version)}": task for name, task in _MUJOCO.items() for version in (4, 5)},
    **{f"gymnasium.envs.classic_control.{name}": task for name, task in _CLASSIC_CONTROL.items()},
}
"""
By class, written as an entry point, so that any id and constructor flags of the class are recognised. A subclass is not,
because it may override rewards and termination.
"""


def end_of(env: Any) -> TerminationRule:
    """
    :param env: an unwrapped environment of one of the tasks
    :return: its termination rule, even if the environment is configured not to terminate by it
    """
    return TASKS[entry_point(type(env))].end(lambda name: getattr(env, name))
