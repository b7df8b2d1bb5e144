import numpy as np
import pytest
import torch as th

from sb3_mbrl.diagnostics.open_loop import open_loop_error
from tests.diagnostics.linear import LinearModel, linear_world


def test_a_perfect_model_stays_on_the_trajectory():
    result = open_loop_error(LinearModel(), [linear_world(50, seed=i) for i in range(4)], n_steps=15)
    assert result.expectation.shape == (15, 3)
    assert result.expectation.max() < 1e-5
    assert result.fan.max() < 1e-5
    assert result.spread.max() == 0
    assert result.persistence[:, :2].min() > 0.1


def test_errors_compound_as_the_system_says():
    world = linear_world(500)
    result = open_loop_error(LinearModel(bias=0.01), [world], n_steps=10, n_starts=50)
    expected = 0.01 * np.cumsum(0.9 ** np.arange(10))
    std = world.next_observations.std(dim=0, correction=0).numpy()
    assert result.expectation[:, :2].numpy() == pytest.approx(expected[:, None] / std, rel=1e-3)
    assert result.summary()["open_loop_reward_bias"] == pytest.approx(2 * np.r_[0, expected[:-1]].mean(), rel=1e-2)


def test_the_spread_of_samples_is_that_of_the_noise():
    world = linear_world(1_000)
    model = LinearModel(noise=0.1)
    result = open_loop_error(model, [world], 10, 50, th.Generator().manual_seed(0), n_samples=200)
    expected = 0.1 * np.sqrt(np.cumsum(0.81 ** np.arange(10)))
    std = world.next_observations.std(dim=0, correction=0).numpy()
    assert result.spread[:, :2].numpy() == pytest.approx(expected[:, None] / std, rel=0.05)


def test_more_steps_than_any_trajectory_has_are_refused():
    with pytest.raises(ValueError, match="fewer than n_steps=8"):
        open_loop_error(LinearModel(), [linear_world(5), linear_world(7)], n_steps=8)
    open_loop_error(LinearModel(), [linear_world(5), linear_world(7)], n_steps=7)


def test_a_prediction_that_is_not_finite_is_infinitely_wrong():
    result = open_loop_error(LinearModel(bias=np.nan), [linear_world(100)], n_steps=3)
    assert result.expectation[:, :2].isinf().all()


def test_no_transitions_are_refused():
    with pytest.raises(ValueError, match="no transitions"):
        open_loop_error(LinearModel(), [])
