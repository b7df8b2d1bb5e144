import json
import math
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors.torch import save_file

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration import perceptron as accelerated
from sb3_mbrl.common.tensors import load_tensors, save_tensors
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import ensemble as ensemble_module
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.files import FILE_FORMAT
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.tasks.termination_rules import Bound, NeverTerminates, TerminatesOutside

OBS_DIM, ACTION_DIM = 3, 2
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
ACTION_SPACE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32))


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


def ensemble(seed=0, obs_space=OBS_SPACE, action_space=ACTION_SPACE, **kwargs):
    small = {"ensemble_size": 3, "n_elites": 2, "net_arch": (16, 12), "generator": seeded(seed), "device": "cpu"}
    return ProbabilisticEnsemble(obs_space, action_space, **{**small, **kwargs})


def shaken(**kwargs):
    """An ensemble in which everything matters: biases, bounds, statistics and errors away from their initial values."""
    model, generator = ensemble(**kwargs), seeded(9)
    with th.no_grad():
        for bias in model.biases:
            bias.normal_(0, 0.3, generator=generator)
        model.max_logvar.uniform_(-0.5, 0.5, generator=generator)
        model.min_logvar.uniform_(-2.5, -1.5, generator=generator)
        for normalizer in (model.input_normalizer, model.target_normalizer):
            normalizer.mean.normal_(0, 1, generator=generator)
            normalizer.std.uniform_(0.5, 2, generator=generator)
        model.holdout_mse.copy_(th.rand(model.ensemble_size, generator=generator))
    return model


def inputs(n=5, seed=1):
    generator = seeded(seed)
    return th.randn(n, OBS_DIM, generator=generator), th.rand(n, ACTION_DIM, generator=generator) * 2 - 1


def transitions(n=200, seed=0, terminated=None):
    obs, action = inputs(n, seed)
    next_obs = obs + 0.1 * th.sin(3 * obs) + 0.2 * action.sum(1, keepdim=True)
    return Transitions(obs, action, next_obs, obs[:, 0], th.zeros(n, dtype=th.bool) if terminated is None else terminated)


def assert_equal_states(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert th.equal(tensor, right[name]), name


# ---------------------------------------------------------------- a reference, member by member, in float64


def reference_member(model, member, x):
    """The network of PETS for one member: mean and softly bounded log-variance of normalised targets."""
    hidden = x
    for layer, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        hidden = hidden @ weight[member].detach().double().numpy() + bias[member, 0].detach().double().numpy()
        if layer < len(model.weights) - 1:
            hidden = hidden / (1 + np.exp(-hidden))
    mean, logvar = np.split(hidden, 2, axis=-1)
    upper, lower = (bound.detach().double().numpy() for bound in (model.max_logvar, model.min_logvar))
    logvar = upper - np.log1p(np.exp(upper - logvar))
    return mean, lower + np.log1p(np.exp(logvar - lower))


def reference_step(model, obs, action, member, noise):
    """One row: normalise, predict, sample, undo the normalisation, add the change to the observation."""
    statistics = [
        getattr(n, s).double().numpy() for n in (model.input_normalizer, model.target_normalizer) for s in ("mean", "std")
    ]
    x = (np.concatenate([obs, action]) - statistics[0]) / statistics[1]
    mean, logvar = reference_member(model, member, x)
    output = (mean + np.sqrt(np.exp(logvar)) * noise) * statistics[3] + statistics[2]
    return obs + output[:-1], output[-1]


@pytest.mark.parametrize("n_rows", [7, 100])
@pytest.mark.parametrize("mkl_is_slow", [False, True])  # PyTorch's batched products, and oneDNN's of many rows
def test_forward_is_the_papers_network_for_each_member(monkeypatch, mkl_is_slow, n_rows):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    model = shaken()
    x = th.randn(3, n_rows, OBS_DIM + ACTION_DIM, generator=seeded(2))
    mean, logvar = model(x)
    for member in range(3):
        expected = reference_member(model, member, x[member].double().numpy())
        np.testing.assert_allclose(mean[member].detach(), expected[0], atol=1e-5)
        np.testing.assert_allclose(logvar[member].detach(), expected[1], atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "relu", "tanh", "elu"])
