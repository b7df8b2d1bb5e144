import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.dynamics.rollout_length import RolloutSchedule


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
