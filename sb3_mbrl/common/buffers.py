"""The imagined transitions, and a view that mixes them with the real ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.actions import one_hot
from sb3_mbrl.common.types import Transitions


class ModelReplayBuffer:
    """
    Ring buffer of imagined transitions on the device. A transition is one row of one tensor, so that a batch is a
    single gather. The memory is taken at the first transition.

    :param capacity: rows
    :param observation_dim: O
    :param action_dim: A
    :param device: where the rows live
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, device: th.device | str):
        self.capacity = capacity
        self.widths = [observation_dim, action_dim, observation_dim, 1, 1]
        self.device = th.device(device)
        self.rows = th.empty(0, sum(self.widths), device=self.device)
        self.pos = 0
        self.full = False

    def __len__(self) -> int:
        return self.capacity if self.full else self.pos

    def add(self, transitions: Transitions) -> None:
        """
        :param transitions: N rows; of more than ``capacity``, the last ones stay
        """
        rows = th.cat(
            [
                transitions.observations,
                transitions.actions,
                transitions.next_observations,
                transitions.rewards.unsqueeze(1),
                transitions.terminated.unsqueeze(1).float(),
            ],
            dim=1,
        )[-self.capacity :]
        if len(self.rows) != self.capacity:
            self.rows = th.empty(self.capacity, sum(self.widths), device=self.device)
        until_end = min(len(rows), self.capacity - self.pos)
        self.rows[self.pos : self.pos + until_end] = rows[:until_end]
        self.rows[: len(rows) - until_end] = rows[until_end:]
        self.full = self.full or self.pos + len(rows) >= self.capacity
        self.pos = (self.pos + len(rows)) % self.capacity

    def sample(self, batch_size: int, generator: th.Generator | None = None) -> Transitions:
        """
        :param batch_size: B, drawn with replacement
        :param generator: None draws from PyTorch's global stream
        :return: B transitions
        """
        chosen = th.randint(len(self), (batch_size,), generator=generator, device=self.device)
        return self._unpack(self.rows[chosen])

    def contents(self) -> Transitions:
        """All transitions, oldest first."""
        return self._unpack(self._ordered())

    def resize(self, capacity: int) -> None:
        """
        Change the capacity; the newest transitions stay.

        :param capacity: rows
        """
        if capacity == self.capacity:
            return
        kept = self._ordered()[-capacity:]
        rows = th.empty(capacity if len(kept) > 0 else 0, sum(self.widths), device=self.device)
        rows[: len(kept)] = kept
        # Only replaced when complete, so that an interrupt leaves no rows that were never written
        self.rows, self.capacity, self.pos, self.full = rows, capacity, len(kept) % capacity, len(kept) == capacity

    def _ordered(self) -> th.Tensor:
        if not self.full:
            return self.rows[: self.pos]
        return th.cat([self.rows[self.pos :], self.rows[: self.pos]])

    def _unpack(self, rows: th.Tensor) -> Transitions:
        obs, action, next_obs, reward, terminated = rows.split(self.widths, dim=1)
        return Transitions(obs, action, next_obs, reward.squeeze(1), terminated.squeeze(1) > 0.5)


