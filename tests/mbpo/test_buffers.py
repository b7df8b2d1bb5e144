from collections import deque
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.mbpo.buffers import MixedReplayBuffer, ModelReplayBuffer, samples_as_sb3

OBS_DIM, ACTION_DIM = 3, 2
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
ACTION_SPACE = spaces.Box(-2.0, 2.0, (ACTION_DIM,), np.float32)


def numbered(*numbers):
    """Transitions that can be identified, because every field contains the number."""
    number = th.tensor(numbers, dtype=th.float32)
    return Transitions(
        observations=number.unsqueeze(1) + th.tensor([0.0, 0.1, 0.2]),
        actions=number.unsqueeze(1) + th.tensor([0.3, 0.4]),
        next_observations=number.unsqueeze(1) + th.tensor([0.5, 0.6, 0.7]),
        rewards=number + 0.8,
        terminated=number % 3 == 0,
    )


def numbers_of(transitions):
    """The numbers of :func:`numbered` transitions; fails if fields of different ones were mixed."""
    numbers = (transitions.rewards - 0.8).round().int().tolist()
    expected = numbered(*numbers)
    for name, value in vars(transitions).items():
        th.testing.assert_close(value, getattr(expected, name))
    return numbers


def model_buffer(capacity, *numbers):
    buffer = ModelReplayBuffer(capacity, OBS_DIM, ACTION_DIM, "cpu")
    if numbers:
        buffer.add(numbered(*numbers))
    return buffer


# ---------------------------------------------------------------- ModelReplayBuffer


@given(
    capacity=st.integers(1, 8),
    operations=st.lists(
        st.one_of(st.tuples(st.just("add"), st.integers(0, 20)), st.tuples(st.just("resize"), st.integers(1, 12)))
    ),
)
def test_it_behaves_like_a_bounded_deque(capacity, operations):
    buffer, reference, count = model_buffer(capacity), deque(maxlen=capacity), 0
    for operation, size in operations:
        if operation == "resize":
            buffer.resize(size)
            reference = deque(reference, maxlen=size)
        else:
            buffer.add(numbered(*range(count, count + size)))
            reference.extend(range(count, count + size))
            count += size
        assert len(buffer) == len(reference)
        assert numbers_of(buffer.contents()) == list(reference)


@given(capacity=st.integers(1, 6), added=st.integers(1, 9))
def test_samples_are_valid_rows_and_cover_all_rows(capacity, added):
    buffer = model_buffer(capacity, *range(added))
    sampled = buffer.sample(200, th.Generator().manual_seed(0))
    assert set(numbers_of(sampled)) == set(range(added)[-capacity:])


def test_more_rows_than_the_capacity_keep_the_last_ones():
    buffer = model_buffer(3, 0, 1)
    buffer.add(numbered(2, 3, 4, 5, 6, 7, 8))
    assert numbers_of(buffer.contents()) == [6, 7, 8]


def test_shrinking_keeps_the_newest():
    buffer = model_buffer(5, *range(7))
    buffer.resize(2)
    assert numbers_of(buffer.contents()) == [5, 6]


def test_growing_keeps_all_rows():
    buffer = model_buffer(3, *range(5))
    buffer.resize(4)
    buffer.add(numbered(5))
    assert numbers_of(buffer.contents()) == [2, 3, 4, 5]


def test_no_memory_is_taken_before_the_first_transition():
    buffer = ModelReplayBuffer(10**12, OBS_DIM, ACTION_DIM, "cpu")
    buffer.resize(10**13)
    assert len(buffer) == 0
    assert buffer.rows.numel() == 0
    assert len(buffer.contents()) == 0


def test_equal_generators_sample_the_same_and_the_global_stream_is_not_used():
    buffer = model_buffer(50, *range(50))
    before = th.get_rng_state()
    first, second = (numbers_of(buffer.sample(20, th.Generator().manual_seed(4))) for _ in range(2))
    assert first == second
    assert th.equal(th.get_rng_state(), before)