@pytest.mark.parametrize("probabilistic", [True, False])
def test_gradients_by_onednn_are_pytorchs(monkeypatch, activation, probabilistic):
    x, y = (th.randn(3, 100, dim, generator=seeded(dim)) for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))

    def gradients(mkl_is_slow):
        monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
        model = shaken(activation=activation, probabilistic=probabilistic)
        model.loss(x, y).backward()
        return [parameter.grad for group in model.optimizer.param_groups for parameter in group["params"]]

    for ours, pytorchs in zip(gradients(True), gradients(False), strict=True):
        th.testing.assert_close(ours, pytorchs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mkl_is_slow", [False, True])
def test_bfloat16_is_near_while_it_is_fitted_and_exact_afterwards(monkeypatch, mkl_is_slow):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    monkeypatch.setattr(accelerated, "HAS_BFLOAT16", True)
    x = th.randn(3, 100, OBS_DIM + ACTION_DIM, generator=seeded(1))
    exact, rounded = shaken(), shaken(precision="bfloat16")
    difference = (rounded(x)[0] - exact(x)[0]).abs()
    assert 0 < difference.max() and difference.mean() < 0.02 * exact(x)[0].abs().mean()
    assert rounded(x)[0].dtype == th.float32
    with th.no_grad():
        assert th.equal(rounded(x)[0], exact(x)[0])


def test_precisions_are_checked():
    with pytest.raises(ValueError, match=r"precision must be one of \['float32', 'bfloat16'\], got 'half'"):
        ensemble(precision="half")


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
    # Of one row, the gradient of each output is that of the plain likelihood times the weight
    weight = weighted(x)[1].exp().sqrt().flatten().detach().repeat(2)
    th.testing.assert_close(weighted.biases[-1].grad.flatten(), plain.biases[-1].grad.flatten() * weight)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_is_the_papers_prediction_row_by_row(deterministic):
    model = shaken()
    (obs, action), members = inputs(), th.tensor([2, 0, 1, 1, 2])
    step = model.step(obs, action, seeded(3), members=members, deterministic=deterministic)
    noise = th.zeros(5, OBS_DIM + 1) if deterministic else th.randn(5, OBS_DIM + 1, generator=seeded(3))
    for row in range(5):
        expected = reference_step(model, *(t[row].double().numpy() for t in (obs, action)), members[row], noise[row].numpy())
        np.testing.assert_allclose(step.next_obs[row].detach(), expected[0], atol=1e-5)
        assert step.reward[row].item() == pytest.approx(expected[1], abs=1e-5)
    assert step.terminated.tolist() == [False] * 5


@pytest.mark.parametrize("activation", ["silu", "relu", "tanh", "elu", "gelu"])
@pytest.mark.parametrize("probabilistic", [True, False])
def test_one_member_per_row_gives_what_all_members_give_at_that_row(activation, probabilistic):
    model = shaken(activation=activation, probabilistic=probabilistic)
    x, members = th.randn(20, OBS_DIM + ACTION_DIM, generator=seeded(1)), th.randint(3, (20,), generator=seeded(2))
    everything = model(x.expand(3, -1, -1))
    for rows, all_rows in zip(model._split_head(model._forward_rows(x, members)), everything, strict=True):
        th.testing.assert_close(rows, all_rows[members, th.arange(20)])


@pytest.mark.parametrize("activation", sorted(ensemble_module.ACTIVATIONS))
@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE}))
def test_rows_in_blocks_with_and_without_gradients_and_onednn_give_the_same(monkeypatch, available, activation):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    model = shaken(ensemble_size=4, activation=activation)
    # Blocks that are whole, filled up, too small for oneDNN, and empty
    members = th.tensor([0] * 130 + [1] * 64 + [3] * 3)[th.randperm(197, generator=seeded(2))]
    x = th.randn(197, OBS_DIM + ACTION_DIM, generator=seeded(1))
    whole = model._forward_rows(x, members)
    assert whole.requires_grad
    monkeypatch.setattr(ensemble_module, "BLOCK", 100)
    th.testing.assert_close(model._forward_rows(x, members), whole)
    with th.no_grad():
        th.testing.assert_close(model._forward_rows(x, members), whole.detach(), atol=1e-5, rtol=1e-4)


def test_double_precision_does_without_onednn():
    model = shaken().double()
    rows = th.randn(200, OBS_DIM + ACTION_DIM, generator=seeded(1), dtype=th.float64)
    with th.no_grad():
        assert model._forward_rows(rows, th.zeros(200, dtype=th.long)).dtype == th.float64


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


# ---------------------------------------------------------------- elites and propagation


def test_elites_are_the_members_of_lowest_holdout_error_best_first():
    model = ensemble(ensemble_size=4, n_elites=2)
    model.holdout_mse.copy_(th.tensor([3.0, 1.0, 4.0, 0.5]))
    assert model.elites.tolist() == [3, 1]


def test_ts1_draws_elites_uniformly_for_each_row():
    model = shaken(ensemble_size=7, n_elites=5)
    members = model.sample_members(10_000, seeded())
    counts = members.bincount(minlength=7)
    assert set(counts.nonzero().flatten().tolist()) == set(model.elites.tolist())
    chi_square = ((counts[model.elites] - 2000) ** 2 / 2000).sum()
    assert chi_square < 18.5  # 1 in 1000 at 4 degrees of freedom
    assert 0.15 < (members[1:] == members[:-1]).float().mean() < 0.25  # a neighbour does not matter


def test_ts1_propagates_equal_rows_by_different_elites():
    model = shaken(ensemble_size=4, n_elites=3)
    obs, action = (t[:1].expand(100, -1) for t in inputs())
    step = model.step(obs, action, seeded(), deterministic=True)
    by_elite = {round(value, 4) for value in model.predict(obs[:1], action[:1]).mean[:, 0, -1].tolist()}
    assert {round(value, 4) for value in step.reward.tolist()} == by_elite
    assert len(by_elite) == 3


def test_ts_infinity_steps_every_row_with_the_member_it_is_given():
    model, (obs, action) = shaken(), inputs()
    prediction = model.predict(obs, action)
    for position, elite in enumerate(model.elites):
        step = model.step(obs, action, members=elite.expand(5), deterministic=True)
        th.testing.assert_close(th.cat([step.next_obs, step.reward[:, None]], 1), prediction.mean[position])


def test_expectation_is_the_elites_average_without_noise():
    model, (obs, action) = shaken(), inputs()
    first, second = (model.step(obs, action, seeded(seed), members="expectation") for seed in (0, 1))
    assert th.equal(first.next_obs, second.next_obs)
    th.testing.assert_close(first.next_obs, model.predict(obs, action).mean.mean(0)[:, :-1])


def test_noise_has_the_predicted_variance():
    model = shaken(ensemble_size=1, n_elites=1)
    obs, action = (t[:1].expand(20_000, -1) for t in inputs())
    step = model.step(obs, action, seeded())
    prediction = model.predict(obs[:1], action[:1])
    sampled = th.cat([step.next_obs, step.reward[:, None]], 1)
    th.testing.assert_close(sampled.mean(0), prediction.mean[0, 0], atol=0.05, rtol=0)
    th.testing.assert_close(sampled.var(0), prediction.variance[0, 0], rtol=0.05, atol=0)


