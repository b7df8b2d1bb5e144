import math

import numpy as np
import pytest
import torch as th

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import onednn, precision
from tests.dynamics.models import (
    ACTION_DIM,
    OBS_DIM,
    ensemble,
    reference_member,
    seeded,
    shaken,
)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("n_rows", [7, 100])
@pytest.mark.parametrize("mkl_is_slow", [False, True])  # PyTorch's batched products, and oneDNN's of many rows
def test_forward_equals_the_papers_network_for_each_member(monkeypatch, mkl_is_slow, n_rows):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    model = shaken()
    x = th.randn(3, n_rows, OBS_DIM + ACTION_DIM, generator=seeded(2))
    mean, logvar = model(x)
    for member in range(3):
        expected = reference_member(model, member, x[member].double().numpy())
        np.testing.assert_allclose(mean[member].detach(), expected[0], atol=1e-5)
        np.testing.assert_allclose(logvar[member].detach(), expected[1], atol=1e-5)


@pytest.mark.usefixtures("both_ways")
def test_bfloat16_is_for_fitting_with_acceleration(monkeypatch):
    monkeypatch.setattr(precision, "HAS_BFLOAT16", True)
    x = th.randn(3, 100, OBS_DIM + ACTION_DIM, generator=seeded(1))
    exact, rounded = shaken(), shaken(precision="bfloat16")
    assert th.equal(rounded(x)[0], exact(x)[0]) is not acceleration.enabled
    with th.no_grad():
        assert th.equal(rounded(x)[0], exact(x)[0])


@pytest.mark.parametrize("nll_beta", [0.0, 0.5, 1.0])
def test_the_loss_is_the_likelihood_plus_a_hundredth_of_the_bounds_each_weighted_like_a_row_that_lies_there(nll_beta):
    model = shaken(nll_beta=nll_beta)
    x, y = (th.randn(3, 7, dim, generator=seeded(dim)) for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))
    upper, lower = (bound.detach().double().numpy() for bound in (model.max_logvar, model.min_logvar))
    expected = 0.01 * (np.exp(upper) ** nll_beta * upper - np.exp(lower) ** nll_beta * lower).sum()
    for member in range(3):
        mean, logvar = reference_member(model, member, x[member].double().numpy())
        nll = (mean - y[member].numpy()) ** 2 / np.exp(logvar) + logvar
        expected += (np.exp(logvar) ** nll_beta * nll).mean()
    assert model.loss(x, y).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("nll_beta", [0.0, 0.5, 1.0])
def test_a_bound_far_from_all_rows_is_pulled_by_a_hundredth_of_its_weight(nll_beta):
    model = shaken(nll_beta=nll_beta)
    with th.no_grad():
        model.min_logvar.fill_(-40.0)
    x, y = (th.randn(3, 7, dim, generator=seeded(dim)) for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))
    model.loss(x, y).backward()
    th.testing.assert_close(model.min_logvar.grad, th.full((OBS_DIM + 1,), -0.01 * math.exp(-40.0 * nll_beta)))


def test_the_weight_of_a_row_is_not_differentiated():
    x, y = (th.randn(1, 1, dim, generator=seeded(dim)) for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))
    plain, weighted = (shaken(ensemble_size=1, n_elites=1, nll_beta=beta) for beta in (0.0, 0.5))
    for model in (plain, weighted):
        model.loss(x, y).backward()
    # For one row, the gradient of each output is the gradient of the plain likelihood, times the weight
    weight = weighted(x)[1].exp().sqrt().flatten().detach().repeat(2)
    th.testing.assert_close(weighted.biases[-1].grad.flatten(), plain.biases[-1].grad.flatten() * weight)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("activation", ["silu", "relu", "tanh", "elu", "gelu"])
@pytest.mark.parametrize("probabilistic", [True, False])
def test_one_member_per_row_equals_that_row_of_all_members(activation, probabilistic):
    model = shaken(activation=activation, probabilistic=probabilistic)
    x, members = th.randn(20, OBS_DIM + ACTION_DIM, generator=seeded(1)), th.randint(3, (20,), generator=seeded(2))
    everything = model(x.expand(3, -1, -1))
    for rows, all_rows in zip(model._split_head(model._forward_rows(x, members)), everything, strict=True):
        th.testing.assert_close(rows, all_rows[members, th.arange(20)])


def test_the_standard_deviation_is_that_of_the_bounded_log_variance():
    model = shaken()
    head = 20 * th.randn(50, 2 * (OBS_DIM + 1), generator=seeded(1))
    th.testing.assert_close(model._std(head), th.exp(0.5 * model._split_head(head)[1]))


def test_initial_weights_are_truncated_normals_and_biases_zero():
    model = ensemble(ensemble_size=7, net_arch=(200, 200))
    for weight in model.weights:
        std = 1 / (2 * weight.shape[1] ** 0.5)
        assert weight.abs().max() <= 2 * std
        assert weight.std().item() == pytest.approx(0.88 * std, rel=0.03)  # of a normal cut at two standard deviations
    assert all((bias == 0).all() for bias in model.biases)
    assert model.max_logvar.unique().tolist() == [0.5]
    assert model.min_logvar.unique().tolist() == [-10.0]
