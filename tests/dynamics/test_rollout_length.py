"""How far a model can be trusted, on a line where its error is known."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import AdaptiveRolloutLength, ModelStep
from sb3_mbrl.dynamics.rollout_length import make_schedule


class Drift:
    """
    The position moves by the action; the model believes, by ``bias`` more.

    :param bias: what it gets wrong, at each step
    :param noise: standard deviation of its samples
    """

    def __init__(self, bias=0.0, noise=0.0):
        self.bias, self.noise = bias, noise

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        next_obs = obs + action + self.bias + self.noise * th.randn(obs.shape, generator=generator)
        return ModelStep(next_obs, obs.squeeze(1), th.zeros(len(obs), dtype=th.bool))


def walk(n_steps, seed=0):
    actions = th.rand(n_steps, 1, generator=th.Generator().manual_seed(seed)) * 2 - 1
    positions = th.cat([th.zeros(1, 1), actions.cumsum(dim=0)])
    ended = th.zeros(n_steps, dtype=th.bool)
    return Transitions(positions[:-1], actions, positions[1:], positions[:-1, 0], ended)


def test_error_of_a_drift_grows_by_the_step():
    world = walk(200)
    errors = AdaptiveRolloutLength(5).errors(Drift(bias=0.1), [world])
    steps = np.arange(1, 6)
    # In standard deviations of the data; the reward tells the position one step later
    position = 0.1 * steps / world.next_observations.std(correction=0).item()
    reward = 0.1 * (steps - 1) / world.rewards.std(correction=0).item()
    np.testing.assert_allclose(errors, np.sqrt((position**2 + reward**2) / 2), rtol=1e-4)


def test_scale_of_other_data():
    rule, world = AdaptiveRolloutLength(3), walk(200)
    small = rule.errors(Drift(bias=0.1), [world], scale=th.tensor([1.0, 1.0]))
    np.testing.assert_allclose(rule.errors(Drift(bias=0.1), [world], scale=th.tensor([10.0, 10.0])), small / 10)


def test_a_perfect_model_is_trusted_to_the_end():
    rule = AdaptiveRolloutLength(max_length=12)
    assert rule.choose(rule.errors(Drift(), [walk(100)])) == 12


def test_a_model_that_knows_nothing_makes_one_step():
    rule = AdaptiveRolloutLength()
    assert rule.choose(rule.errors(Drift(bias=50.0), [walk(100)])) == 1
    assert rule.choose(rule.errors(Drift(bias=np.nan), [walk(100)])) == 1


def test_noise_that_imagination_will_draw_counts():
    quiet, loud = (AdaptiveRolloutLength().errors(Drift(noise=noise), [walk(300)]) for noise in (0.1, 0.5))
    assert (loud > 4 * quiet).all()


def test_short_episodes_bound_the_length():
    rule = AdaptiveRolloutLength(max_length=12)
    assert rule.choose(rule.errors(Drift(), [walk(4), walk(7)])) == 6
    assert rule.choose(rule.errors(Drift(), [walk(3)] * 90 + [walk(12)])) == 3
    assert rule.choose(rule.errors(Drift(), [walk(1)])) == 1


def test_without_transitions():
    with pytest.raises(ValueError, match="no transitions|at least 1"):
        AdaptiveRolloutLength().errors(Drift(), [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_all_steps_chosen_are_within_the_tolerance(errors, tolerance):
    length = AdaptiveRolloutLength(tolerance=tolerance).choose(np.array(errors))
    assert 1 <= length <= len(errors)
    assert length == 1 or max(errors[:length]) <= tolerance
    assert length == len(errors) or max(errors[: length + 1]) > tolerance or length == 1


@pytest.mark.parametrize("max_length", [0, -1, 1.5, None])
def test_bad_lengths(max_length):
    with pytest.raises(ValueError, match="max_length must be an integer from 1"):
        AdaptiveRolloutLength(max_length=max_length)


@pytest.mark.parametrize("tolerance", [0, -0.1, np.inf, np.nan, "small"])
def test_bad_tolerances(tolerance):
    with pytest.raises(ValueError, match="tolerance must be a number above 0"):
        AdaptiveRolloutLength(tolerance=tolerance)


def test_schedules():
    assert make_schedule({"max_length": 7, "tolerance": 0.2}) == AdaptiveRolloutLength(7, 0.2)
    assert make_schedule(AdaptiveRolloutLength(7)) == AdaptiveRolloutLength(7)
    assert make_schedule(4)(0) == 4
    with pytest.raises(ValueError, match="'max_length', 'tolerance'.*got {'length': 3}"):
        make_schedule({"length": 3})
