"""Functions of the user: each is tried on two random transitions when it is passed, and checked at every call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.common.actions import action_bounds, action_dim


class Signature(NamedTuple):
    """
    How a function of the user is called, and what it returns.

    :param text: the signature, for messages
    :param takes_transitions: whether it is called with (obs, action, next_obs), or with obs alone
    :param kind: what it returns, for messages
    :param is_of_kind: tells whether a tensor has the right type
    """

    text: str
    takes_transitions: bool
    kind: str
    is_of_kind: Callable[[th.Tensor], bool]


_TRANSITIONS = "f(obs (B, O), action (B, A), next_obs (B, O))"

SIGNATURES = {
    "reward_fn": Signature(f"{_TRANSITIONS} -> rewards (B,)", True, "float tensor", th.Tensor.is_floating_point),
    "termination_fn": Signature(f"{_TRANSITIONS} -> (B,) bool", True, "bool tensor", lambda values: values.dtype == th.bool),
    "terminal_value": Signature("f(obs (B, O)) -> values (B,)", False, "float tensor", th.Tensor.is_floating_point),
    "actor": Signature("f(obs (B, O)) -> actions (B, A)", False, "tensor", lambda values: not values.is_complex()),
}
"""Signatures by the name of the argument that a function is passed as. All functions take and return torch tensors."""

SPREADS = (1.0, 10.0, 100.0, 1_000.0)
"""How far from 0 the random observations may lie on which a function is tried until it returns a finite value."""


def probe(observation_space: spaces.Space, action_space: spaces.Space, device: th.device, **functions: Any) -> None:
    """
    Try functions on two random transitions, so that an error shows where they are passed, and not only after the first fit.
    PyTorch's random streams stay as they are.

    A function need not be finite on every random transition, since an observation within the bounds of the space may be
    impossible in the task (a negative height, for example, whose logarithm is taken). It is refused only if it is finite on
    none of some hundred. On real transitions it must be finite everywhere; each fit checks that.

    :param observation_space: of the environment; if it is not a flat Box, nothing is tried
    :param action_space: of the environment
    :param device: where the functions are called
    :param functions: what the user passed, by its name in ``SIGNATURES``; None is skipped
    :raises ValueError: one is not a function, fails, or returns something other than its signature says
    """
    for name, function in functions.items():
        if function is None:
            continue
        if not callable(function) or isinstance(function, type):  # a class is passed where an object is meant
            raise ValueError(f"{name} must be a function {SIGNATURES[name].text} of torch tensors, got {function!r}.")
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            continue
        with th.random.fork_rng(devices=[]), th.no_grad():
            _try(name, function, observation_space, action_space, device)


def _try(name: str, function: Any, observation_space: spaces.Box, action_space: spaces.Space, device: th.device) -> None:
    generator = th.Generator().manual_seed(0)
    width = action_dim(action_space) if name == "actor" else None

    def is_somewhere_finite(n: int, spread: float) -> bool:
        obs, next_obs = _random_observations(observation_space, 2 * n, spread, generator).to(device).split(n)
        action = _random_actions(action_space, n, generator).to(device)
        try:
            values = function(obs, action, next_obs) if SIGNATURES[name].takes_transitions else function(obs)
        except Exception as error:
            raise ValueError(
                f"{name} fails on random observations within {observation_space}, such as a model may imagine: "
                f"{type(error).__name__}: {error}. It is called as {SIGNATURES[name].text} with torch tensors."
            ) from error
        _check_returned(name, values, obs, width)
        return bool(values.isfinite().any())

    if not is_somewhere_finite(2, 10.0) and not any(is_somewhere_finite(64, spread) for spread in SPREADS):
        raise ValueError(f"{name} returns NaN or infinity for each of some hundred observations of {observation_space}.")


def call(name: str, function: Callable[..., Any], *rows: th.Tensor, width: int | None = None) -> th.Tensor:
    """
    :param name: a key of ``SIGNATURES``
    :param function: a function of the user
    :param rows: its arguments, B rows each
    :param width: A, if it returns actions (B, A), which may have any precision or be one-hot integers; None if it returns (B,)
    :return: what the function returns
    :raises ValueError: the returned value has another type, shape, dtype or device; the message says which
    """
    values = function(*rows)
    _check_returned(name, values, rows[0], width)
    return values  # type: ignore[no-any-return]


def _check_returned(name: str, values: Any, obs: th.Tensor, width: int | None) -> None:
    shape = (len(obs),) if width is None else (len(obs), width)
    expected = f"{name} must return a {SIGNATURES[name].kind} of shape {shape} on {obs.device}, one row for each row of obs"
    if not isinstance(values, th.Tensor):
        raise ValueError(f"{expected}; got {type(values).__module__}.{type(values).__qualname__}.")
    if not SIGNATURES[name].is_of_kind(values) or values.shape != shape or values.device != obs.device:
        raise ValueError(f"{expected}; got {values.dtype} of shape {tuple(values.shape)} on {values.device}.")


def _random_observations(space: spaces.Box, n: int, spread: float, generator: th.Generator) -> th.Tensor:
    """Uniform within the space, at most ``spread`` from its point closest to 0; every other row is positive if possible."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    nearest = np.clip(0.0, low, high)
    low, high = np.maximum(low, nearest - spread), np.minimum(high, nearest + spread)
    rows = th.as_tensor(low) + th.rand(n, len(low), generator=generator, dtype=th.float64) * th.as_tensor(high - low)
    rows[1::2] = rows[1::2].abs().clamp(th.as_tensor(low), th.as_tensor(high))
    return rows.float()


def _random_actions(space: spaces.Space, n: int, generator: th.Generator) -> th.Tensor:
    """Random actions in the environment's scale, or one-hot."""
    if isinstance(space, spaces.Discrete):
        return F.one_hot(th.randint(int(space.n), (n,), generator=generator), int(space.n)).float()
    low, high = action_bounds(space)
    return low + th.rand(n, len(low), generator=generator) * (high - low)