def test_a_sample_is_a_copy():
    buffer = model_buffer(4, 0, 1, 2, 3)
    sampled = buffer.sample(10, th.Generator().manual_seed(0))
    before = numbers_of(sampled)
    buffer.add(numbered(7, 8, 9, 10))
    assert numbers_of(sampled) == before


# ---------------------------------------------------------------- MixedReplayBuffer

REAL = 1000
"""Rewards of real transitions start here; those of imagined ones are below."""


def real_buffer(n=40, kind=ReplayBuffer, obs_space=OBS_SPACE, n_envs=1, **kwargs):
    buffer = kind(1000, obs_space, ACTION_SPACE, device="cpu", n_envs=n_envs, **kwargs)
    rng = np.random.default_rng(0)
    for step in range(n):
        obs, next_obs = rng.normal(size=(2, n_envs, OBS_DIM))
        done = np.full(n_envs, step % 7 == 6)
        reward = np.full(n_envs, REAL + step)
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (n_envs, ACTION_DIM)), reward, done, [{}] * n_envs)
    return buffer


def mixed(real, model, real_ratio, seed=0):
    return MixedReplayBuffer(real, model, real_ratio, gamma=0.97, generator=th.Generator().manual_seed(seed))


@given(batch_size=st.integers(1, 300), real_ratio=st.floats(0, 1))
def test_a_batch_holds_exactly_its_share_of_real_rows(batch_size, real_ratio):
    batch = mixed(real_buffer(5), model_buffer(10, *range(10)), real_ratio).sample(batch_size)
    is_real = batch.rewards.squeeze(1) >= REAL
    n_real = int(batch_size * real_ratio)
    assert is_real.tolist() == [True] * n_real + [False] * (batch_size - n_real)
    assert batch.observations.shape == batch.next_observations.shape == (batch_size, OBS_DIM)
    assert batch.actions.shape == (batch_size, ACTION_DIM)
    assert batch.rewards.shape == batch.dones.shape == (batch_size, 1)
    assert {tensor.dtype for tensor in batch if tensor is not None} == {th.float32}


def test_the_papers_ratio_gives_12_real_rows_of_256():
    batch = mixed(real_buffer(), model_buffer(10, *range(10)), 0.05).sample(256)
    assert int((batch.rewards >= REAL).sum()) == 12


def test_fields_of_an_imagined_row_stay_together():
    batch = mixed(real_buffer(), model_buffer(10, *range(10)), 0.5).sample(40)
    imagined = Transitions(
        batch.observations[20:],
        batch.actions[20:],
        batch.next_observations[20:],
        batch.rewards[20:, 0],
        batch.dones[20:, 0] > 0.5,
    )
    assert set(numbers_of(imagined)) <= set(range(10))
    assert set(batch.dones.unique().tolist()) == {0.0, 1.0}


def test_real_rows_equal_those_that_sb3_draws_from_the_same_stream():
    real = real_buffer()
    np.random.seed(3)
    expected = real.sample(12)
    np.random.seed(3)
    batch = mixed(real, model_buffer(10, *range(10)), 0.05).sample(256)
    for ours, theirs in zip(batch, expected, strict=True):
        assert theirs is None or th.equal(ours[:12], theirs)


@pytest.mark.parametrize(("imagined", "real_ratio"), [((), 0.05), ((), 0.0), (range(10), 1.0)])
@pytest.mark.parametrize("kind", [ReplayBuffer, NStepReplayBuffer])
def test_without_imagined_rows_the_sample_equals_sb3s_bit_for_bit(imagined, real_ratio, kind):
    real = real_buffer(kind=kind)
    np.random.seed(5)
    expected = real.sample(64)
    np.random.seed(5)
    batch = mixed(real, model_buffer(10, *imagined), real_ratio).sample(64)
    assert type(batch) is type(expected)
    for ours, theirs in zip(batch, expected, strict=True):
        assert (ours is theirs is None) or th.equal(ours, theirs)