def test_uncertainty_is_the_spread_of_means_and_the_mean_of_variances_of_elites():
    model, (obs, action) = shaken(), inputs()
    step, plain = (model.step(obs, action, seeded(), uncertainty=flag) for flag in (True, False))
    mean, variance = model.predict(obs, action)
    np.testing.assert_allclose(step.epistemic_std.detach(), mean.detach().numpy().std(axis=0), atol=1e-6)
    np.testing.assert_allclose(step.aleatoric_std.detach(), np.sqrt(variance.detach().numpy().mean(axis=0)), rtol=1e-5)
    assert th.equal(step.next_obs, plain.next_obs)  # asking for it changes nothing else
    assert plain.epistemic_std is plain.aleatoric_std is None


def test_a_single_elite_never_disagrees():
    step = shaken(n_elites=1).step(*inputs(), seeded(), uncertainty=True)
    assert step.epistemic_std.abs().max() == 0


@pytest.mark.parametrize("members", ["random", "expectation"])
def test_gradients_of_samples_match_finite_differences(members):
    model = shaken().double()
    obs, action = (t.double().requires_grad_() for t in inputs(3))

    def outcome(obs, action):
        step = model.step(obs, action, seeded(5), members=members)
        return step.next_obs, step.reward

    assert th.autograd.gradcheck(outcome, (obs, action))


def test_a_gradient_penalty_on_uncertainty_is_finite_even_without_any():
    model = shaken(n_elites=1, probabilistic=False)
    obs, action = (t.requires_grad_() for t in inputs())
    step = model.step(obs, action, uncertainty=True)
    (step.reward + step.epistemic_std.sum(1) + step.aleatoric_std.sum(1)).sum().backward()
    assert th.isfinite(obs.grad).all() and th.isfinite(action.grad).all()
    assert action.grad.abs().sum() > 0


def noisy_line(n=3000):
    """One dimension: quiet where x < 0, loud where x > 0, nothing seen beyond 1; the reward has no noise."""
    generator = seeded(11)
    x, action = (th.rand(n, 1, generator=generator) * 2 - 1 for _ in range(2))
    noise = th.where(x < 0, 0.02, 0.4) * th.randn(n, 1, generator=generator)
    return Transitions(x, action, x + 0.5 * action + noise, action.squeeze(1), th.zeros(n, dtype=th.bool))


@pytest.fixture(scope="module")
def fitted_line():
    one = spaces.Box(-1, 1, (1,))
    model = ensemble(obs_space=one, action_space=one, ensemble_size=5, n_elites=4, net_arch=(32, 32), learning_rate=3e-3)
    data = noisy_line()
    model.fit(data, seeded(), max_epochs=1)
    # The stopping rule watches the mean, which is soon as good as such noise allows; the noise itself takes longer
    x, y = model.inputs_and_targets(data)
    x, y = model.input_normalizer(x), model.target_normalizer(y)
    for batch in th.randint(len(data), (800, 5, 128), generator=seeded()):
        model.optimizer.zero_grad()
        model.loss(x[batch], y[batch]).backward()
        model.optimizer.step()
    return model


def uncertainty_at(model, x):
    step = model.step(th.full((50, 1), x), th.linspace(-1, 1, 50).unsqueeze(1), seeded(), uncertainty=True)
    return step.epistemic_std.mean(0).tolist(), step.aleatoric_std.mean(0).tolist()


def test_aleatoric_uncertainty_is_the_noise_in_the_data(fitted_line):
    (_, quiet), (_, loud) = uncertainty_at(fitted_line, -0.6), uncertainty_at(fitted_line, 0.6)
    assert quiet[0] == pytest.approx(0.02, rel=0.6)
    assert loud[0] == pytest.approx(0.4, rel=0.2)
    assert loud[1] < 0.1  # noise of the observation is not taken for noise of the reward


def test_epistemic_uncertainty_is_small_in_the_data_and_grows_outside(fitted_line):
    (quiet, _), (loud, _), (outside, _) = (uncertainty_at(fitted_line, x) for x in (-0.6, 0.6, 5.0))
    assert loud[0] < 0.1  # the members agree on the mean of what is merely noisy
    assert outside[0] > 3 * max(quiet[0], loud[0])


# ---------------------------------------------------------------- randomness


def test_equal_generators_give_equal_models_fits_and_steps():
    first, second = ensemble(seed=4), ensemble(seed=4)
    assert_equal_states(first, second)
    for model in (first, second):
        model.fit(transitions(), seeded(5), max_epochs=2)
    assert_equal_states(first, second)
    steps = [model.step(*inputs(), seeded(6)) for model in (first, second)]
    assert th.equal(steps[0].next_obs, steps[1].next_obs)
    assert not th.equal(ensemble(seed=5).weights[0], ensemble(seed=4).weights[0])
    assert not th.equal(first.step(*inputs(), seeded(7)).next_obs, steps[0].next_obs)


def test_with_a_generator_the_global_streams_are_left_alone(tmp_path):
    th_state, np_state = th.get_rng_state(), np.random.get_state()[1].copy()
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, (8,)))
    model.fit(transitions(terminated=th.arange(200) % 9 == 0), seeded(), max_epochs=1)
    model.step(*inputs(), seeded(), uncertainty=True)
    model.save(tmp_path / "model")
    ProbabilisticEnsemble.load(tmp_path / "model")
    assert th.equal(th.get_rng_state(), th_state)
    assert (np.random.get_state()[1] == np_state).all()


# ---------------------------------------------------------------- variants, optimiser


