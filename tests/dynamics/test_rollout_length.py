import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import AdaptiveRolloutLength, ModelStep
from sb3_mbrl.dynamics.rollout_length import RolloutSchedule, make_schedule


class Drift:
    """
    The position moves by the action; the model predicts ``bias`` more.

    :param bias: error of the model in each step
    :param noise: standard deviation of the model's samples
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


def test_a_model_without_knowledge_makes_one_step():
    rule = AdaptiveRolloutLength()
    assert rule.choose(rule.errors(Drift(bias=50.0), [walk(100)])) == 1
    assert rule.choose(rule.errors(Drift(bias=np.nan), [walk(100)])) == 1


def test_sampled_noise_counts_as_error():
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


def test_a_schedule_can_be_made_from_yaml():
    assert make_schedule({"max_length": 7, "tolerance": 0.2}) == AdaptiveRolloutLength(7, 0.2)
    assert make_schedule(AdaptiveRolloutLength(7)) == AdaptiveRolloutLength(7)
    assert make_schedule(4)(0) == 4
    with pytest.raises(ValueError, match="'max_length', 'tolerance'.*got {'length': 3}"):
        make_schedule({"length": 3})


def test_a_number_is_a_constant_length():
    schedule = RolloutSchedule(5)
    assert [schedule(step) for step in (0, 1, 10**9)] == [5, 5, 5]


@pytest.mark.parametrize(
    ("step", "length"),
    [(0, 1), (20_000, 1), (29_285, 1), (29_286, 2), (85_000, 8), (149_999, 14), (150_000, 15), (10**7, 15)],
)
def test_the_papers_schedule_for_hopper_is_linear_and_truncated(step, length):
    assert RolloutSchedule((20_000, 150_000, 1, 15))(step) == length


def test_the_papers_schedule_for_ant_reaches_25_after_100_epochs():
    schedule = RolloutSchedule([20_000, 100_000, 1, 25])
    assert [schedule(1000 * epoch) for epoch in (20, 60, 80, 100, 300)] == [1, 13, 19, 25, 25]


def test_a_schedule_may_shrink():
    schedule = RolloutSchedule((0, 100, 10, 1))
    assert [schedule(step) for step in (0, 50, 100)] == [10, 5, 1]


def test_a_schedule_that_starts_where_it_ends_is_a_step():
    schedule = RolloutSchedule((100, 100, 1, 7))
    assert [schedule(step) for step in (0, 100, 101)] == [1, 1, 7]


def test_whole_numbers_written_as_floats_are_accepted():
    schedule = RolloutSchedule((2e4, 15e4, 1.0, 15.0))
    assert schedule(85_000) == 8
    assert isinstance(schedule(85_000), int)


@given(
    start=st.integers(0, 10_000),
    duration=st.integers(1, 10_000),
    short=st.integers(1, 50),
    growth=st.integers(0, 50),
    steps=st.lists(st.integers(0, 30_000), min_size=2),
)
def test_a_growing_schedule_never_shrinks_nor_leaves_its_limits(start, duration, short, growth, steps):
    schedule = RolloutSchedule((start, start + duration, short, short + growth))
    lengths = [schedule(step) for step in sorted(steps)]
    assert lengths == sorted(lengths)
    assert short <= lengths[0] and lengths[-1] <= short + growth


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0, "at least one step"),
        (-1, "at least one step"),
        (1.5, "integers"),
        (float("nan"), "integers"),
        (float("inf"), "integers"),
        ((0, 10, 1), "start_step, end_step"),
        ((), "start_step, end_step"),
        ("1", "start_step, end_step"),
        ("1234", "start_step, end_step"),
        (None, "start_step, end_step"),
        ({"start": 1}, "start_step, end_step"),
        (np.ones((2, 2)), "start_step, end_step"),
        ((0, 10, 1, "15"), "integers"),
        ((0, 10, 1, None), "integers"),
        ((10, 0, 1, 15), "start before it ends"),
        ((-1, 10, 1, 15), "start before it ends"),
        ((0, 10, 0, 15), "at least one step"),
        ((0, 10, 1, 0), "at least one step"),
    ],
)
def test_anything_else_is_refused_with_the_accepted_forms(schedule, message):
    with pytest.raises(ValueError, match=message) as error:
        RolloutSchedule(schedule)
    assert "rollout_schedule" in str(error.value)
