"""The buffer of imagined transitions, and a view that mixes them with real ones."""

from typing import Any

import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.normalization import normalize_obs, normalize_reward
from sb3_mbrl.common.types import Transitions


class ModelReplayBuffer:
    """
    Ring buffer of imagined transitions on the device. A transition is one row of one tensor, so that a batch is a single
    gather. The memory is allocated when the first transition is added.

    :param capacity: number of transitions
    :param observation_dim: O
    :param action_dim: A
    :param device: device of the rows
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
        :param transitions: N transitions; if there are more than ``capacity``, the last ones are kept
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
        :param batch_size: B, number of transitions drawn with replacement
        :param generator: source of random numbers; None: PyTorch's global stream
        :return: B transitions
        """
        chosen = th.randint(len(self), (batch_size,), generator=generator, device=self.device)
        return self._unpack(self.rows[chosen])

    def contents(self) -> Transitions:
        """All transitions, oldest first."""
        return self._unpack(self._ordered())

    def resize(self, capacity: int) -> None:
        """
        Change the capacity and keep the newest transitions.

        :param capacity: number of transitions
        """
        if capacity == self.capacity:
            return
        kept = self._ordered()[-capacity:]
        rows = th.empty(capacity if len(kept) > 0 else 0, sum(self.widths), device=self.device)
        rows[: len(kept)] = kept
        # Assigned together at the end, so that an interrupt cannot leave rows that were never written
        self.rows, self.capacity, self.pos, self.full = rows, capacity, len(kept) % capacity, len(kept) == capacity

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the transitions and the position of the next one, for :meth:`load_state_dict`
        """
        written = self.rows[: len(self)].clone()  # a view would be saved together with all rows, unwritten ones included
        return {"rows": written, "capacity": self.capacity, "pos": self.pos, "full": self.full}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: the result of :meth:`state_dict`
        """
        written = state["rows"]
        self.capacity, self.pos, self.full = state["capacity"], state["pos"], state["full"]
        self.rows = written.new_empty(self.capacity if len(written) > 0 else 0, sum(self.widths))
        self.rows[: len(written)] = written

    def _ordered(self) -> th.Tensor:
        if not self.full:
            return self.rows[: self.pos]
        return th.cat([self.rows[self.pos :], self.rows[: self.pos]])

    def _unpack(self, rows: th.Tensor) -> Transitions:
        obs, action, next_obs, reward, terminated = rows.split(self.widths, dim=1)
        return Transitions(obs, action, next_obs, reward.squeeze(1), terminated.squeeze(1) > 0.5)


class MixedReplayBuffer:
    """
    A view over the real buffer and the model buffer, with the one method that SB3's ``train`` uses. It holds no data: the real
    buffer stays SB3's own, so that n-step returns, user classes and ``save_replay_buffer`` keep working.

    :param real: SB3's replay buffer
    :param model: buffer of the imagined transitions
    :param real_ratio: share of real rows in a batch, rounded down (the official code: 12 of 256 at 0.05)
    :param gamma: discount of an imagined row, for real buffers that return a discount for each row
    :param generator: source of random numbers for imagined rows; real rows are drawn from SB3's own stream
    :param n_batches: number of batches that are drawn at once, if the real buffer is one of SB3's classes. A user's ``sample``
        is called once for each batch, since it may mix sources, weigh rows or draw without replacement within one batch
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
        :param env: normalises the observations and rewards of both kinds of rows
        :return: ``int(B * real_ratio)`` real rows, then imagined ones; real rows alone while nothing has been imagined. Fields
            that a user's buffer adds (weights, indices) describe the real rows alone
        :raises ValueError: a user's buffer does not return transitions, or returns the wrong number of them
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
        if not self._drawn_real:  # one gather for all batches, since one for each would cost several times as much
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
        # SB3's buffer returns float64 observations (most of MuJoCo) as float32, like the imagined ones
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
    :return: whether SB3's own methods draw its rows, independently of each other, so that many batches can be drawn as one
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
    """Split samples into n batches of equal size."""
    fields: list[Any] = [[None] * n if field is None else field.chunk(n) for field in samples]
    return [ReplayBufferSamples(*batch) for batch in zip(*fields, strict=True)]