def test_a_deterministic_ensemble_has_no_noise_and_learns_by_squared_error():
    model, (obs, action) = shaken(probabilistic=False, learning_rate=0.01), inputs()
    members = th.zeros(5, dtype=th.long)
    steps = [model.step(obs, action, seeded(seed), members=members, uncertainty=True) for seed in (0, 1)]
    assert th.equal(steps[0].next_obs, steps[1].next_obs)
    assert steps[0].aleatoric_std.abs().max() == 0
    assert steps[0].epistemic_std.min() > 0
    x, y = (th.randn(3, 7, dim, generator=seeded(dim)) for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))
    mean, _ = model(x)
    assert model.loss(x, y).item() == pytest.approx(((mean - y) ** 2).mean().item() * 3, rel=1e-5)
    before = model.fit(transitions(), seeded(), max_epochs=1)
    after = model.fit(transitions(), seeded(), max_epochs=100)
    assert after.holdout_mse < 0.5 * before.holdout_mse
    assert after.holdout_nll == pytest.approx(after.holdout_mse)


@pytest.mark.parametrize("learned", [True, False])
def test_bounds_of_the_variance_move_only_if_they_are_learned(learned):
    model = ensemble(learn_logvar_bounds=learned)
    model.fit(transitions(), seeded(), max_epochs=2)
    for bound, initial in ((model.max_logvar, 0.5), (model.min_logvar, -10.0)):
        assert (bound == initial).all() != learned


@pytest.mark.parametrize("learn_logvar_bounds", [True, False])
def test_the_optimiser_is_adam_with_coupled_decay_on_weights_alone(learn_logvar_bounds):
    model = shaken(weight_decay=(0.1, 0.2, 0.3), learning_rate=0.01, learn_logvar_bounds=learn_logvar_bounds).double()
    x, y = (th.randn(3, 7, dim, generator=seeded(dim)).double() for dim in (OBS_DIM + ACTION_DIM, OBS_DIM + 1))
    decay = {f"weights.{layer}": value for layer, value in enumerate((0.1, 0.2, 0.3))}
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}
    first, second = ({name: th.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for t in range(1, 4):
        model.optimizer.zero_grad()
        model.loss(x, y).backward()
        for name, parameter in model.named_parameters():
            if name not in expected:
                continue
            gradient = parameter.grad + decay.get(name, 0.0) * expected[name]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            corrected = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
            expected[name] = expected[name] - 0.01 * corrected[0] / (corrected[1].sqrt() + 1e-8)
        model.optimizer.step()
    for name, parameter in model.named_parameters():
        if name in expected:
            th.testing.assert_close(parameter.detach(), expected[name], msg=name)
    assert ("max_logvar" in expected) == learn_logvar_bounds


@pytest.mark.parametrize(
    ("n_hidden", "weight_decay", "expected"),
    [
        (4, None, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)),
        (2, None, (2.5e-5, 7.5e-5, 1e-4)),
        (1, None, (2.5e-5, 1e-4)),
        (2, 0, (0.0, 0.0, 0.0)),
        (2, 1e-4, (1e-4, 1e-4, 1e-4)),
        (2, [1, 2, 3], (1.0, 2.0, 3.0)),
    ],
)
def test_weight_decay_is_the_papers_stretched_over_the_layers_or_the_users(n_hidden, weight_decay, expected):
    assert ensemble(net_arch=(8,) * n_hidden, weight_decay=weight_decay).weight_decay == pytest.approx(expected)


# ---------------------------------------------------------------- user functions


def test_scaling_an_action_is_undone_by_unscaling():
    model = ensemble()
    in_env = th.tensor([[-2.0, 0.0], [6.0, 1.0], [2.0, 0.5]])
    scaled = th.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    th.testing.assert_close(model.scale_action(in_env), scaled)
    th.testing.assert_close(model.unscale_action(scaled), in_env)


def test_user_functions_receive_raw_observations_and_actions_in_the_environments_scale():
    model = shaken(
        reward_fn=lambda obs, action, next_obs: action[:, 0] + 100 * obs[:, 0] + 1000 * next_obs[:, 0],
        termination_fn=lambda obs, action, next_obs: action[:, 0] > 5.9,
    )
    obs, action = th.ones(3, OBS_DIM), th.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    step = model.step(obs, action, seeded())
    th.testing.assert_close(step.reward, th.tensor([-2.0, 2.0, 6.0]) + 100 + 1000 * step.next_obs[:, 0])
    assert step.terminated.tolist() == [False, False, True]


def test_a_reward_function_lets_gradients_through():
    model = shaken(reward_fn=lambda obs, action, next_obs: (action**2).sum(1) + next_obs.sum(1))
    obs, action = (t.requires_grad_() for t in inputs())
    model.step(obs, action, seeded()).reward.sum().backward()
    assert (action.grad != 0).all() and (obs.grad != 0).all()


def test_a_learned_termination_is_fitted_on_actions_in_the_environments_scale(monkeypatch):
    head, seen = LearnedTermination(OBS_DIM, ACTION_DIM, (8,)), []

    def spy(rows, generator, max_gradient_steps):
        seen.append(rows)
        return {"precision": 0.5, "recall": 0.25}

    monkeypatch.setattr(head, "fit", spy)
    data = transitions()
    model = ensemble(termination_fn=head)
    report = model.fit(data, seeded(), max_epochs=1)
    assert (report.termination_precision, report.termination_recall) == (0.5, 0.25)
    th.testing.assert_close(seen[0].actions, model.unscale_action(data.actions))
    assert seen[0].observations is data.observations


def test_a_learned_termination_predicts_from_actions_in_minus_one_to_one():
    data = transitions(2000)
    data = transitions(2000, terminated=data.actions[:, 0] > 0.5)
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, (32,), generator=seeded()))
    model.fit(data, seeded(), max_epochs=1)
    assert (model.predict_termination(data) == data.terminated).float().mean() > 0.95


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"max_gradient_steps": 5}, 5),
        ({"max_gradient_steps": 40}, 40),
        ({"max_epochs": 2}, 320),  # two epochs would teach it nothing: it may take more steps than the dynamics
        ({"max_epochs": 200}, 400),
    ],
    ids=str,
)
def test_a_learned_termination_has_the_budget_of_the_dynamics(limit, expected, monkeypatch):
    head, steps = LearnedTermination(OBS_DIM, ACTION_DIM, (8,)), []
    monkeypatch.setattr(head, "_update", lambda inputs, labels: steps.append(len(inputs)))
    data = transitions(600)
    monkeypatch.setattr("sb3_mbrl.dynamics.learned_termination._PATIENCE", 100)
    data = replace(data, terminated=data.actions[:, 0] > 0.5)
    ensemble(termination_fn=head).fit(data, seeded(), patience=300, **limit)
    assert len(steps) == expected


