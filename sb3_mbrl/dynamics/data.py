"""Checks of the data that a model is fitted to."""

from dataclasses import fields

import torch as th

from sb3_mbrl.common.types import LARGEST, Transitions


class CheckedTransitions(Transitions):
    """Transitions that :func:`checked` has found to be well-formed and finite, so that they need not be checked again."""


def checked(transitions: Transitions, observation_dim: int, action_dim: int) -> CheckedTransitions:
    """
    :param transitions: the transitions to fit a model to; ``CheckedTransitions`` are returned unchanged
    :param observation_dim: O
    :param action_dim: A
    :return: the same transitions
    :raises ValueError: there are no transitions; a tensor does not have the shape or type that
        :class:`~sb3_mbrl.common.types.Transitions` documents; a value is NaN, infinite, or too large to compute with in
        float32
    """
    if isinstance(transitions, CheckedTransitions):
        return transitions
    _check_form(transitions, observation_dim, action_dim)
    _check_values(transitions)
    return CheckedTransitions(*(getattr(transitions, field.name) for field in fields(Transitions)))


def _check_form(transitions: Transitions, observation_dim: int, action_dim: int) -> None:
    n = len(transitions)
    shapes: dict[str, tuple[int, ...]] = {
        "observations": (n, observation_dim),
        "actions": (n, action_dim),
        "next_observations": (n, observation_dim),
        "rewards": (n,),
        "terminated": (n,),
    }
    for name, shape in shapes.items():
        given, dtype = getattr(transitions, name), th.bool if name == "terminated" else th.float32
        if isinstance(given, th.Tensor) and (tuple(given.shape), given.dtype) == (shape, dtype):
            continue
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, th.Tensor) else type(given).__name__
        raise ValueError(
            f"The {name} to fit the dynamics model to must be a tensor of {dtype} of shape {shape}, got {got}. "
            "sb3_mbrl.envs.read_dataset makes transitions from arrays; .float() and .bool() convert a tensor."
        )


def _check_values(transitions: Transitions) -> None:
    if len(transitions) == 0:
        raise ValueError("There are no transitions to fit the dynamics model to. Collect some first.")
    for name in ("observations", "actions", "next_observations", "rewards"):
        bad = ~(getattr(transitions, name).abs() <= LARGEST)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"The {name} to fit the dynamics model to contain NaN, infinity or numbers beyond {LARGEST:.0e} "
                f"(first in row {row}). Fix the environment, or drop these transitions."
            )
