"""Real transitions from replay buffers: in trajectories, or all rows at once."""

import math
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_mbrl.common.actions import one_hot
from sb3_mbrl.common.replay_buffers import check_stored_actions
from sb3_mbrl.common.types import Transitions


def trajectories_from_buffer(
    buffer: ReplayBuffer, device: th.device | str = "cpu", n_rows: int | None = None
) -> list[Transitions]:
    """
    Cut a buffer into unbroken pieces of trajectories, in which each transition begins where the one before it ended. No piece
    crosses a termination, a time limit, the position where a full buffer overwrites itself, or a reset that ``dones`` does not
    show (``learn`` called a second time in the middle of an episode).

    :param buffer: SB3's replay buffer, flat Box observations, any number of environments
    :param device: device of the tensors
    :param n_rows: number of the latest transitions to take, over all environments (rounded up); None takes all
    :return: pieces of one transition or more, oldest first in each environment; raw observations and rewards, discrete
        actions one-hot
    :raises ValueError: the buffer does not store next observations, or has cut actions to whole numbers
    """
    if buffer.optimize_memory_usage:
        raise ValueError("optimize_memory_usage=True loses the last observation of each episode. Leave it False.")
    check_stored_actions(buffer)
    n = buffer.size()
    steps = np.arange(n)
    if buffer.full:
        steps = (steps + buffer.pos) % n  # oldest first
    if n_rows is not None:
        steps = steps[max(0, n - math.ceil(n_rows / buffer.n_envs)) :]

    pieces = []
    for env in range(buffer.n_envs):
        obs, next_obs = buffer.observations[steps, env], buffer.next_observations[steps, env]
        ended = (buffer.dones[steps, env] > 0.5) | (buffer.timeouts[steps, env] > 0.5)
        # Within an episode SB3 stores the next observation of a step again as the observation of the next step, bit for bit
        ended[:-1] |= (next_obs[:-1] != obs[1:]).any(axis=1)
        terminated = buffer.dones[steps, env] * (1 - buffer.timeouts[steps, env])
        actions = buffer.actions[steps, env]  # those of a Box are stored in [-1, 1]
        if isinstance(buffer.action_space, spaces.Discrete):
            actions = one_hot(actions, buffer.action_space).numpy()
        columns = (obs, actions, next_obs, buffer.rewards[steps, env], terminated)
        pieces += split_after(ended, columns, device)
    return pieces


def split_after(ended: np.ndarray, columns: Sequence[np.ndarray], device: th.device | str) -> list[Transitions]:
    """
    :param ended: rows after which a new piece begins, (N,) bool
    :param columns: the columns of ``Transitions``, (N, ...) each
    :param device: device of the tensors
    :return: the pieces
    """
    n = len(ended)
    if n == 0:
        return []
    obs, action, next_obs, reward, terminated = (
        th.as_tensor(column.reshape(n, -1), dtype=th.float32, device=device) for column in columns
    )
    rows = Transitions(obs, action, next_obs, reward.squeeze(1), terminated.squeeze(1) > 0.5)
    ends = [*(np.flatnonzero(ended[:-1]) + 1), n]
    return [rows[slice(start, end)] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def concatenate(trajectories: Sequence[Transitions]) -> Transitions:
    """
    :param trajectories: pieces with N transitions in total
    :return: these N transitions, one piece after the other
    :raises ValueError: there are no trajectories
    """
    if len(trajectories) == 0:
        raise ValueError("The list of trajectories holds no transitions. Collect some first.")
    names = ("observations", "actions", "next_observations", "rewards", "terminated")
    return Transitions(*(th.cat([getattr(piece, name) for piece in trajectories]) for name in names))


def real_transitions(buffer: ReplayBuffer, device: th.device | str) -> Transitions:
    """
    All transitions in SB3's buffer, oldest first. They are read from its arrays, because ``sample()`` may return n-step sums.

    :param buffer: SB3's replay buffer, flat Box observations, any number of environments
    :param device: device of the tensors
    :return: one row per stored transition, raw observations and rewards, discrete actions one-hot; time limits do not count
        as terminations
    """

    def flat(array: np.ndarray) -> th.Tensor:
        rows = _oldest_first(buffer, array)
        return th.tensor(rows.reshape(-1, int(np.prod(array.shape[2:]))), dtype=th.float32, device=device)

    check_stored_actions(buffer)
    actions = flat(buffer.actions)
    if isinstance(buffer.action_space, spaces.Discrete):
        actions = one_hot(actions.cpu().numpy(), buffer.action_space).to(device)
    terminated = _oldest_first(buffer, buffer.dones) * (1 - _oldest_first(buffer, buffer.timeouts))
    return Transitions(
        flat(buffer.observations),
        actions,
        flat(buffer.next_observations),
        flat(buffer.rewards).squeeze(1),
        th.tensor(terminated.reshape(-1) > 0.5, device=device),
    )


def initial_rows(buffer: ReplayBuffer) -> np.ndarray:
    """
    :param buffer: SB3's replay buffer
    :return: rows of :func:`real_transitions` at which an episode begins
    """
    done = _oldest_first(buffer, buffer.dones) > 0.5
    begins = np.zeros_like(done)
    # The oldest row begins an episode unless older ones have been overwritten, in which case it is unknown
    begins[:1] = not buffer.full
    begins[1:] = done[:-1]
    return np.flatnonzero(begins.reshape(-1))


def _oldest_first(buffer: ReplayBuffer, array: np.ndarray) -> np.ndarray:
    """The filled part of one of the buffer's arrays, (n, n_envs, ...)."""
    if not buffer.full:
        return array[: buffer.pos]
    return np.concatenate([array[buffer.pos :], array[: buffer.pos]])