@pytest.mark.parametrize(
    "returned",
    [th.zeros(5, 1), th.zeros(5), th.zeros(5, 1, dtype=th.bool), th.zeros((), dtype=th.bool), th.zeros(5, dtype=th.int)],
)
def test_a_termination_function_that_does_not_give_one_bool_a_row_is_refused(returned):
    model = shaken(termination_fn=lambda obs, *_: returned if len(obs) == 5 else obs[:, 0] > 0)  # right in its trial
    with pytest.raises(ValueError, match=r"termination_fn must return a bool tensor of shape \(5,\)"):
        model.step(*inputs(), seeded())


@pytest.mark.parametrize("returned", [th.zeros(5, 1), th.zeros(()), th.zeros(1)])
def test_a_reward_function_that_does_not_give_one_number_a_row_is_refused(returned):
    model = shaken(reward_fn=lambda obs, *_: returned if len(obs) == 5 else obs[:, 0])
    with pytest.raises(ValueError, match=r"reward_fn must return a float tensor of shape \(5,\)"):
        model.step(*inputs(), seeded())


def test_functions_are_tried_where_they_are_given_and_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"reward_fn must return.* got numpy\.ndarray"):
        ensemble(reward_fn=lambda obs, action, next_obs: obs[:, 0].numpy())
    shaken(reward_fn=lambda obs, action, next_obs: obs[:, 0]).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"reward_fn must return a float tensor of shape \(2,\)"):
        ProbabilisticEnsemble.load(tmp_path / "model", reward_fn=lambda obs, action, next_obs: obs)


# ---------------------------------------------------------------- functions of the user beside the data


def known(obs, action, next_obs):
    return obs[:, 0] - 0.1 * (action**2).sum(dim=1)


def data_with_known_reward(model, n=200):
    data = transitions(n)
    return replace(data, rewards=known(data.observations, model.unscale_action(data.actions), data.next_observations))


def fits(model, data, n=2):
    return [model.fit(data, seeded(), max_epochs=1) for _ in range(n)]


def test_a_reward_function_that_the_data_confirm_is_not_spoken_of():
    model = ensemble(reward_fn=known)
    report = fits(model, data_with_known_reward(model))[0]
    assert report.reward_agrees and report.note == "" and report.reward_mse < 1e-10


def test_a_reward_in_other_units_is_warned_of_once():
    model = ensemble(reward_fn=lambda *rows: 100 * known(*rows))
    data = data_with_known_reward(model)
    with pytest.warns(UserWarning, match=r"reward_fn pays .* 200 real .*correlation 1\.00.* It is 100 times") as caught:
        reports = fits(model, data)
    assert len(caught) == 1 and [report.note for report in reports] == ["", ""] and not reports[0].reward_agrees


def test_another_reward_is_noted_once_as_it_may_be_meant():
    model = ensemble(reward_fn=lambda *rows: -known(*rows))
    first, second = fits(model, data_with_known_reward(model))
    assert "reward_fn pays" in first.note and "(correlation -1.00)" in first.note
    assert second.note == "" and not second.reward_agrees and second.reward_mse > 0.01


def test_a_note_on_rewards_that_nobody_has_found_yet_does_not_silence_the_warning():
    model = ensemble(reward_fn=lambda *rows: 100 * known(*rows))
    data = data_with_known_reward(model)
    assert "for which the environment paid 0" in fits(model, replace(data, rewards=th.zeros(200)), 1)[0].note
    with pytest.warns(UserWarning, match="It is 100 times"):
        fits(model, data)


def test_a_constant_reward_in_other_units_is_warned_of():
    model = ensemble(reward_fn=lambda obs, action, next_obs: th.full((len(obs),), 100.0))
    with pytest.warns(UserWarning, match="reward_fn pays 100 a step .* paid 1. It is 100 times"):
        fits(model, replace(transitions(200), rewards=th.ones(200)))


def test_a_reward_that_is_not_finite_on_real_transitions_is_an_error():
    data = transitions(200)
    model = ensemble(reward_fn=lambda obs, action, next_obs: th.log(obs[:, 0]))
    n_bad = int((data.observations[:, 0] <= 0).sum())
    with pytest.raises(ValueError, match=f"reward_fn returns NaN or infinity for {n_bad} of 200 real transitions"):
        model.fit(data, seeded(), max_epochs=1)


def test_a_termination_that_the_data_contradict_is_warned_of_once_for_each_function():
    model = ensemble(termination_fn=lambda obs, action, next_obs: obs[:, 0] > -th.inf)
    data = transitions(200)
    message = "disagrees with 200 of 200 real transitions: 200 of the 200 that it ends went on, and it misses 0 of the 0"
    with pytest.warns(UserWarning, match=message) as caught:
        reports = fits(model, data)
    assert len(caught) == 1 and reports[0].termination_precision == 0
    model.termination_fn = lambda obs, action, next_obs: obs[:, 0] > 0
    with pytest.warns(UserWarning, match="termination_fn disagrees"):
        fits(model, data)


def test_where_nothing_ever_ended_there_are_no_scores_of_a_termination():
    assert not any("termination" in name for name in fits(ensemble(), transitions(200), 1)[0].scalars())


def test_a_prediction_that_is_not_finite_ends_the_task():
    obs, action = inputs()
    obs[2, 0] = float("nan")
    assert shaken().step(obs, action, seeded()).terminated.tolist() == [False, False, True, False, False]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("members", ["random", "expectation"])
