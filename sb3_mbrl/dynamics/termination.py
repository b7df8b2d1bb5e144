"""When does an imagined step end the task? The answers of Gymnasium's own tasks, read from the environment."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium.envs.registration import registry
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_mbrl.common.config import Kind, check_config
from sb3_mbrl.common.types import TerminationFn

# ---------------------------------------------------------------------------------------------------------------------
# Known tasks
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """
    An interval that every one of a run of observation entries must lie in.

    :param start: first observation index
    :param stop: one past the last observation index; ``None`` for all the rest
    :param low: lower end, in the unit of the observation; ``-inf`` for none
    :param high: upper end, in the unit of the observation; ``inf`` for none
    :param inclusive: whether the ends themselves belong to the interval
    """

    start: int
    stop: int | None
    low: float
    high: float
    inclusive: bool = False

    def holds(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :return: whether all entries lie in the interval, (B,) bool
        """
        entries = obs[..., self.start : self.stop]
        if self.inclusive:
            return ((entries >= self.low) & (entries <= self.high)).all(dim=-1)
        return ((entries > self.low) & (entries < self.high)).all(dim=-1)


def _not_finite(next_obs: th.Tensor) -> th.Tensor:
    """
    :param next_obs: raw observations, (B, O)
    :return: whether any entry is NaN or infinite, (B,) bool: a diverged prediction always ends its branch
    """
    return ~th.isfinite(next_obs).all(dim=-1)


@dataclass(frozen=True)
class NeverTerminates:
    """The task never ends by itself (only a time limit or a diverged prediction stops it)."""

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: ``True`` only where ``next_obs`` is not finite, (B,) bool
        """
        return _not_finite(next_obs)


@dataclass(frozen=True)
class TerminatesOutside:
    """
    The task ends as soon as one bound is violated: the health ranges of the MuJoCo tasks.

    Comparisons are made in the precision of ``next_obs``. The simulator compares float64 states, so a float32
    observation within one rounding step (relative 6e-8) of a bound may be judged differently.

    :param bounds: what a healthy next observation satisfies
    """

    bounds: tuple[Bound, ...]

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool
        """
        terminated = _not_finite(next_obs)
        for bound in self.bounds:
            terminated = terminated | ~bound.holds(next_obs)
        return terminated


