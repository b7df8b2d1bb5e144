"""Functions of the user: tried on two made-up rows where they are given, and checked whenever they are called."""

from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.common.actions import action_bounds, action_dim

SIGNATURES = {
    "reward_fn": "f(obs (B, O), action (B, A), next_obs (B, O)) -> rewards (B,)",
    "termination_fn": "f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,) bool",
    "terminal_value": "f(obs (B, O)) -> values (B,)",
    "actor": "f(obs (B, O)) -> actions (B, A)",
}
"""Each function by the name of the argument that it is passed as. All of them take and return torch tensors."""

SPREADS = (1.0, 10.0, 100.0, 1_000.0)
"""How far made-up observations lie from 0 at most, where a function is asked for a single finite value."""


def probe(observation_space: spaces.Space, action_space: spaces.Space, device: th.device, **functions: Any) -> None:
    """
    Try functions on two made-up rows, so that what is wrong with them shows where they are given, and not when the first fit
    is done. PyTorch's random streams stay as they are.

    Finite values are asked for with restraint, as observations that satisfy the bounds of the space need not be possible ones
    (the logarithm of a height): only a function that has no finite value at any of some hundred of them is refused. On real
    transitions it must be finite everywhere; that is checked at each fit.

    :param observation_space: of the environment; in spaces other than a flat Box nothing can be made up, and nothing is tried
    :param action_space: of the environment
    :param device: where the functions are called
    :param functions: what the user passed, by its name in ``SIGNATURES``; None: nothing
    :raises ValueError: one is no function, fails, or returns something else than its signature says
    """
    for name, function in functions.items():
        if function is None:
            continue
        if not callable(function):
            raise ValueError(f"{name} must be a function {SIGNATURES[name]} of torch tensors, got {function!r}.")
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            continue
        with th.random.fork_rng(devices=[]), th.no_grad():
            _try(name, function, observation_space, action_space, device)


def _try(name: str, function: Any, observation_space: spaces.Box, action_space: spaces.Space, device: th.device) -> None:
    generator = th.Generator().manual_seed(0)
    width = action_dim(action_space) if name == "actor" else None

    def is_somewhere_finite(n: int, spread: float) -> bool:
        obs, next_obs = _made_up_observations(observation_space, 2 * n, spread, generator).to(device).split(n)
        action = _made_up_actions(action_space, n, generator).to(device)
        try:
            values = function(obs, action, next_obs) if "action (" in SIGNATURES[name] else function(obs)
        except Exception as error:
            raise ValueError(
                f"{name} fails on observations made up within {observation_space}, as a model may imagine them: "
                f"{type(error).__name__}: {error}. It is called as {SIGNATURES[name]} with torch tensors."
            ) from error
        check_returned(name, values, obs, width)
        return bool(values.isfinite().any())

    if not is_somewhere_finite(2, 10.0) and not any(is_somewhere_finite(64, spread) for spread in SPREADS):
        raise ValueError(f"{name} returns NaN or infinity for each of some hundred observations of {observation_space}.")


def check_returned(name: str, values: Any, obs: th.Tensor, width: int | None = None) -> None:
    """
    :param name: a key of ``SIGNATURES``
    :param values: what the function returned
    :param obs: what it was called with, (B, O)
    :param width: A, if the values are actions (B, A), which may come in any precision and as one-hot integers; None: (B,)
    :raises ValueError: another type, shape, dtype or device, saying which
    """
    shape = (len(obs),) if width is None else (len(obs), width)
    kind = "bool " if name == "termination_fn" else "" if name == "actor" else "float "
    expected = f"{name} must return a {kind}tensor of shape {shape} on {obs.device}, one row for each row of obs"
    if not isinstance(values, th.Tensor):
        raise ValueError(f"{expected}; got {type(values).__module__}.{type(values).__qualname__}.")
    fits = {"bool ": values.dtype == th.bool, "float ": values.is_floating_point(), "": not values.is_complex()}[kind]
    if not fits or values.shape != shape or values.device != obs.device:
        raise ValueError(f"{expected}; got {values.dtype} of shape {tuple(values.shape)} on {values.device}.")


def _made_up_observations(space: spaces.Box, n: int, spread: float, generator: th.Generator) -> th.Tensor:
    """Uniform within the space and ``spread`` of its point that is closest to 0; positive in every other row."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    nearest = np.clip(0.0, low, high)
    low, high = np.maximum(low, nearest - spread), np.minimum(high, nearest + spread)
    rows = th.as_tensor(low) + th.rand(n, len(low), generator=generator, dtype=th.float64) * th.as_tensor(high - low)
    rows[1::2] = rows[1::2].abs().clamp(th.as_tensor(low), th.as_tensor(high))
    return rows.float()


def _made_up_actions(space: spaces.Space, n: int, generator: th.Generator) -> th.Tensor:
    """In the environment's scale, or one-hot."""
    if isinstance(space, spaces.Discrete):
        return F.one_hot(th.randint(int(space.n), (n,), generator=generator), int(space.n)).float()
    low, high = action_bounds(space)
    return low + th.rand(n, len(low), generator=generator) * (high - low)