@pytest.mark.parametrize(
    ("obs", "action"),
    [
        (th.zeros(5, OBS_DIM + 1), th.zeros(5, ACTION_DIM)),
        (th.zeros(5, OBS_DIM - 1), th.zeros(5, ACTION_DIM + 1)),
        (th.zeros(5, OBS_DIM), th.zeros(5, ACTION_DIM - 1)),
        (th.zeros(1, OBS_DIM), th.zeros(5, ACTION_DIM)),
        (th.zeros(OBS_DIM), th.zeros(ACTION_DIM)),
        (th.zeros(2, 5, OBS_DIM), th.zeros(2, 5, ACTION_DIM)),
        (th.zeros(5, OBS_DIM, dtype=th.float64), th.zeros(5, ACTION_DIM)),
        (th.zeros(5, OBS_DIM), th.zeros(5, ACTION_DIM, dtype=th.float64)),
    ],
)
def test_inputs_of_a_wrong_shape_or_type_raise(obs, action, members):
    with pytest.raises((RuntimeError, ValueError)):
        shaken().step(obs, action, seeded(), members=members)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("mean", "'random', 'expectation' or a tensor"),
        (th.zeros(1, dtype=th.long), r"shape \(5,\)"),
        (th.zeros(6, dtype=th.long), r"shape \(5,\)"),
    ],
)
def test_members_that_say_nothing_about_the_rows_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        shaken().step(*inputs(), seeded(), members=members)


def test_a_member_that_does_not_exist_raises():
    with pytest.raises(IndexError):
        shaken().step(*inputs(), members=th.full((5,), 3))


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ({"rewards": th.zeros(200, 1)}, (RuntimeError, ValueError)),
        ({"actions": th.zeros(200, ACTION_DIM + 1)}, (RuntimeError, ValueError)),
        ({"observations": th.zeros(200, OBS_DIM).double()}, (RuntimeError, ValueError)),
    ],
)
def test_transitions_of_a_wrong_shape_or_type_raise(rows, error):
    with pytest.raises(error):
        ensemble().fit(Transitions(**{**vars(transitions()), **rows}), seeded(), max_epochs=1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_elites": 4}, "n_elites must lie between 1 and ensemble_size=3"),
        ({"n_elites": 0}, "n_elites must be an integer of at least 1"),
        ({"ensemble_size": 0, "n_elites": 0}, "ensemble_size must be an integer from 1"),
        ({"activation": "swish"}, "silu"),
        ({"nll_beta": -0.1}, "nll_beta"),
        ({"nll_beta": 1.1}, "nll_beta"),
        ({"net_arch": ()}, "net_arch must be a list of 1 to 100 elements"),
        ({"net_arch": (16, 0)}, "each an integer from 1"),
        ({"weight_decay": (1e-5, 1e-5)}, "2 values for 3 layers"),
        ({"learning_rate": -1.0}, "learning_rate must be a number of at least 0"),
    ],
)
def test_arguments_that_make_no_model_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ensemble(**kwargs)


@pytest.mark.parametrize(
    ("obs_space", "advice"),
    [
        (spaces.Dict({"position": OBS_SPACE}), "FlattenObservation"),
        (spaces.Discrete(4), "continuous observation"),
        (spaces.MultiDiscrete([2, 3]), "continuous observation"),
        (spaces.MultiBinary(3), "continuous observation"),
        (spaces.Tuple([OBS_SPACE]), "flat Box"),
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), "images are not supported"),
        (spaces.Box(-1, 1, (2, 3)), "FlattenObservation"),
        (spaces.Box(0, 9, (3,), np.int64), "feature extractor"),
    ],
)
def test_an_observation_space_that_is_not_supported_is_refused_with_advice(obs_space, advice):
    with pytest.raises(ValueError, match=advice):
        ensemble(obs_space=obs_space)


@pytest.mark.parametrize(
    ("action_space", "advice"),
    [
        (spaces.MultiDiscrete([2, 3]), "Discrete or Box actions"),
        (spaces.Box(-np.inf, np.inf, (2,)), "TransformAction"),
        (spaces.Box(np.array([-1.0, -np.inf], np.float32), 1.0, (2,)), "TransformAction"),
    ],
)
def test_an_action_space_that_is_not_supported_is_refused_with_advice(action_space, advice):
    with pytest.raises(ValueError, match=advice):
        ensemble(action_space=action_space)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"probabilistic": False, "activation": "relu", "weight_decay": (0.1, 0.2, 0.3), "normalize_targets": False},
        {"learn_logvar_bounds": False, "nll_beta": 0.0, "learning_rate": 1e-4, "ensemble_size": 5, "n_elites": 3},
    ],
)
def test_a_loaded_model_steps_and_goes_on_learning_bit_for_bit(tmp_path, kwargs):
    model = ensemble(**kwargs)
    model.fit(transitions(), seeded(), max_epochs=3)
    model.save(tmp_path / "folder" / "model.safetensors")
    loaded = ProbabilisticEnsemble.load(tmp_path / "folder" / "model.safetensors", device="cpu")
    assert_equal_states(model, loaded)
    for name in (*kwargs, "net_arch", "weight_decay", "observation_space", "action_space"):
        assert getattr(loaded, name) == getattr(model, name), name
    steps = [m.step(*inputs(), seeded(3), uncertainty=True) for m in (model, loaded)]
    assert all(th.equal(left, right) for left, right in zip(*steps, strict=True))
    reports = [m.fit(transitions(300, seed=5), seeded(7), max_epochs=3) for m in (model, loaded)]
    assert reports[0].holdout_mse == reports[1].holdout_mse
    assert_equal_states(model, loaded)


