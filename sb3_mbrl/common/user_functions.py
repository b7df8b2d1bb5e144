"""The user's functions: each is tried on random transitions when it is passed, and its result is checked at every call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.common.actions import action_bounds, action_dim


class Signature(NamedTuple):
    """
    How a user's function is called, and what it returns.

    :param text: the signature, for messages
    :param takes_transitions: whether it is called with (obs, action, next_obs), or with obs alone
    :param returned: the type of its result, for messages
    :param accepts: returns whether a tensor has this type
    """

    text: str
    takes_transitions: bool
    returned: str
    accepts: Callable[[th.Tensor], bool]


_TRANSITIONS = "f(obs (B, O), action (B, A), next_obs (B, O))"

SIGNATURES = {
    "reward_fn": Signature(f"{_TRANSITIONS} -> rewards (B,)", True, "float tensor", th.Tensor.is_floating_point),
    "termination_fn": Signature(f"{_TRANSITIONS} -> (B,) bool", True, "bool tensor", lambda values: values.dtype == th.bool),
    "terminal_value": Signature("f(obs (B, O)) -> values (B,)", False, "float tensor", th.Tensor.is_floating_point),
    "actor": Signature("f(obs (B, O)) -> actions (B, A)", False, "tensor", lambda values: not values.is_complex()),
}
"""Signatures by the name of the argument that a function is passed as. All functions take and return torch tensors."""

SPREADS = (1.0, 10.0, 100.0, 1_000.0)
"""Largest distances from 0 of random observations, on which a function is tried one after the other until it is finite."""


def probe(observation_space: spaces.Space, action_space: spaces.Space, device: th.device, **functions: Any) -> None:
    """
    Try functions on two random transitions, so that errors show when they are passed rather than after the first fit.
    PyTorch's random streams are not changed.

    A function need not be finite on every random transition, since an observation within the bounds of the space may be
    impossible in the task (for example a negative height, whose logarithm is taken). It is refused only if it is finite on
    none of a few hundred. On real transitions it must be finite everywhere, which each fit checks.

    :param observation_space: observation space of the environment; if it is not a flat Box, nothing is tried
    :param action_space: action space of the environment
    :param device: device of the tensors that the functions get
    :param functions: the user's functions, by their names in ``SIGNATURES``; None is skipped
    :raises ValueError: one is not a function, raises an error, or returns something else than its signature says
    """
    for name, function in functions.items():
        if function is None:
            continue
        if not callable(function) or isinstance(function, type):  # a class was passed instead of an object
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
                f"{name} raises an error for random observations within {observation_space}, which a model may imagine: "
                f"{type(error).__name__}: {error}. It is called as {SIGNATURES[name].text} with torch tensors."
            ) from error
        _check_returned(name, values, obs, width)
        return bool(values.isfinite().any())

    if not is_somewhere_finite(2, 10.0) and not any(is_somewhere_finite(64, spread) for spread in SPREADS):
        raise ValueError(
            f"{name} returns NaN or infinity for each of a few hundred random observations within {observation_space}. "
            "Restrict its input to where it is defined, for instance with clamp."
        )


def call(name: str, function: Callable[..., Any], *rows: th.Tensor, width: int | None = None) -> th.Tensor:
    """
    :param name: a key of ``SIGNATURES``
    :param function: a user's function
    :param rows: its arguments, B rows each
    :param width: A, if it returns actions (B, A), which may have any precision or be one-hot integers; None if it returns (B,)
    :return: the result of the function
    :raises ValueError: the returned value has another type, shape, dtype or device; the message says which
    """
    values = function(*rows)
    _check_returned(name, values, rows[0], width)
    return values  # type: ignore[no-any-return]


def _check_returned(name: str, values: Any, obs: th.Tensor, width: int | None) -> None:
    shape = (len(obs),) if width is None else (len(obs), width)
    expected = f"{name} must return a {SIGNATURES[name].returned} of shape {shape} on {obs.device}, a row for each row of obs"
    if not isinstance(values, th.Tensor):
        raise ValueError(f"{expected}; got {type(values).__module__}.{type(values).__qualname__}.")
    if not SIGNATURES[name].accepts(values) or values.shape != shape or values.device != obs.device:
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
