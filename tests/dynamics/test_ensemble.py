import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from tests.dynamics.models import (
    ACTION_DIM,
    OBS_DIM,
    assert_equal_states,
    ensemble,
    inputs,
    reference_member,
    seeded,
    shaken,
    transitions,
)


def reference_step(model, obs, action, member, noise):
    """The prediction for one row: normalise, predict, sample, undo the normalisation, add the change to the observation."""
    statistics = [
        getattr(n, s).double().numpy() for n in (model.input_normalizer, model.target_normalizer) for s in ("mean", "std")
    ]
    x = (np.concatenate([obs, action]) - statistics[0]) / statistics[1]
    mean, logvar = reference_member(model, member, x)
    output = (mean + np.sqrt(np.exp(logvar)) * noise) * statistics[3] + statistics[2]
    return obs + output[:-1], output[-1]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_equals_the_papers_prediction_for_each_row(deterministic):
    model = shaken()
    (obs, action), members = inputs(), th.tensor([2, 0, 1, 1, 2])
    step = model.step(obs, action, seeded(3), members=members, deterministic=deterministic)
    noise = th.zeros(5, OBS_DIM + 1) if deterministic else th.randn(5, OBS_DIM + 1, generator=seeded(3))
    for row in range(5):
        expected = reference_step(model, *(t[row].double().numpy() for t in (obs, action)), members[row], noise[row].numpy())
        np.testing.assert_allclose(step.next_obs[row].detach(), expected[0], atol=1e-5)
        assert step.reward[row].item() == pytest.approx(expected[1], abs=1e-5)
    assert step.terminated.tolist() == [False] * 5


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
    """One-dimensional data with little noise for x < 0, much for x > 0, and none beyond 1; the reward has no noise."""
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


def test_with_a_generator_the_global_streams_are_not_used(tmp_path):
    th_state, np_state = th.get_rng_state(), np.random.get_state()[1].copy()
    model = ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, (8,)))
    model.fit(transitions(terminated=th.arange(200) % 9 == 0), seeded(), max_epochs=1)
    model.step(*inputs(), seeded(), uncertainty=True)
    model.save(tmp_path / "model")
    ProbabilisticEnsemble.load(tmp_path / "model")
    assert th.equal(th.get_rng_state(), th_state)
    assert (np.random.get_state()[1] == np_state).all()


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
def test_the_optimizer_is_adam_with_coupled_decay_on_weights_only(learn_logvar_bounds):
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
def test_members_that_do_not_match_the_rows_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        shaken().step(*inputs(), seeded(), members=members)


def test_a_member_that_does_not_exist_raises():
    with pytest.raises(IndexError):
        shaken().step(*inputs(), members=th.full((5,), 3))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_elites": 4}, "n_elites must lie between 1 and ensemble_size=3"),
        ({"activation": "swish"}, "silu"),
        ({"precision": "half"}, r"precision must be one of \['float32', 'bfloat16'\], got 'half'"),
        ({"weight_decay": (1e-5, 1e-5)}, "one for each of 3 layers .*, got 2 numbers"),
        ({"obs_space": spaces.Discrete(4)}, "flat Box observations"),
    ],
)
def test_invalid_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ensemble(**kwargs)


def test_a_model_is_printed_in_one_line(tmp_path):
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
