from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.policies import BasePolicy

from sb3_mbrl.common.actions import action_bounds, action_dim, executed, from_environment, one_hot, to_environment
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble

OBS_SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


@st.composite
def boxes(draw):
    """Bounds of any sign, different for each entry."""
    shape = draw(st.sampled_from([(1,), (3,), (2, 3)]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    low = rng.uniform(-10, 10, shape).astype(dtype)
    return spaces.Box(low, low + rng.uniform(0.1, 20, shape).astype(dtype), dtype=dtype)


def scaler(action_space):
    return ProbabilisticEnsemble(OBS_SPACE, action_space, net_arch=(1,), ensemble_size=1, n_elites=1, device="cpu")


def samples(space, n=20):
    space.seed(0)
    return np.stack([space.sample() for _ in range(n)])


def units(space, n=20, seed=0):
    """Actions in [-1, 1], including the corners."""
    unit = 2 * th.rand(n, action_dim(space), generator=th.Generator().manual_seed(seed)) - 1
    unit[0], unit[1] = -1, 1
    return unit


def assert_contains(space, actions):
    assert actions.shape == (len(actions), *space.shape)
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)


# ---------------------------------------------------------------- Box


@given(space=boxes(), seed=st.integers(0, 100))
def test_back_from_the_environment(space, seed):
    unit = units(space, seed=seed)
    back = from_environment(to_environment(unit, space), space)
    np.testing.assert_allclose(back.reshape(unit.shape), unit, atol=2e-4)


@given(space=boxes(), seed=st.integers(0, 100))
def test_an_action_of_the_environment_survives_both_conversions(space, seed):
    unit, model = units(space, seed=seed), scaler(space)
    actions = to_environment(unit, space)
    assert_contains(space, actions)
    flat = th.as_tensor(actions, dtype=th.float32).flatten(1)
    th.testing.assert_close(model.scale_action(flat), unit, atol=2e-4, rtol=0)
    th.testing.assert_close(flat, model.unscale_action(unit), atol=1e-5, rtol=1e-5)


@given(space=boxes())
def test_a_scaled_action_survives_both_conversions(space):
    actions = samples(space)
    unit = scaler(space).scale_action(th.as_tensor(actions, dtype=th.float32).flatten(1))
    np.testing.assert_allclose(to_environment(unit, space), actions, rtol=1e-5, atol=1e-5)


@given(space=boxes())
def test_the_scale_equals_that_of_sb3s_policies(space):
    unit = units(space)
    theirs = BasePolicy.unscale_action(SimpleNamespace(action_space=space), unit.numpy().reshape(-1, *space.shape))
    np.testing.assert_allclose(to_environment(unit, space), theirs, rtol=1e-6, atol=1e-6)


@given(space=boxes())
def test_corners_are_the_bounds_and_actions_outside_are_clipped(space):
    beyond = th.tensor([[-1.0], [1.0], [-1.5], [1 + 1e-6]]).expand(-1, action_dim(space))
    actions = to_environment(beyond, space)
    assert_contains(space, actions)
    for action, bound in zip(actions, [space.low, space.high] * 2, strict=True):
        np.testing.assert_allclose(action, bound, rtol=1e-6, atol=2e-5)


@given(space=boxes())
def test_bounds_of_a_box_are_flat(space):
    low, high = action_bounds(space)
    assert low.dtype == high.dtype == th.float32
    assert low.shape == high.shape == (action_dim(space),)
    np.testing.assert_array_equal(low, space.low.flatten().astype(np.float32))
    np.testing.assert_array_equal(high, space.high.flatten().astype(np.float32))


def test_bounds_are_a_copy():
    space = spaces.Box(-1, 1, (2,))
    action_bounds(space)[0].fill_(7)
    assert space.low.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("space", "dim"),
    [(spaces.Box(-1, 1, (4,)), 4), (spaces.Box(-1, 1, (2, 3)), 6), (spaces.Box(-1, 1, ()), 1), (spaces.Discrete(5), 5)],
)
def test_dimensions(space, dim):
    assert action_dim(space) == dim


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_whole_numbers_are_executed_rounded(dtype):
    space = spaces.Box(0, 4, (1,), dtype)
    planned = th.tensor([[-1.0], [0.1], [0.3], [1.0]])
    rounded = executed(planned, space, *action_bounds(space))
    th.testing.assert_close(rounded, th.tensor([[-1.0], [0.0], [0.5], [1.0]]) if dtype is np.uint8 else planned)


# ---------------------------------------------------------------- Discrete


@given(n=st.integers(1, 6), start=st.integers(-5, 5))
def test_a_discrete_action_survives_both_conversions(n, start):
    space = spaces.Discrete(n, start=start)
    actions = np.arange(start, start + n)
    encoded = one_hot(actions, space)
    assert encoded.dtype == th.float32
    assert encoded.equal(th.eye(n))
    assert_contains(space, to_environment(encoded, space))
    assert to_environment(encoded, space).tolist() == actions.tolist()


@pytest.mark.parametrize("stored", [np.array([[4], [2]]), np.array([4.0, 2.0], np.float32), np.array([4, 2], np.int32)])
def test_discrete_actions_are_encoded_however_a_buffer_stores_them(stored):
    assert one_hot(stored, spaces.Discrete(3, start=2)).tolist() == [[0, 0, 1], [1, 0, 0]]


@given(n=st.integers(1, 6), start=st.integers(-5, 5))
def test_one_hot_actions_are_not_scaled(n, start):
    space = spaces.Discrete(n, start=start)
    model = scaler(space)
    assert model.unscale_action(th.eye(n)).equal(th.eye(n))
    assert model.scale_action(th.eye(n)).equal(th.eye(n))
