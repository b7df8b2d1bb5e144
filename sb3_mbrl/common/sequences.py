"""Replay buffers of Stable-Baselines3 that sample sequences of consecutive transitions of one episode."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.arguments import BOOLEAN, OFF_POLICY, SHARE, check_arguments, integer

_RARE = 0.25
"""If a smaller share of the stored transitions begins a sequence, starts are enumerated instead of drawn by rejection."""

_ACCEPTED = {
    "buffer_size": OFF_POLICY["buffer_size"],
    "n_envs": integer(1, 10**6),
    "optimize_memory_usage": BOOLEAN,
    "handle_timeout_termination": BOOLEAN,
    "horizon": integer(1, 10**4),
    "priority_exponent": SHARE,
    "importance_exponent": SHARE,
}


class SequenceSamples(NamedTuple):
    """
    A batch of B sequences of H consecutive transitions. Time comes first, so that a loop over it is a loop over rows. Where an
    episode ends earlier, its last transition is repeated.

    :param observations: (H + 1, B, \\*obs), for a Dict space one per key; each but the first is the successor of a transition,
        the terminal observation if the episode ended there. Types are as stored, except that float64 becomes float32
    :param actions: (H, B, A) as stored, float32 in [-1, 1] from SB3's off-policy algorithms
    :param rewards: (H, B, 1)
    :param terminated: 1 where the task ended; a time limit does not count, (H, B, 1)
    :param valid: 0 where a transition is repeated, otherwise 1, (H, B)
    :param indices: where the sequences start, for :meth:`SequenceReplayBuffer.update_priorities`, (B,) int64
    :param weights: importance weights, at most 1; all 1 if sampling is uniform, (B,)
    """

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    valid: th.Tensor
    indices: np.ndarray
    weights: th.Tensor


class SequenceReplayBuffer(ReplayBuffer):
    """
    Stores transitions as SB3's :class:`ReplayBuffer` does, and samples sequences of consecutive transitions of one
    environment. A sequence never crosses the end of an episode, a time limit, a reset between two calls of ``learn``, or the
    position where a full buffer is being overwritten. Every transition of an episode that ended begins a sequence. Sequences
    that begin close to the end are shorter: if all had H transitions, a task would end after H transitions or not at all, and
    nothing could be learned about an end that is nearer. All sequences are equally likely, or, with ``priority_exponent``,
    those of higher priority are likelier (prioritised experience replay, Schaul et al. 2016).

    :param buffer_size: transitions, of all environments together
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: Not supported
    :param handle_timeout_termination: False counts time limits as ends of the task
    :param horizon: H, transitions in a sequence, if the episode does not end before (TD-MPC: 5, TD-MPC2: 3)
    :param priority_exponent: alpha in [0, 1]: a sequence of priority p is sampled in proportion to p ** alpha. 0: uniform,
        as TD-MPC2; TD-MPC: 0.6
    :param importance_exponent: beta in [0, 1]: how far importance weights correct for the priorities; TD-MPC: 0.4
    :raises ValueError: an argument is out of its range, or the buffer is too small for a sequence
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        horizon: int,
        priority_exponent: float = 0.0,
        importance_exponent: float = 0.0,
    ):
        check_arguments(locals(), _ACCEPTED)
        if optimize_memory_usage:
            raise ValueError(
                f"{type(self).__name__} does not support optimize_memory_usage=True: the last observation of an episode "
                "would be lost. Leave it at False."
            )
        if buffer_size < horizon * n_envs:
            raise ValueError(
                f"buffer_size={buffer_size} transitions of n_envs={n_envs} environments have no room for a sequence of "
                f"horizon={horizon} transitions of each. Pass a buffer_size of at least {horizon * n_envs}, or a smaller "
                "horizon."
            )
        super().__init__(
            buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage, handle_timeout_termination
        )
        self.horizon = horizon
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self._forget_sequences()

    @property
    def n_sequences(self) -> int:
        """Number of sequences that can be sampled now."""
        return int(np.count_nonzero(self.starts))

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self._forget_sequences()

    def _forget_sequences(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        # Whether a sequence starts at each transition
        self.starts = np.zeros(shape, dtype=bool)
        # Number of consecutive transitions up to the newest one, for each environment
        self.unbroken = np.zeros(self.n_envs, dtype=np.int64)
        # p ** alpha, where p is the priority of the sequence that starts at a transition; 0 if none does
        self.scaled_priorities = np.zeros(shape)
        self.max_priority = 1.0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store a transition of each environment; the arguments are those of SB3's buffer."""
        row = self.pos
        # The only old sequences that still contain this row start in it, since earlier writes removed the others. They are
        # removed before the row is overwritten, so that an interrupt leaves no sequence of old and new transitions
        self.starts[row], self.scaled_priorities[row] = False, 0
        super().add(*args, **kwargs)
        self.unbroken = np.where(self._continues(row), self.unbroken + 1, 1)
        ended = self._ended(row)
        for length in range(1, self.horizon + 1):
            # This row completes a sequence that now has H transitions, or all sequences of an episode that ends here
            completed = (self.unbroken >= length) & (ended | (length == self.horizon))
            first = (row - length + 1) % self.buffer_size
            self.starts[first] |= completed
            self.scaled_priorities[first, completed] = self.max_priority**self.priority_exponent

    def _ended(self, row: int) -> np.ndarray:
        """Whether an episode ended with the transitions of a row, (n_envs,) bool."""
        return (self.dones[row] != 0) | (self.timeouts[row] != 0)

    def _continues(self, row: int) -> np.ndarray:
        """Whether the transitions of ``row`` follow those of the row before, (n_envs,) bool."""
        before = row - 1  # before row 0 comes the last row
        follows = ~self._ended(before)
        for obs, next_obs in self._observation_arrays():
            # SB3 resets the environments at every learn() without telling the buffer: only the observation shows it
            follows &= (obs[row] == next_obs[before]).reshape(self.n_envs, -1).all(axis=1)
        return follows

    def _observation_arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(self.observations, dict):
            return [(self.observations[key], self.next_observations[key]) for key in self.observations]
        return [(self.observations, self.next_observations)]

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> SequenceSamples:  # type: ignore[override]
        """
        :param batch_size: B, drawn with replacement from NumPy's global stream, as by SB3's buffers
        :param env: normalises observations and rewards
        :return: B sequences
        :raises ValueError: there is no complete sequence yet
        """
        if not self.starts.any():
            raise ValueError(
                f"There is no sequence to sample yet: the {self.size()} transitions stored per environment contain neither "
                f"horizon={self.horizon} consecutive ones nor the end of an episode. Collect more first (learning_starts)."
            )
        starts = self._draw_uniformly(batch_size) if self.priority_exponent == 0 else self._draw_by_priority(batch_size)
        transitions, valid = self._transitions_from(starts)
        rewards = _pick(self.rewards, transitions)[..., np.newaxis]
        terminated = _pick(self.dones, transitions) * (1 - _pick(self.timeouts, transitions))
        return SequenceSamples(
            observations=self._observation_sequences(transitions, env),
            actions=self._to_torch(_pick(self.actions, transitions)),
            rewards=self._to_torch(self._normalize_reward(rewards, env)),
            terminated=self._to_torch(terminated[..., np.newaxis]),
            valid=self._to_torch(valid.astype(np.float32)),
            indices=starts,
            weights=self._to_torch(self._importance_weights(starts)),
        )

    def _transitions_from(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of transitions, as row * n_envs + environment, and False where the last one is repeated, (H, B) each."""
        transitions, valid = [starts], [np.ones(len(starts), dtype=bool)]
        for _ in range(self.horizon - 1):
            continues = valid[-1] & (_pick(self.dones, transitions[-1]) + _pick(self.timeouts, transitions[-1]) == 0)
            # The next transition of the same environment is n_envs positions further
            transitions.append((transitions[-1] + self.n_envs * continues) % (self.buffer_size * self.n_envs))
            valid.append(continues)
        return np.stack(transitions), np.stack(valid)

    def _draw_uniformly(self, batch_size: int) -> np.ndarray:
        is_start = self.starts[: self.size()].reshape(-1)
        if np.count_nonzero(is_start) < _RARE * len(is_start):
            return np.random.choice(np.flatnonzero(is_start), batch_size)
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < batch_size:
            guesses = np.random.randint(len(is_start), size=2 * batch_size)
            drawn = np.concatenate([drawn, guesses[is_start[guesses]]])
        return drawn[:batch_size]

    def _draw_by_priority(self, batch_size: int) -> np.ndarray:
        cumulative = np.cumsum(self.scaled_priorities[: self.size()])
        return np.searchsorted(cumulative, cumulative[-1] * np.random.random(batch_size), side="right")

    def _importance_weights(self, starts: np.ndarray) -> np.ndarray:
        # (N * P(i)) ** -beta divided by its largest value in the batch: N and the sum of all priorities cancel
        scaled = _pick(self.scaled_priorities, starts)
        return (scaled / scaled.min()) ** -self.importance_exponent

    def _observation_sequences(self, transitions: np.ndarray, env: VecNormalize | None) -> th.Tensor | TensorDict:
        pairs = self._observation_arrays()
        picked = [np.concatenate([_pick(obs, transitions[:1]), _pick(after, transitions)]) for obs, after in pairs]
        is_dict = isinstance(self.observations, dict)
        observations = self._normalize_obs(dict(zip(self.observations, picked, strict=True)) if is_dict else picked[0], env)
        if isinstance(observations, dict):
            return {key: self._to_torch(obs) for key, obs in observations.items()}
        return self._to_torch(observations)

    def _to_torch(self, array: np.ndarray) -> th.Tensor:
        # float32 for the networks; no copy, because the array is a copy already
        return self.to_torch(array.astype(np.float32) if array.dtype == np.float64 else array, copy=False)

    def update_priorities(self, indices: np.ndarray, priorities: th.Tensor | np.ndarray) -> None:
        """
        Set the priorities of sampled sequences, which has no effect if sampling is uniform. A new sequence gets the highest
        priority so far, initially 1.

        :param indices: ``indices`` of the samples, (B,); sequences that have been overwritten since are skipped
        :param priorities: finite and above 0, (B,) or (B, 1)
        :raises ValueError: a priority is 0, negative or not finite
        """
        values = th.as_tensor(priorities).detach().cpu().double().numpy().reshape(indices.shape)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(
                f"priorities must be finite and above 0, got values from {values.min()} to {values.max()}. Clip the errors "
                "from which they are computed and add a small constant (TD-MPC: at most 1e4, plus 1e-6)."
            )
        valid = _pick(self.starts, indices)
        self.scaled_priorities.reshape(-1)[indices[valid]] = values[valid] ** self.priority_exponent
        self.max_priority = max(self.max_priority, float(values.max()))


class DictSequenceReplayBuffer(SequenceReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """
    :class:`SequenceReplayBuffer` for Dict observation spaces, with the same arguments; stores as SB3's
    :class:`DictReplayBuffer` does.
    """


def _pick(array: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """
    :param array: (buffer_size, n_envs, ...)
    :param indices: positions, row * n_envs + environment, of any shape
    :return: the entries at these positions, (\\*indices.shape, ...)
    """
    return array.reshape(-1, *array.shape[2:])[indices]