@dataclass(frozen=True)
class TerminatesInside:
    """
    The task ends when all bounds hold at once: a goal region.

    :param bounds: what an observation at the goal satisfies
    """

    bounds: tuple[Bound, ...]

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool
        """
        at_goal = th.ones_like(next_obs[..., 0], dtype=th.bool)
        for bound in self.bounds:
            at_goal = at_goal & bound.holds(next_obs)
        return at_goal | _not_finite(next_obs)


@dataclass(frozen=True)
class TerminatesBelowTip:
    """
    InvertedDoublePendulum: the task ends when the tip of the second pole is at or below a height.

    The observation starts with ``x, sin(a), sin(b), cos(a), cos(b)``, where ``b`` is relative to the first pole.
    MuJoCo leaves the tip position of the last integrator stage, not that of the final joint angles, so the height
    computed here differs from the one the simulator tests by up to 6e-5 m (measured over 5000 random steps).

    :param link_length: length of each pole in m (gymnasium's ``inverted_double_pendulum.xml``)
    :param height: the task ends at or below this height in m (``y <= 1`` in gymnasium's ``step``)
    """

    link_length: float = 0.6
    height: float = 1.0

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool
        """
        sin_a, sin_b, cos_a, cos_b = (next_obs[..., index] for index in range(1, 5))
        tip = self.link_length * (cos_a + cos_a * cos_b - sin_a * sin_b)
        return (tip <= self.height) | _not_finite(next_obs)


@dataclass(frozen=True)
class TerminatesAboveBar:
    """
    Acrobot: the task ends when the free end is higher than a bar above the fixed one.

    The observation starts with ``cos(a), sin(a), cos(b), sin(b)``, where ``b`` is relative to the first link and ``a = 0``
    hangs down. Both links count as 1, whatever ``LINK_LENGTH_1`` and ``LINK_LENGTH_2`` say, as in the environment.

    :param height: the task ends above this height (``> 1.0`` in gymnasium's ``_terminal``)
    """

    height: float = 1.0

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool
        """
        cos_a, sin_a, cos_b, sin_b = (next_obs[..., index] for index in range(4))
        end = -cos_a - (cos_a * cos_b - sin_a * sin_b)
        return (end > self.height) | _not_finite(next_obs)


BuiltinTermination = NeverTerminates | TerminatesOutside | TerminatesInside | TerminatesBelowTip | TerminatesAboveBar

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


# ---------------------------------------------------------------------------------------------------------------------
# Storing
# ---------------------------------------------------------------------------------------------------------------------

_KINDS: dict[str, type[BuiltinTermination]] = {
    "never": NeverTerminates,
    "outside": TerminatesOutside,
    "inside": TerminatesInside,
    "below_tip": TerminatesBelowTip,
    "above_bar": TerminatesAboveBar,
}
_BOUND: Kind = {"start": int, "stop": (int, None), "low": (float, None), "high": (float, None), "inclusive": bool}
_ARGUMENTS: dict[str, Kind] = {
    "never": {},
    "outside": {"bounds": [_BOUND]},
    "inside": {"bounds": [_BOUND]},
    "below_tip": {"link_length": float, "height": float},
    "above_bar": {"height": float},
}


def termination_to_json(fn: TerminationFn) -> dict[str, Any] | None:
    """
    :param fn: a termination function
    :return: a description in strict JSON types (an open end is ``None``), or ``None`` for a function that is not
        built in
    """
    for kind, cls in _KINDS.items():
        if type(fn) is cls:
            data = asdict(fn)
            for bound in data.get("bounds", ()):
                bound.update({end: None for end in ("low", "high") if math.isinf(bound[end])})
            return {"kind": kind, **data, **({"bounds": list(data["bounds"])} if "bounds" in data else {})}
    return None


def termination_from_json(data: dict[str, Any]) -> BuiltinTermination:
    """
    :param data: what :func:`termination_to_json` returned
    :return: an equal termination function
    :raises ValueError: the kind is not known to this version, or has other arguments
    """
    kwargs = dict(data)
    kind = kwargs.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"Unknown termination kind {kind!r}, expected one of {sorted(_KINDS)}. Pass `termination_fn` again.")
    check_config(kwargs, _ARGUMENTS[kind], f"The description of the termination {kind!r}", "it")
    if "bounds" in kwargs:
        kwargs["bounds"] = tuple(_bound_from_json(bound) for bound in kwargs["bounds"])
    return _KINDS[kind](**kwargs)


def _bound_from_json(data: dict[str, Any]) -> Bound:
    """
    :param data: the fields of a bound, open ends as ``None``
    :return: the bound
    """
    if not 0 <= data["start"] < (math.inf if data["stop"] is None else data["stop"]):
        raise ValueError(f"A bound has 0 <= start < stop or no stop; got start={data['start']}, stop={data['stop']}.")
    low = -math.inf if data["low"] is None else data["low"]
    high = math.inf if data["high"] is None else data["high"]
    return Bound(data["start"], data["stop"], low, high, data["inclusive"])


# ---------------------------------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------------------------------


def termination_scores(predicted: th.Tensor, actual: th.Tensor) -> dict[str, float]:
    """
    :param predicted: predicted terminations, (N,) bool
    :param actual: true terminations, (N,) bool
    :return: ``precision`` (share of the predicted ones that happened; NaN when none was predicted) and ``recall``
        (share of the ones that happened that were predicted; NaN when none happened)
    """
    hits = int((predicted & actual).sum())
    n_predicted, n_actual = int(predicted.sum()), int(actual.sum())
    return {
        "precision": hits / n_predicted if n_predicted else math.nan,
        "recall": hits / n_actual if n_actual else math.nan,
    }