class MixedReplayBuffer:
    """
    A view over the real buffer and the model buffer with the one method that SB3's ``train`` uses. It owns no data:
    the real buffer stays SB3's (n-step returns, user classes and ``save_replay_buffer`` keep working).

    :param real: SB3's replay buffer
    :param model: imagined transitions
    :param real_ratio: share of real rows in a batch, rounded down (the official code: 12 of 256 at 0.05)
    :param gamma: discount of an imagined row, for real buffers that give a discount per row
    :param generator: source of the imagined rows; the real rows come from SB3's own stream
    :param n_batches: batches that are drawn at once, if the real rows are in a buffer of SB3's own. A user's ``sample`` is
        called once per batch, as it may mix sources, weigh rows or draw without replacement, all of it within one batch
    """

    def __init__(
        self,
        real: ReplayBuffer,
        model: ModelReplayBuffer,
        real_ratio: float,
        gamma: float,
        generator: th.Generator | None = None,
        n_batches: int = 1,
    ):
        self.real = real
        self.model = model
        self.real_ratio = real_ratio
        self.gamma = gamma
        self.generator = generator
        self.n_batches = n_batches
        self._drawn_real: list[ReplayBufferSamples] = []
        self._drawn_imagined: list[ReplayBufferSamples] = []

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: B, the same in every call
        :param env: normalises observations and rewards of both kinds alike
        :return: ``int(B * real_ratio)`` real rows, then imagined ones; all real while nothing has been imagined. Fields that a
            user's buffer adds (weights, indices) describe the real rows alone
        :raises ValueError: a user's buffer returns something other than transitions, or the wrong number of them
        """
        n_real = int(batch_size * self.real_ratio) if len(self.model) > 0 else batch_size
        if n_real == batch_size:
            return self._sample_real(batch_size, env)
        if not self._drawn_imagined:
            drawn = self._imagined(self.n_batches * (batch_size - n_real), env)
            self._drawn_imagined = _split(drawn, self.n_batches)
        imagined = self._drawn_imagined.pop()
        return imagined if n_real == 0 else self._joined(self._real(n_real, env), imagined)

    def _real(self, n: int, env: VecNormalize | None) -> ReplayBufferSamples:
        if not samples_as_sb3(self.real):
            return self._sample_real(n, env)
        if not self._drawn_real:  # one gather for all batches: one for each would cost several times as much
            self._drawn_real = _split(self._sample_real(self.n_batches * n, env), self.n_batches)
        return self._drawn_real.pop()

    def _sample_real(self, n: int, env: VecNormalize | None) -> ReplayBufferSamples:
        samples = self.real.sample(n, env=env)
        if not samples_as_sb3(self.real):
            _check_samples(samples, n, self.real)
        return samples

    def _joined(self, real: ReplayBufferSamples, imagined: ReplayBufferSamples) -> ReplayBufferSamples:
        if real.discounts is not None:
            imagined = imagined._replace(discounts=th.full_like(imagined.rewards, self.gamma))
        # float64 observations (most of MuJoCo) come out of SB3's buffer as float32, as do ours
        columns = {name: column for name, column in imagined._asdict().items() if column is not None}
        return real._replace(**{name: th.cat([getattr(real, name).float(), column]) for name, column in columns.items()})

    def _imagined(self, batch_size: int, env: VecNormalize | None) -> ReplayBufferSamples:
        rows = self.model.sample(batch_size, self.generator)
        return ReplayBufferSamples(
            observations=normalize_obs(rows.observations, env),
            actions=rows.actions,
            next_observations=normalize_obs(rows.next_observations, env),
            dones=rows.terminated.float().unsqueeze(1),
            rewards=normalize_reward(rows.rewards, env).unsqueeze(1),
        )


def samples_as_sb3(buffer: ReplayBuffer) -> bool:
    """
    :param buffer: a replay buffer of SB3 or of the user
    :return: whether SB3's own methods draw its rows, each independently, so that many batches can be drawn as one
    """
    draw, gather = (getattr(method, "__func__", None) for method in (buffer.sample, buffer._get_samples))
    return draw is ReplayBuffer.sample and gather in (ReplayBuffer._get_samples, NStepReplayBuffer._get_samples)


def _check_samples(samples: Any, n: int, buffer: ReplayBuffer) -> None:
    """:raises ValueError: the samples are not a named tuple of n transitions"""
    asked = f"{type(buffer).__name__}.sample({n})"
    fields = ReplayBufferSamples._fields
    missing = [name for name in (*fields, "_replace") if not hasattr(samples, name)]
    if missing:
        raise ValueError(
            f"{asked} must return SB3's ReplayBufferSamples, or a NamedTuple with its fields {list(fields)} and any others; "
            f"got {type(samples).__name__} without {missing}."
        )
    shapes = {name: tuple(getattr(samples, name).shape) for name in fields if name != "discounts"}
    if any(shape[:1] != (n,) for shape in shapes.values()):
        raise ValueError(f"{asked} must return {n} rows, to which imagined ones are added; got {shapes}.")


def _split(samples: ReplayBufferSamples, n: int) -> list[ReplayBufferSamples]:
    """Into n batches of equal size."""
    fields: list[Any] = [[None] * n if field is None else field.chunk(n) for field in samples]
    return [ReplayBufferSamples(*batch) for batch in zip(*fields, strict=True)]


def normalize_obs(obs: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """
    ``env.normalize_obs`` on the device.

    :param obs: raw observations, (B, O)
    :param env: its current statistics are used; None leaves the observations as they are
    :return: (B, O) float32
    """
    if env is None or not env.norm_obs:
        return obs
    assert isinstance(env.obs_rms, RunningMeanStd)  # a flat Box: one for all dimensions
    mean = th.as_tensor(env.obs_rms.mean, dtype=th.float32, device=obs.device)
    std = th.as_tensor(np.sqrt(env.obs_rms.var + env.epsilon), dtype=th.float32, device=obs.device)
    return ((obs - mean) / std).clamp(-env.clip_obs, env.clip_obs)


def normalize_reward(reward: th.Tensor, env: VecNormalize | None) -> th.Tensor:
    """
    ``env.normalize_reward`` on the device.

    :param reward: raw rewards, (B,)
    :param env: its current statistics are used; None leaves the rewards as they are
    :return: (B,)
    """
    if env is None or not env.norm_reward:
        return reward
    std = float(np.sqrt(env.ret_rms.var + env.epsilon))
    return (reward / std).clamp(-env.clip_reward, env.clip_reward)


def real_transitions(buffer: ReplayBuffer, device: th.device | str) -> Transitions:
    """
    Everything in SB3's buffer, oldest first, straight from its arrays: ``sample()`` would give n-step sums.

    :param buffer: SB3's replay buffer, flat Box observations, any number of environments
    :param device: where the tensors go
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


