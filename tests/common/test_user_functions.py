"""Errors in a user's function are found when it is passed."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.common.user_functions import probe

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Box(np.array([0.0, -5.0], np.float32), np.array([1.0, 5.0], np.float32))
CPU = th.device("cpu")

RIGHT = {
    "reward_fn": lambda obs, action, next_obs: obs[:, 0] + action[:, 1],
    "termination_fn": lambda obs, action, next_obs: next_obs[:, 0] > 0,
    "terminal_value": lambda obs: obs.sum(dim=1),
    "actor": lambda obs: obs[:, :2].tanh(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_function_that_fits_its_signature_is_accepted(name):
    probe(BOX, ACTIONS, CPU, **{name: RIGHT[name]})
    probe(BOX, ACTIONS, CPU, **{name: None})


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda values: values.numpy(), r"must return a .*tensor of shape .* on cpu.*got numpy\.ndarray"),
        (lambda values: values.tolist(), r"got builtins\.list"),
        (lambda values: None, r"got builtins\.NoneType"),
        (lambda values: values[:1], r"got torch\..* of shape \(1"),
        (lambda values: values.unsqueeze(-1), r"got torch\..* of shape \(2"),
        (lambda values: values.to(th.complex64), r"got torch\.complex64"),
        (lambda values: values.to("meta"), r"tensor of shape .* on cpu.*on meta"),
        (
            lambda values: values[99],
            r"raises an error for random .*IndexError.*called as f\(obs \(B, O\)",
        ),
    ],
)
def test_a_function_that_breaks_its_signature_is_refused_and_the_message_says_how(name, spoil, message):
    with pytest.raises(ValueError, match=f"{name} {message}" if message.startswith(("must", "fails")) else message):
        probe(BOX, ACTIONS, CPU, **{name: lambda *rows: spoil(RIGHT[name](*rows))})


@pytest.mark.parametrize("name", RIGHT)
def test_anything_that_is_not_a_function_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a function f\(obs .* got 'learned'"):
        probe(BOX, ACTIONS, CPU, **{name: "learned"})
    with pytest.raises(ValueError, match=rf"{name} must be a function f\(obs .* got <class .*Module'>"):
        probe(BOX, ACTIONS, CPU, **{name: th.nn.Module})


@pytest.mark.parametrize("name", ["reward_fn", "terminal_value", "actor"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_function_that_is_never_finite_is_refused(name, bad):
    with pytest.raises(ValueError, match=f"{name} returns NaN or infinity for each of"):
        probe(BOX, ACTIONS, CPU, **{name: lambda *rows: RIGHT[name](*rows) * bad})


@pytest.mark.parametrize(
    "value",
    [
        lambda obs: obs.log().sum(dim=1),
        lambda obs: (1 - obs[:, 0] ** 2).sqrt(),
        lambda obs: (obs[:, 0] - 50).log(),
        lambda obs: (0.1 - obs[:, 0].abs()).log(),
    ],
    ids=["positive", "unit", "far", "near"],
)
def test_a_function_that_is_finite_on_possible_states_is_accepted(value):
    probe(BOX, ACTIONS, CPU, terminal_value=value)


def test_dtypes_with_another_meaning_are_refused():
    with pytest.raises(ValueError, match=r"termination_fn must return a bool tensor.*torch\.float32"):
        probe(BOX, ACTIONS, CPU, termination_fn=RIGHT["reward_fn"])
    with pytest.raises(ValueError, match=r"reward_fn must return a float tensor.*torch\.bool"):
        probe(BOX, ACTIONS, CPU, reward_fn=RIGHT["termination_fn"])
    probe(BOX, spaces.Discrete(3), CPU, actor=lambda obs: th.nn.functional.one_hot(obs.argmax(dim=1), 3))


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), n=st.integers(1, 4))
def test_random_rows_lie_in_the_spaces(low, width, n):
    observations = spaces.Box(np.float32(low), np.float32(low + width), (n,))
    actions = spaces.Box(np.float32(-width), np.float32(2 * width), (n,))

    def reward(obs, action, next_obs):
        for rows, space in ((obs, observations), (action, actions), (next_obs, observations)):
            slack = 1e-6 * max(abs(space.low[0]), abs(space.high[0]))
            assert rows.shape == (2, n) and rows.dtype == th.float32
            assert (rows >= space.low[0] - slack).all() and (rows <= space.high[0] + slack).all()
        return obs[:, 0]

    probe(observations, actions, CPU, reward_fn=reward)


def test_discrete_actions_are_one_hot():
    def reward(obs, action, next_obs):
        assert action.shape == (2, 4) and (action.sum(dim=1) == 1).all() and action.max() == 1
        return obs[:, 0]

    probe(BOX, spaces.Discrete(4, start=7), CPU, reward_fn=reward)


def test_random_streams_are_not_changed():
    before = th.get_rng_state()
    probe(BOX, ACTIONS, CPU, terminal_value=lambda obs: th.randn(len(obs)))
    assert th.equal(th.get_rng_state(), before)
