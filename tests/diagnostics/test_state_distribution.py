import numpy as np
import pytest
import torch as th

from sb3_mbrl.diagnostics.state_distribution import state_distribution


def test_shifts_are_in_units_of_the_real_std():
    real = np.random.default_rng(0).normal(3.0, 2.0, (50_000, 2))
    imagined = np.random.default_rng(1).normal([3.0, 5.0], [2.0, 3.0], (50_000, 2))
    result = state_distribution(real, imagined)
    assert result.mean_shift.tolist() == pytest.approx([0.0, 1.0], abs=0.03)
    assert result.std_shift.tolist() == pytest.approx([0.0, 0.5], abs=0.03)
    assert result.ks[0] < 0.02 < 0.3 < result.ks[1]
    assert result.summary()["states_mean_shift_worst"] == pytest.approx(1.0, abs=0.03)


def test_states_outside_the_observed_range_are_counted():
    real = th.linspace(0, 1, 101).repeat(2, 1).T
    imagined = th.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, -0.5], [1.0 + 1e-6, 0.0], [th.nan, 0.5]])
    result = state_distribution(real, imagined)
    assert result.outside.tolist() == pytest.approx([2 / 5, 1 / 5])
    assert result.outside_any == pytest.approx(3 / 5)
    wider = state_distribution(real, imagined[:4], (np.full(2, -2.0), np.full(2, 2.0)))
    assert wider.outside_any == 0


def test_a_dimension_that_never_moved_is_not_judged():
    real = np.c_[np.ones(50), np.arange(50)]
    result = state_distribution(real, real + np.array([1e-4, 0.0]))
    assert result.ks.isnan().tolist() == [True, False]
    assert result.outside_any == 0


@pytest.mark.parametrize("real, imagined", [((0, 2), (3, 2)), ((3, 2), (0, 2)), ((3, 2), (3, 3)), ((3,), (3,))])
def test_states_that_cannot_be_compared_are_refused(real, imagined):
    with pytest.raises(ValueError, match="must have shape"):
        state_distribution(np.zeros(real), np.zeros(imagined))
