import math

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_mbrl.diagnostics.statistics import kolmogorov_smirnov, termination_scores


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_kolmogorov_smirnov_is_the_largest_distance(seed, n, m):
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 5, (n, 2)) / 2.0, generator.integers(0, 6, (m, 2)) / 2.0  # many ties
    result = kolmogorov_smirnov(th.as_tensor(first), th.as_tensor(second))
    for dim in range(2):
        points = np.r_[first[:, dim], second[:, dim]]
        expected = max(abs((first[:, dim] <= x).mean() - (second[:, dim] <= x).mean()) for x in points)
        assert result[dim] == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_scores_are_fractions(pairs):
    predicted, actual = (th.tensor([pair[i] for pair in pairs], dtype=th.bool) for i in (0, 1))
    scores = termination_scores(predicted, actual)
    assert math.isnan(scores["precision"]) == (not predicted.any()) and math.isnan(scores["recall"]) == (not actual.any())
    defined = [score for score in scores.values() if not math.isnan(score)]
    assert all(0.0 <= score <= 1.0 for score in defined)
    if th.equal(predicted, actual):
        assert all(score == 1.0 for score in defined)


def test_scores_count_false_alarms_and_misses():
    scores = termination_scores(th.tensor([True, True, False, False]), th.tensor([True, False, True, True]))
    assert scores == {"precision": 0.5, "recall": pytest.approx(1 / 3)}