def test_the_view_uses_its_own_generator_only_for_imagined_rows():
    view, same = (mixed(real_buffer(), model_buffer(10, *range(10)), 0.0, seed=1) for _ in range(2))
    th_state, np_state = th.get_rng_state(), np.random.get_state()[1].copy()
    assert th.equal(view.sample(30).rewards, same.sample(30).rewards)
    assert th.equal(th.get_rng_state(), th_state)
    assert (np.random.get_state()[1] == np_state).all()


def test_batches_have_discounts_for_all_rows_if_the_real_buffer_has_them():
    real = real_buffer(kind=NStepReplayBuffer, n_steps=3, gamma=0.97)
    batch = mixed(real, model_buffer(10, *range(10)), 0.5).sample(40)
    assert batch.discounts.shape == (40, 1)
    assert batch.discounts[:20].min() == pytest.approx(0.97**3)
    assert batch.discounts[20:].unique().tolist() == pytest.approx([0.97])


@pytest.mark.parametrize(("kind", "real_ratio"), [(ReplayBuffer, 0.5), (NStepReplayBuffer, 0.0)])
def test_batches_have_no_discounts_otherwise(kind, real_ratio):
    assert mixed(real_buffer(kind=kind), model_buffer(10, *range(10)), real_ratio).sample(40).discounts is None


def test_float64_observations_are_sampled_as_float32():
    real = real_buffer(obs_space=spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float64))
    assert real.observations.dtype == np.float64
    batch = mixed(real, model_buffer(10, *range(10)), 0.5).sample(40)
    assert {tensor.dtype for tensor in batch if tensor is not None} == {th.float32}


@pytest.mark.parametrize(("real_ratio", "kind"), [(0.05, ReplayBuffer), (0.0, ReplayBuffer), (0.5, NStepReplayBuffer)])
def test_batches_drawn_at_once_are_like_those_drawn_one_by_one(real_ratio, kind):
    view = mixed(real_buffer(kind=kind), model_buffer(10, *range(10)), real_ratio)
    view.n_batches = 3
    batches = [view.sample(40) for _ in range(7)]
    n_real = int(40 * real_ratio)
    for batch in batches:
        assert (batch.rewards.squeeze(1) >= REAL).tolist() == [True] * n_real + [False] * (40 - n_real)
        assert {tensor.shape[0] for tensor in batch if tensor is not None} == {40}
        assert (batch.discounts is None) == (kind is ReplayBuffer or n_real == 0)
    assert len({tuple(batch.rewards.flatten().tolist()) for batch in batches}) == 7


