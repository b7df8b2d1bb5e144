"""What algorithms that learn a model need from replay buffers, in addition to what SB3's buffers do."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer


def end_trajectories(buffer: ReplayBuffer | None) -> None:
    """
    Mark unfinished episodes as truncated, because the transitions that are stored next do not continue them. Otherwise n-step
    returns and imagination from first states would join the two.

    :param buffer: SB3's replay buffer or a user's, which is left alone if it does not record truncations; None: no buffer
    """
    if buffer is not None and buffer.size() > 0 and hasattr(buffer, "timeouts"):
        last = buffer.pos - 1
        running = buffer.dones[last] == 0
        buffer.timeouts[last, running], buffer.dones[last] = 1, 1


@contextmanager
def whole_rows(buffer: ReplayBuffer) -> Iterator[None]:
    """
    A context for ``add`` that restores the oldest transition if ``add`` is interrupted. Otherwise an exception or Ctrl-C would
    leave a full buffer with a row that is half the oldest transition and half the newest.

    :param buffer: SB3's replay buffer, or a user's with further arrays
    """
    row, arrays = buffer.pos, _arrays(buffer) if buffer.full else []
    before = [np.copy(array[row]) for array in arrays]
    try:
        yield
    except BaseException:
        if buffer.pos == row:
            for array, values in zip(arrays, before, strict=True):
                array[row] = values
        raise


def _arrays(buffer: ReplayBuffer) -> list[np.ndarray]:
    """The arrays of a buffer that have a row for each step; Dict observations have one array for each key."""
    held = [part for each in vars(buffer).values() for part in (each.values() if isinstance(each, dict) else [each])]
    return [each for each in held if isinstance(each, np.ndarray) and each.shape[:1] == (buffer.buffer_size,)]


def keep_scaled_actions(buffer: ReplayBuffer) -> None:
    """
    Let a buffer hold actions in [-1, 1] as float32, since SB3's buffers would convert them to the dtype of the space.

    :param buffer: a buffer, which is changed only if it is empty and its actions are a Box of integers or of half precision
    """
    if isinstance(buffer.action_space, spaces.Box) and buffer.actions.dtype != np.float32 and buffer.size() == 0:
        buffer.actions = buffer.actions.astype(np.float32)


def check_stored_actions(buffer: ReplayBuffer) -> None:
    """
    :param buffer: SB3's replay buffer
    :raises ValueError: it has cut actions in [-1, 1] to whole numbers
    """
    if isinstance(buffer.action_space, spaces.Box) and np.issubdtype(buffer.actions.dtype, np.integer):
        raise ValueError(
            f"The replay buffer keeps actions as {buffer.actions.dtype}, the type of {buffer.action_space}. Off-policy "
            "algorithms of Stable-Baselines3 scale them to [-1, 1], and as integers they are cut to -1, 0 and 1: a model "
            "would learn from actions that were not executed. Collect again: with an algorithm of sb3_mbrl, with "
            "sb3_mbrl.envs.collect, or in an environment with a Box of floats."
        )
