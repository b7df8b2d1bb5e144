"""Actions as models and planners see them: in [-1, 1], or one-hot for discrete actions."""

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

BOUND_ACTIONS = (
    "Say how large they may be: gymnasium.wrappers.TransformAction(env, lambda action: action, "
    "gymnasium.spaces.Box(low, high, dtype=...))."
)
"""Advice where a space has no bounds; RescaleAction would refuse it."""


def action_dim(action_space: spaces.Space) -> int:
    """
    :param action_space: Box or Discrete
    :return: dimensions of an action, or the number of discrete actions
    """
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    return int(np.prod(action_space.shape or ()))


def action_bounds(action_space: spaces.Space) -> tuple[th.Tensor, th.Tensor]:
    """
    :param action_space: Box or Discrete
    :return: lowest and highest action in the environment's scale, (A,) float32 each; one-hot actions have no other scale
    """
    if isinstance(action_space, spaces.Discrete):
        ones = th.ones(action_dim(action_space))
        return -ones, ones
    assert isinstance(action_space, spaces.Box)
    low, high = (th.tensor(bound, dtype=th.float32).flatten() for bound in (action_space.low, action_space.high))
    return low, high


def one_hot(actions: np.ndarray, action_space: spaces.Discrete) -> th.Tensor:
    """
    :param actions: of the environment, (B,) integers
    :param action_space: theirs
    :return: (B, A) float32
    """
    return F.one_hot(th.as_tensor(actions).long().flatten() - int(action_space.start), int(action_space.n)).float()


def from_environment(actions: np.ndarray, action_space: spaces.Space) -> np.ndarray:
    """
    :param actions: as the environment's ``step`` takes them, (B, \\*action_space.shape)
    :param action_space: Discrete, or a Box with finite bounds
    :return: one-hot, or in [-1, 1], (B, ...)
    """
    if isinstance(action_space, spaces.Discrete):
        return one_hot(actions, action_space).numpy()
    assert isinstance(action_space, spaces.Box)
    return 2.0 * (actions - action_space.low) / (action_space.high - action_space.low) - 1.0


def to_environment(actions: th.Tensor, action_space: spaces.Space) -> np.ndarray:
    """
    :param actions: (B, A) in [-1, 1] or one-hot
    :param action_space: of the environment
    :return: what the environment's ``step`` takes, (B, \\*action_space.shape)
    """
    if isinstance(action_space, spaces.Discrete):
        return (actions.argmax(dim=1).cpu().numpy() + action_space.start).astype(action_space.dtype)
    assert isinstance(action_space, spaces.Box)
    low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    scaled = low + 0.5 * (actions.cpu().numpy().reshape(-1, *action_space.shape) + 1.0) * (high - low)
    if np.issubdtype(action_space.dtype, np.integer):
        scaled = np.rint(scaled)
    # Rounding may have left the box
    return np.clip(scaled, low, high).astype(action_space.dtype)