class HalfDemonstrations(ReplayBuffer):
    """A buffer whose demonstrations have rewards from 2000 on. It draws without replacement and returns the drawn indices."""

    class Samples(NamedTuple):
        observations: th.Tensor
        actions: th.Tensor
        next_observations: th.Tensor
        dones: th.Tensor
        rewards: th.Tensor
        discounts: th.Tensor | None
        indices: np.ndarray

    def sample(self, batch_size, env=None):
        indices = np.random.choice(self.size(), batch_size, replace=False)
        samples = self._get_samples(indices, env)
        samples.rewards[: batch_size // 2] += REAL
        return self.Samples(*samples, indices=indices)


def test_a_users_buffer_is_sampled_once_per_batch():
    view = mixed(real_buffer(20, HalfDemonstrations), model_buffer(10, *range(10)), 0.5)
    view.n_batches = 5
    for _ in range(7):
        batch = view.sample(24)
        assert ((batch.rewards >= 2 * REAL).sum(), (batch.rewards >= REAL).sum()) == (6, 12)
        assert len(set(batch.indices)) == 12


def test_fields_of_a_user_are_those_of_the_real_rows():
    real = real_buffer(20, HalfDemonstrations)
    batch = mixed(real, model_buffer(10, *range(10)), 0.5).sample(24)
    assert isinstance(batch, HalfDemonstrations.Samples)
    assert np.array_equal(batch.rewards[6:12, 0], real.rewards[batch.indices[6:], 0])
    assert batch.rewards.shape == (24, 1) and batch.indices.shape == (12,)
    # If nothing was imagined, the batch is the user's own sample
    assert mixed(real, model_buffer(10), 0.5).sample(8).indices.shape == (8,)


@pytest.mark.parametrize("kind", [ReplayBuffer, NStepReplayBuffer])
def test_sb3s_own_buffers_are_sampled_once(kind, monkeypatch):
    assert samples_as_sb3(real_buffer(kind=kind))
    asked = []
    gather = kind._get_samples
    monkeypatch.setattr(kind, "_get_samples", lambda self, rows, env=None: asked.append(len(rows)) or gather(self, rows, env))
    view = mixed(real_buffer(kind=kind), model_buffer(10, *range(10)), 0.5)
    view.n_batches = 3
    [view.sample(8) for _ in range(3)]
    assert asked == [12] and samples_as_sb3(view.real)


@pytest.mark.parametrize("method", ["sample", "_get_samples"])
def test_methods_that_a_user_overrides_are_called(method):
    theirs = type("Theirs", (ReplayBuffer,), {method: lambda self, *args, **kwargs: None})
    assert not samples_as_sb3(real_buffer(kind=theirs))
    assert samples_as_sb3(real_buffer(kind=type("Theirs", (ReplayBuffer,), {"add": ReplayBuffer.add})))
    patched = real_buffer()
    setattr(patched, method, lambda *args, **kwargs: None)
    assert not samples_as_sb3(patched)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (lambda self, n, env: dict(self._get_samples(np.arange(n), env)._asdict()), r"sample\(12\) must return .* got dict"),
        (lambda self, n, env: self._get_samples(np.arange(n), env)[:5], "got tuple without"),
        (lambda self, n, env: self._get_samples(np.arange(n - 1), env), r"Theirs.sample\(12\) must return 12 rows"),
    ],
)
def test_a_sample_that_is_not_a_batch_is_refused_with_a_clear_message(returned, named):
    theirs = type("Theirs", (ReplayBuffer,), {"sample": lambda self, n, env=None: returned(self, n, env)})
    with pytest.raises(ValueError, match=named):
        mixed(real_buffer(kind=theirs), model_buffer(10, *range(10)), 0.5).sample(24)


class Still(gym.Env):
    """The parts of an environment that VecNormalize needs."""

    observation_space = OBS_SPACE
    action_space = ACTION_SPACE


@pytest.mark.parametrize("obs_dtype", [np.float32, np.float64])
def test_both_kinds_of_rows_are_normalised_by_the_same_statistics(obs_dtype):
    real = real_buffer(obs_space=spaces.Box(-np.inf, np.inf, (OBS_DIM,), obs_dtype))
    imagined = model_buffer(1000)
    imagined.add(real_transitions(real, "cpu"))
    env = VecNormalize(DummyVecEnv([Still]), clip_obs=3.0)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.0, 5.0, -100.0]), np.array([1.0, 25.0, 1e-7])
    np.random.seed(0)
    batch = mixed(real, imagined, 0.5).sample(400, env=env)
    # The same transitions on both sides: each is known by its action, and must be normalised alike
    halves = [
        dict(zip(map(tuple, batch.actions[half].tolist()), range(200), strict=True)) for half in (slice(200), slice(200, 400))
    ]
    shared = sorted(halves[0].keys() & halves[1].keys())
    assert len(shared) > 30
    left, right = [halves[0][key] for key in shared], [200 + halves[1][key] for key in shared]
    for tensor in batch[:5]:
        th.testing.assert_close(tensor[left], tensor[right], rtol=1e-4, atol=1e-4)
    assert batch.rewards.max() == pytest.approx(10.0)  # clipped, so normalised
    assert {tensor.dtype for tensor in batch if tensor is not None} == {th.float32}