def test_an_unfitted_model_stays_unfitted(tmp_path):
    ensemble().save(tmp_path / "model")
    assert not ProbabilisticEnsemble.load(str(tmp_path / "model")).is_fitted


def test_what_is_printed_of_a_model(tmp_path):
    model = ensemble()
    dims = f"observation_dim={OBS_DIM}, action_dim={ACTION_DIM}"
    sizes = f"ProbabilisticEnsemble({dims}, ensemble_size=3, n_elites=2, net_arch=(16, 12)"
    assert repr(model) == f"{sizes}, not fitted)"
    report = model.fit(transitions(), seeded(), max_epochs=1)
    assert repr(model) == f"{sizes}, n_fitted=200, holdout_mse={report.holdout_mse:.3g})"
    model.save(tmp_path / "model")
    assert repr(ProbabilisticEnsemble.load(tmp_path / "model")) == repr(model)
    head = LearnedTermination(2, 1, net_arch=(8, 6))
    assert repr(head) == "LearnedTermination(input_dim=5, net_arch=(8, 6), termination_seen=False)"


def test_a_learned_termination_comes_back_and_goes_on_learning(tmp_path):
    data = transitions(terminated=th.arange(200) % 4 == 0)
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, net_arch=(8, 6), learning_rate=3e-3))
    model.fit(data, seeded(), max_epochs=1)
    model.save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model", device="cpu")
    assert_equal_states(model, loaded)
    for m in (model, loaded):
        m.fit(data, seeded(1), max_epochs=1)
    assert_equal_states(model, loaded)


def test_a_known_termination_comes_back(tmp_path):
    model = ensemble(termination_fn=TerminatesOutside((Bound(0, 1, 0.7, float("inf")),)))
    model.save(tmp_path / "model")
    assert ProbabilisticEnsemble.load(tmp_path / "model").termination_fn == model.termination_fn


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spaces_come_back_with_infinite_bounds_and_their_type(tmp_path, dtype):
    low = np.array([-np.inf, -0.1, 1 / 3], dtype)
    obs_space = spaces.Box(low, np.array([np.inf, np.inf, 2 / 3], dtype), dtype=dtype)
    action_space = spaces.Box(-0.4, 0.1, (2, 2), np.float32)
    ensemble(obs_space=obs_space, action_space=action_space).save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model")
    assert loaded.observation_space == obs_space
    assert loaded.action_space == action_space


@pytest.mark.parametrize("name", ["reward_fn", "termination_fn"])
def test_functions_of_the_user_are_asked_for_again(tmp_path, name):
    def function(obs, action, next_obs):
        return next_obs[:, 0] > 0 if name == "termination_fn" else next_obs[:, 0]

    ensemble(**{name: function}).save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"{name} of yours: pass it again"):
        ProbabilisticEnsemble.load(tmp_path / "model")
    assert getattr(ProbabilisticEnsemble.load(tmp_path / "model", **{name: function}), name) is function


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "model"
    ensemble().save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        ProbabilisticEnsemble.load(path)