def end_trajectories(buffer: ReplayBuffer | None) -> None:
    """
    Mark the episodes under way as truncated, because what is stored next does not continue them. Otherwise n-step returns and
    imagination from first states would join the two.

    :param buffer: SB3's replay buffer, or a user's, which is left alone if it does not record truncations; None: there is none
    """
    if buffer is not None and buffer.size() > 0 and hasattr(buffer, "timeouts"):
        last = buffer.pos - 1
        running = buffer.dones[last] == 0
        buffer.timeouts[last, running], buffer.dones[last] = 1, 1


@contextmanager
def whole_rows(buffer: ReplayBuffer) -> Iterator[None]:
    """
    A context for ``add`` that puts the oldest transition back if ``add`` is cut short. Otherwise an exception or Ctrl-C would
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
    Let a buffer hold actions in [-1, 1] as float32, since SB3's buffers would cut them to the type of the space.

    :param buffer: it is changed only if it is empty, and of a Box of integers or of half precision
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


def initial_rows(buffer: ReplayBuffer) -> np.ndarray:
    """
    :param buffer: SB3's replay buffer
    :return: rows of :func:`real_transitions` at which an episode begins
    """
    done = _oldest_first(buffer, buffer.dones) > 0.5
    begins = np.zeros_like(done)
    # The oldest row begins an episode, unless older ones have been overwritten: then nobody knows
    begins[:1] = not buffer.full
    begins[1:] = done[:-1]
    return np.flatnonzero(begins.reshape(-1))


def _oldest_first(buffer: ReplayBuffer, array: np.ndarray) -> np.ndarray:
    """The filled part of one of the buffer's arrays, (n, n_envs, ...)."""
    if not buffer.full:
        return array[: buffer.pos]
    return np.concatenate([array[buffer.pos :], array[: buffer.pos]])
