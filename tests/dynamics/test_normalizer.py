import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_mbrl.dynamics.normalizer import Normalizer


def fitted(rows):
    normalizer = Normalizer(rows.shape[1])
    normalizer.fit(rows)
    return normalizer


def test_before_a_fit_it_is_the_identity():
    rows = th.tensor([[3.0, -7.0]])
    assert th.equal(Normalizer(2)(rows), rows)
    assert th.equal(Normalizer(2).inverse(rows), rows)


def test_the_rows_it_was_fitted_on_have_mean_0_and_population_std_1():
    rows = th.randn(500, 3, generator=th.Generator().manual_seed(0)) * th.tensor([1e-4, 1.0, 1e4]) + th.tensor([0.0, 5.0, 1e4])
    scores = fitted(rows)(rows)
    assert scores.mean(dim=0).abs().max() < 1e-4
    np.testing.assert_allclose(scores.numpy().std(axis=0), 1.0, rtol=1e-4)


@given(hnp.arrays(np.float32, (7, 2), elements=st.floats(-1000, 1000, width=32)))
def test_inverse_undoes_forward(rows):
    rows = th.from_numpy(rows)
    normalizer = fitted(rows)
    th.testing.assert_close(normalizer.inverse(normalizer(rows)), rows, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, -3e5, 1e-8])
def test_a_dimension_that_never_changed_is_only_centered_and_restored_exactly(value):
    rows = th.full((1000, 1), value)
    normalizer = fitted(rows)
    assert normalizer(rows).unique().tolist() == [0.0]
    assert normalizer(th.full((1, 1), value + 1.0)).item() == pytest.approx(1.0, abs=0.05)
    assert th.equal(normalizer.inverse(th.randn(1000, 1, generator=th.Generator().manual_seed(0))), rows)


def test_a_single_row_can_be_normalised():
    normalizer = fitted(th.tensor([[4.0, -2.0]]))
    assert normalizer(th.tensor([[5.0, -2.0]])).tolist() == [[1.0, 0.0]]
    assert normalizer.inverse(th.tensor([[9.0, 9.0]])).tolist() == [[4.0, -2.0]]


def test_without_z_scores_only_constant_dimensions_are_changed():
    normalizer = Normalizer(2)
    normalizer.fit(th.tensor([[4.0, -2.0], [4.0, 3.0]]), z_score=False)
    assert normalizer(th.tensor([[5.0, 7.0]])).tolist() == [[1.0, 7.0]]
    assert normalizer.inverse(th.tensor([[9.0, 9.0]])).tolist() == [[4.0, 9.0]]


def test_a_small_spread_far_from_zero_survives_a_million_rows():
    row = th.tensor([[1000.0], [1000.25]])
    normalizer = fitted(row.repeat(500_000, 1))
    assert normalizer.mean.item() == pytest.approx(1000.125)
    assert normalizer.std.item() == pytest.approx(0.125)


def test_statistics_travel_with_the_state_dict_and_stay_float32():
    normalizer = fitted(th.randn(9, 2, generator=th.Generator().manual_seed(0)).double())
    other = Normalizer(2)
    other.load_state_dict(normalizer.state_dict())
    assert th.equal(other.mean, normalizer.mean) and th.equal(other.std, normalizer.std)
    assert normalizer.mean.dtype == normalizer.std.dtype == th.float32
    assert not list(normalizer.parameters())