def test_files_of_others_are_refused(tmp_path):
    save_file({"weights.0": th.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not written by ProbabilisticEnsemble"):
        ProbabilisticEnsemble.load(tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"weights": [0.0] * 100}))
    with pytest.raises(ValueError, match="not a safetensors file"):
        ProbabilisticEnsemble.load(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError):
        ProbabilisticEnsemble.load(tmp_path / "missing")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A model with everything that a file can hold, and its parts."""
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, net_arch=(4,)))
    model.fit(transitions(terminated=th.arange(200) % 4 == 0), seeded(), max_epochs=1)
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save(path)
    tensors, config = load_tensors(path, FILE_FORMAT)
    return path, tensors, json.loads(config)


def test_a_flipped_bit_is_damage(saved_once, tmp_path):
    content = saved_once[0].read_bytes()
    for bit in range(0, 8 * len(content), 8 * len(content) // 200 - 1):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(ValueError, match="damaged"):
            ProbabilisticEnsemble.load(tmp_path / "changed")


@pytest.mark.parametrize(
    "name, change",
    [
        ("optimizer.0.exp_avg", lambda tensor: tensor.flatten()[:1].clone()),  # the kernel would write beyond it
        ("optimizer.0.exp_avg_sq", lambda tensor: None),
        ("optimizer.3.step", lambda tensor: tensor[None]),
        ("optimizer.99.step", lambda tensor: th.zeros(())),
        ("optimizer.x.step", lambda tensor: th.zeros(())),
        ("termination_optimizer.0.exp_avg", lambda tensor: tensor[:1].clone()),
        ("optimizer.1.exp_avg", lambda tensor: tensor.double()),
        ("weights.1", lambda tensor: tensor[:, :1].clone()),
        ("biases.0", lambda tensor: None),
        ("biases.0", lambda tensor: tensor.half()),
        ("input_normalizer.std", lambda tensor: tensor * float("nan")),
        ("optimizer.0.exp_avg", lambda tensor: tensor + float("inf")),
        ("surplus", lambda tensor: th.zeros(1)),
    ],
)
def test_tensors_of_another_model_are_refused(saved_once, tmp_path, name, change):
    _, tensors, config = saved_once
    changed = change(tensors.get(name))
    kept = {other: tensor for other, tensor in tensors.items() if other != name}
    save_tensors(tmp_path / "model", {**kept, **({} if changed is None else {name: changed})}, FILE_FORMAT, json.dumps(config))
    with pytest.raises(ValueError, match="does not fit|holds NaN or infinity|do not have the sizes"):
        ProbabilisticEnsemble.load(tmp_path / "model")


NASTY = [None, True, -1, 2.5, float("nan"), 10**12, "os.system", [[]], {"n": 10**12, "start": 0, "dtype": "int64"}]
RIGHT = [("learning_rate", 2.5), ("learning_rate", 10**12), ("n_fitted", -1), ("n_fitted", 10**12), ("n_fitted", None)]


def test_a_configuration_of_anything_else_is_refused(saved_once, tmp_path):
    _, tensors, config = saved_once
    bounds = [{"start": 9, "stop": None, "low": 0, "high": None, "inclusive": True}]
    changes = [{name: value} for name in config for value in NASTY if value != config[name] and (name, value) not in RIGHT]
    changes += [{"termination_fn": {"kind": "outside", "bounds": bounds}, "termination_kwargs": None}]
    changes += [{"net_arch": [10**9, 12]}, {"ensemble_size": 10**9}, {"termination_kwargs": {"net_arch": [10**9]}}]
    configs = [{**config, **change} for change in changes]
    configs += [{key: value for key, value in config.items() if key != name} for name in config]
    for wrong in (*configs, [], None, "config"):
        save_tensors(tmp_path / "model", tensors, FILE_FORMAT, json.dumps(wrong))
        with pytest.raises(ValueError):
            ProbabilisticEnsemble.load(tmp_path / "model")


def test_a_function_takes_the_place_of_a_learned_termination(saved_once):
    model = ProbabilisticEnsemble.load(saved_once[0], termination_fn=NeverTerminates())
    assert model.termination_fn == NeverTerminates()


def test_a_model_that_diverged_does_not_replace_a_good_file(tmp_path):
    good, diverged = ensemble(seed=1), ensemble(seed=2)
    good.save(tmp_path / "model")
    with th.no_grad():
        diverged.weights[1][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"was not saved: it holds NaN or infinity in 'weights.1'"):
        diverged.save(tmp_path / "model")
    assert_equal_states(ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"), good)


def test_modules_of_the_user_may_hold_infinity(tmp_path):
    class Reward(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", th.tensor([0.0, -float("inf")]))

        def forward(self, obs, action, next_obs):
            return obs[:, 0]

    ensemble(reward_fn=Reward()).save(tmp_path / "model")
    ProbabilisticEnsemble.load(tmp_path / "model", reward_fn=Reward())


def test_a_save_that_is_interrupted_leaves_the_last_good_model(tmp_path, monkeypatch):
    good = ensemble(seed=1)
    good.save(tmp_path / "model")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        ensemble(seed=2).save(tmp_path / "model")
    assert_equal_states(ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"), good)


def test_a_file_is_json_and_numbers_and_nothing_is_unpickled(tmp_path, monkeypatch):
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM))
    model.fit(transitions(terminated=th.arange(200) % 4 == 0), seeded(), max_epochs=1)
    model.save(tmp_path / "model")
    content = (tmp_path / "model").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["config"])["ensemble_size"] == 3
    numbers = sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in header.values())
    assert 8 + int.from_bytes(content[:8], "little") + numbers == len(content)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (th, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert_equal_states(ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"), model)


# ---------------------------------------------------------------- discrete actions

DISCRETE = spaces.Discrete(3, start=2)


def discrete_transitions(n=300, seed=0):
    """The action decides the direction: left, nowhere, right; the reward is the direction."""
    generator = seeded(seed)
    obs, choice = th.randn(n, OBS_DIM, generator=generator), th.randint(3, (n,), generator=generator)
    direction = choice.float() - 1
    next_obs = obs + direction.unsqueeze(1) * th.tensor([1.0, 0.0, -2.0])
    return Transitions(obs, th.eye(3)[choice], next_obs, direction, th.zeros(n, dtype=th.bool))


@pytest.fixture(scope="module")
def fitted_to_discrete():
    model = ensemble(action_space=DISCRETE)
    model.fit(discrete_transitions(), seeded(), batch_size=64, max_epochs=60)
    return model


@pytest.mark.parametrize("members", ["random", "expectation"])
def test_discrete_actions_are_one_hot_and_their_effect_is_learned(fitted_to_discrete, members):
    assert fitted_to_discrete.action_dim == 3
    data = discrete_transitions(100, seed=1)
    step = fitted_to_discrete.step(data.observations, data.actions, seeded(), members, deterministic=True)
    change = (data.next_observations - data.observations, step.next_obs - data.observations)
    th.testing.assert_close(*change, atol=0.5, rtol=0)
    assert step.reward.round().equal(data.rewards)


def test_discrete_actions_have_no_other_scale():
    seen = []

    def reward(obs, action, next_obs):
        seen.append(action)
        return obs[:, 0]

    model, actions = ensemble(action_space=DISCRETE, reward_fn=reward), th.eye(3)
    seen.clear()
    assert model.unscale_action(actions).equal(actions)
    assert model.scale_action(actions).equal(actions)
    model.step(th.zeros(3, OBS_DIM), actions, seeded())
    assert seen[0].equal(actions)


def test_a_model_of_discrete_actions_comes_back(fitted_to_discrete, tmp_path):
    fitted_to_discrete.save(tmp_path / "model")
    loaded = ProbabilisticEnsemble.load(tmp_path / "model", device="cpu")
    assert loaded.action_space == DISCRETE
    assert_equal_states(fitted_to_discrete, loaded)
    steps = [model.step(th.zeros(3, OBS_DIM), th.eye(3), seeded(3)) for model in (fitted_to_discrete, loaded)]
    assert steps[0].next_obs.equal(steps[1].next_obs)


def test_a_learned_termination_of_discrete_actions_comes_back(tmp_path):
    model = ensemble(action_space=DISCRETE, termination_fn=LearnedTermination(OBS_DIM, 3, net_arch=(8,)))
    model.save(tmp_path / "model")
    assert_equal_states(model, ProbabilisticEnsemble.load(tmp_path / "model", device="cpu"))


def test_discrete_actions_that_are_not_one_hot_raise():
    with pytest.raises(RuntimeError):
        ensemble(action_space=DISCRETE).step(th.zeros(3, OBS_DIM), th.tensor([[2.0], [3.0], [4.0]]), seeded())
