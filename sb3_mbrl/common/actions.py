"""Conversion of actions between environments and models or planners, for which they are in [-1, 1], or one-hot if discrete."""

from typing import TypeVar

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

BOUND_ACTIONS = (
    "Set bounds with gymnasium.wrappers.TransformAction(env, lambda action: action, "
    "gymnasium.spaces.Box(low, high, dtype=...))."
)
"""Advice for a space without bounds, which gymnasium.wrappers.RescaleAction would not accept."""

Array = TypeVar("Array", np.ndarray, th.Tensor)


def scale(actions: Array, low: Array, high: Array) -> Array:
    """
    :param actions: in the environment's scale, (..., A)
    :param low: lowest action, (A,) or any shape that broadcasts
    :param high: highest action, (A,) or any shape that broadcasts
    :return: in [-1, 1], not clipped, (..., A)
    """
    return 2.0 * (actions - low) / (high - low) - 1.0


def unscale(actions: Array, low: Array, high: Array) -> Array:
    """
    :param actions: in [-1, 1], (..., A)
    :param low: lowest action, (A,) or any shape that broadcasts
    :param high: highest action, (A,) or any shape that broadcasts
    :return: in the environment's scale, neither clipped nor rounded, (..., A)
    """
    return low + 0.5 * (actions + 1.0) * (high - low)


def executed(actions: th.Tensor, action_space: spaces.Space, low: th.Tensor, high: th.Tensor) -> th.Tensor:
    """
    Planned actions as the environment executes them: rounded, if its space holds whole numbers.

    :param actions: in [-1, 1] or one-hot, (..., A)
    :param action_space: action space of the environment
    :param low: lowest action of the space, (A,), on the device of the actions
    :param high: highest action of the space, (A,), on the device of the actions
    :return: in [-1, 1] or one-hot, (..., A); gradients pass as if nothing were rounded
    """
    if not are_whole(action_space):
        return actions
    whole = scale(unscale(actions, low, high).round(), low, high)
    return actions + (whole - actions).detach()


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
    :return: lowest and highest action in the environment's scale, (A,) float32 each; -1 and 1 for one-hot actions, which are
        not scaled
    """
    if isinstance(action_space, spaces.Discrete):
        ones = th.ones(action_dim(action_space))
        return -ones, ones
    assert isinstance(action_space, spaces.Box)
    low, high = (th.tensor(bound, dtype=th.float32).flatten() for bound in (action_space.low, action_space.high))
    return low, high


def one_hot(actions: np.ndarray, action_space: spaces.Discrete) -> th.Tensor:
    """
    :param actions: actions of the environment, (B,) integers
    :param action_space: action space of the environment
    :return: the actions one-hot, (B, A) float32
    :raises ValueError: an action is not in the space
    """
    first, n = int(action_space.start), int(action_space.n)
    counted = th.as_tensor(actions).long().flatten() - first
    if len(counted) > 0 and (counted.min() < 0 or counted.max() >= n):
        raise ValueError(
            f"The actions range from {int(counted.min()) + first} to {int(counted.max()) + first}, but those of "
            f"{action_space} from {first} to {first + n - 1}. Policies of Stable-Baselines3 count from 0, wherever the space "
            "starts: add `start` to their actions."
        )
    return F.one_hot(counted, n).float()


def from_environment(actions: np.ndarray, action_space: spaces.Space) -> np.ndarray:
    """
    :param actions: as the environment's ``step`` takes them, (B, \\*action_space.shape)
    :param action_space: Discrete, or a Box with finite bounds
    :return: one-hot, or in [-1, 1], (B, ...)
    """
    if isinstance(action_space, spaces.Discrete):
        return one_hot(actions, action_space).numpy()
    return scale(actions, *floating_bounds(action_space))


def to_environment(actions: th.Tensor, action_space: spaces.Space) -> np.ndarray:
    """
    :param actions: (B, A) in [-1, 1] or one-hot
    :param action_space: action space of the environment
    :return: actions as the environment's ``step`` takes them, (B, \\*action_space.shape)
    """
    if isinstance(action_space, spaces.Discrete):
        return (actions.argmax(dim=1).cpu().numpy() + action_space.start).astype(action_space.dtype)
    assert isinstance(action_space, spaces.Box)
    low, high = action_space.low.astype(np.float64), action_space.high.astype(np.float64)
    scaled = unscale(actions.cpu().numpy().reshape(-1, *action_space.shape), low, high)
    if are_whole(action_space):
        scaled = np.rint(scaled)
    # Rounding errors may have left the box
    return np.clip(scaled, low, high).astype(action_space.dtype)


def check_bounds(action_space: spaces.Box) -> None:
    """
    :param action_space: action space of the environment
    :raises ValueError: actions cannot be scaled from [-1, 1] to its bounds
    """
    low, high = action_bounds(action_space)
    if not (low.isfinite().all() and high.isfinite().all()):
        raise ValueError(f"Actions are scaled to [-1, 1], which needs finite bounds; got {action_space}. {BOUND_ACTIONS}")
    if not ((high > low) & (high - low).isfinite()).all():
        raise ValueError(
            "Actions are scaled to [-1, 1], which needs low < high in each dimension, and a difference that float32 can hold; "
            f"got {action_space}."
        )


def are_whole(action_space: spaces.Space) -> bool:
    """
    :param action_space: Box or Discrete
    :return: whether it is a Box of whole numbers
    """
    return isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.integer)


def for_sb3(action_space: spaces.Space) -> spaces.Space:
    """
    The space to build an algorithm of SB3 for, which counts discrete actions from 0 and stores others, scaled to [-1, 1], in
    the type of their Box: a type of integers would cut them to whole numbers.

    :param action_space: action space of the environment, Box or Discrete
    :return: Discrete from 0, or a Box of float32 or float64; the same object if it is one already
    """
    if isinstance(action_space, spaces.Discrete):
        return action_space if action_space.start == 0 else spaces.Discrete(action_space.n)
    assert isinstance(action_space, spaces.Box)
    if action_space.dtype in (np.float32, np.float64):
        return action_space
    return spaces.Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32), dtype=np.float32)


def from_sb3(actions: np.ndarray, action_space: spaces.Space) -> np.ndarray:
    """
    :param actions: actions of an algorithm that acts in :func:`for_sb3` of the space, one or a batch
    :param action_space: action space of the environment
    :return: actions as the environment's ``step`` takes them, rounded if the space holds whole numbers
    """
    if isinstance(action_space, spaces.Discrete):
        return actions if action_space.start == 0 else actions + action_space.start
    if for_sb3(action_space) is action_space:
        return actions
    low, high = floating_bounds(action_space)
    return np.clip(np.rint(actions) if are_whole(action_space) else actions, low, high).astype(action_space.dtype)


def floating_bounds(action_space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """
    :param action_space: a Box with finite bounds
    :return: lowest and highest action, in float64 if the type of the space may not hold their difference: in int8,
        100 - (-100) is -56
    """
    assert isinstance(action_space, spaces.Box)
    if action_space.dtype in (np.float32, np.float64):
        return action_space.low, action_space.high
    return action_space.low.astype(np.float64), action_space.high.astype(np.float64)
