"""Termination functions with parameters, which can be saved; they apply to tensors of models and to arrays of simulators."""

import math
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch as th

from sb3_mbrl.common.config import Kind, check_config
from sb3_mbrl.common.types import TerminationFn

Array = TypeVar("Array", th.Tensor, np.ndarray)
"""Rules take the tensors of a model and the arrays of a simulator."""


@dataclass(frozen=True)
class Bound:
    """
    An interval that a range of observation entries must lie in.

    :param start: first observation index
    :param stop: one past the last observation index; ``None``: up to the end
    :param low: lower end, in the unit of the observation; ``-inf``: unbounded
    :param high: upper end, in the unit of the observation; ``inf``: unbounded
    :param inclusive: whether the ends themselves belong to the interval
    """

    start: int
    stop: int | None
    low: float
    high: float
    inclusive: bool = False

    def holds(self, obs: Array) -> Array:
        """
        :param obs: raw observations, (B, O)
        :return: whether all entries lie in the interval, (B,) bool
        """
        entries = obs[..., self.start : self.stop]
        if self.inclusive:
            inside = (entries >= self.low) & (entries <= self.high)
        else:
            inside = (entries > self.low) & (entries < self.high)
        return inside.all(-1)  # type: ignore[return-value]


def _nowhere(obs: Array) -> Array:
    """False for each observation, (B,) bool."""
    return obs[..., 0] > math.inf


@dataclass(frozen=True)
class TerminationRule:
    """
    When a task ends, as a function of the observation. Comparisons are made in the precision of the observation: for a float32
    observation within one rounding step (relative 6e-8) of a limit, the result may differ from that for the float64 state.
    """

    def ended(self, obs: Array) -> Array:
        """
        :param obs: raw observations, (B, O)
        :return: whether the task ends there, (B,) bool
        """
        raise NotImplementedError

    def __call__(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool. A prediction that is not finite has diverged and always ends its branch
        """
        return self.ended(next_obs) | ~th.isfinite(next_obs).all(dim=-1)


@dataclass(frozen=True)
class NeverTerminates(TerminationRule):
    """The task never ends by itself; only a time limit or a diverged prediction stops it."""

    def ended(self, obs: Array) -> Array:
        return _nowhere(obs)


@dataclass(frozen=True)
class TerminatesOutside(TerminationRule):
    """
    The task ends as soon as one bound is violated: the health ranges of the MuJoCo tasks.

    :param bounds: bounds that a healthy next observation satisfies
    """

    bounds: tuple[Bound, ...]

    def ended(self, obs: Array) -> Array:
        ended = _nowhere(obs)
        for bound in self.bounds:
            ended = ended | ~bound.holds(obs)
        return ended


@dataclass(frozen=True)
class TerminatesInside(TerminationRule):
    """
    The task ends when all bounds hold at once: a goal region.

    :param bounds: bounds that an observation at the goal satisfies
    """

    bounds: tuple[Bound, ...]

    def ended(self, obs: Array) -> Array:
        at_goal = ~_nowhere(obs)
        for bound in self.bounds:
            at_goal = at_goal & bound.holds(obs)
        return at_goal


@dataclass(frozen=True)
class TerminatesBelowTip(TerminationRule):
    """
    InvertedDoublePendulum: the task ends when the tip of the second pole is at or below a height.

    The observation starts with ``x, sin(a), sin(b), cos(a), cos(b)``, where ``b`` is relative to the first pole.
    The environment tests the tip position of MuJoCo's last integrator stage, not that of the final joint angles, so the height
    computed here differs from the tested one by up to 6e-5 m (measured over 5000 random steps).

    :param link_length: length of each pole in m (gymnasium's ``inverted_double_pendulum.xml``)
    :param height: the task ends at or below this height in m (``y <= 1`` in gymnasium's ``step``)
    """

    link_length: float = 0.6
    height: float = 1.0

    def ended(self, obs: Array) -> Array:
        sin_a, sin_b, cos_a, cos_b = (obs[..., index] for index in range(1, 5))
        return self.ended_at(self.link_length * (cos_a + cos_a * cos_b - sin_a * sin_b))

    def ended_at(self, tip: Array) -> Array:
        """
        :param tip: height of the tip in m, (B,)
        :return: whether the task ends there, (B,) bool
        """
        return tip <= self.height


@dataclass(frozen=True)
class TerminatesAboveBar(TerminationRule):
    """
    Acrobot: the task ends when the free end is higher than a bar above the fixed one.

    The observation starts with ``cos(a), sin(a), cos(b), sin(b)``, where ``b`` is relative to the first link and ``a = 0``
    hangs down. As in the environment, both links have length 1 here, whatever ``LINK_LENGTH_1`` and ``LINK_LENGTH_2`` are.

    :param height: the task ends above this height (``> 1.0`` in gymnasium's ``_terminal``)
    """

    height: float = 1.0

    def ended(self, obs: Array) -> Array:
        cos_a, sin_a, cos_b, sin_b = (obs[..., index] for index in range(4))
        return self.ended_at(-cos_a - (cos_a * cos_b - sin_a * sin_b))

    def ended_at(self, free_end: Array) -> Array:
        """
        :param free_end: height of the free end, (B,)
        :return: whether the task ends there, (B,) bool
        """
        return free_end > self.height


_KINDS: dict[str, type[TerminationRule]] = {
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
    :return: a description in strict JSON types (an infinite bound is ``None``); ``None`` for a function that is not built in
    """
    for kind, cls in _KINDS.items():
        if type(fn) is cls:
            data = asdict(fn)
            for bound in data.get("bounds", ()):
                bound.update({end: None for end in ("low", "high") if math.isinf(bound[end])})
            return {"kind": kind, **data, **({"bounds": list(data["bounds"])} if "bounds" in data else {})}
    return None


def termination_from_json(data: dict[str, Any]) -> TerminationRule:
    """
    :param data: a description by :func:`termination_to_json`
    :return: an equal termination function
    :raises ValueError: this version does not know the kind, or its arguments are wrong
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
    :param data: the fields of a bound; ``None`` for an infinite one
    :return: the bound
    """
    if not 0 <= data["start"] < (math.inf if data["stop"] is None else data["stop"]):
        raise ValueError(f"A bound has 0 <= start < stop, or stop=None; got start={data['start']}, stop={data['stop']}.")
    low = -math.inf if data["low"] is None else data["low"]
    high = math.inf if data["high"] is None else data["high"]
    return Bound(data["start"], data["stop"], low, high, data["inclusive"])
