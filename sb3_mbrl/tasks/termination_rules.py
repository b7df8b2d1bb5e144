"""Termination functions that a file can hold."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch as th

from sb3_mbrl.common.config import Kind, check_config
from sb3_mbrl.common.types import TerminationFn


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


def not_finite(next_obs: th.Tensor) -> th.Tensor:
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
        return not_finite(next_obs)


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
        terminated = not_finite(next_obs)
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
        return at_goal | not_finite(next_obs)


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
        return (tip <= self.height) | not_finite(next_obs)


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
        return (end > self.height) | not_finite(next_obs)


BuiltinTermination = NeverTerminates | TerminatesOutside | TerminatesInside | TerminatesBelowTip | TerminatesAboveBar


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
