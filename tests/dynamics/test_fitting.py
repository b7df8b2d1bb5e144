import dataclasses
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import fitting
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import fit

OBS_DIM, ACTION_DIM = 3, 1


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


def ensemble(**kwargs):
    small = {"ensemble_size": 3, "n_elites": 2, "net_arch": (16, 16), "generator": seeded(), "device": "cpu"}
    obs_space, action_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,)), spaces.Box(-1, 1, (ACTION_DIM,))
    return ProbabilisticEnsemble(obs_space, action_space, **{**small, **kwargs})


def transitions(n=200, seed=0, scale=(1.0, 1.0, 1.0), reward_scale=1.0):
    generator, scale = seeded(seed), th.tensor(scale)
    obs = th.randn(n, OBS_DIM, generator=generator)
    action = th.rand(n, ACTION_DIM, generator=generator) * 2 - 1
    change = 0.1 * th.tanh(obs.roll(1, 1)) + 0.3 * action
    never = th.zeros(n, dtype=th.bool)
    return Transitions(obs * scale, action, (obs + change) * scale, reward_scale * obs[:, 0] * action[:, 0], never)


def split_of(n, seed, n_holdout):
    """The first draw from the generator of a fit decides which rows are held out."""
    order = th.randperm(n, generator=seeded(seed))
    return order[n_holdout:], order[:n_holdout]


@pytest.fixture
def holdout_errors(monkeypatch):
    """Replaces the holdout errors by the given ones: one list per epoch, with one number per member; the last one repeats."""

    def show(*epochs):
        epochs = list(epochs)
        monkeypatch.setattr(fitting, "_member_mse", lambda *_: th.tensor(epochs.pop(0) if len(epochs) > 1 else epochs[0]))

    return show


@pytest.mark.parametrize("patience", [0, 1, 5])
def test_it_stops_after_more_than_patience_epochs_without_a_gain(holdout_errors, patience):
    holdout_errors([1.0, 1.0, 1.0])
    report = fit(ensemble(), transitions(), seeded(), patience=patience, patience_steps=0)
    assert report.n_epochs == 1 + patience + 1  # the first epoch is always a gain


def test_the_default_patience_is_the_papers_5_epochs_and_100_steps(holdout_errors):
    holdout_errors([1.0, 1.0, 1.0])
    assert fit(ensemble(), transitions(), seeded(), patience_steps=0).n_epochs == 7
    assert fit(ensemble(), transitions(), seeded()).n_gradient_steps == 1 + 100  # one step an epoch
    assert fit(ensemble(), transitions(), seeded(), batch_size=4).n_epochs == 7  # 40 steps an epoch


def test_patience_lasts_for_a_number_of_gradient_steps_too(holdout_errors):
    holdout_errors([1.0, 1.0, 1.0])
    report = fit(ensemble(), transitions(), seeded(), batch_size=40, patience=2, patience_steps=20)  # 4 steps an epoch
    assert report.n_gradient_steps == 4 + 20


def test_a_gain_of_one_member_is_enough_to_continue(holdout_errors):
    holdout_errors([1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 0.9], [2.0, 2.0, 2.0])
    assert fit(ensemble(), transitions(), seeded(), patience=2, patience_steps=0).n_epochs == 3 + 3


def test_a_gain_must_exceed_one_percent_of_the_best_so_far(holdout_errors):
    # 0.991 is none; 0.985 is one, measured against 1 and not against 0.991
    holdout_errors([1.0, 1.0, 1.0], [0.991, 1.0, 1.0], [0.985, 1.0, 1.0], [0.98, 1.0, 1.0])
    assert fit(ensemble(), transitions(), seeded(), patience=3, patience_steps=0).n_epochs == 3 + 4


def test_every_fit_starts_with_new_bests(holdout_errors):
    model = ensemble()
    holdout_errors([1e-9] * 3)
    fit(model, transitions(), seeded(), patience=1, patience_steps=0)
    holdout_errors([100.0] * 3, [50.0] * 3)
    assert fit(model, transitions(), seeded(), patience=1, patience_steps=0).n_epochs == 2 + 2


def test_each_member_gets_its_own_best_snapshot_back(holdout_errors):
    model, after_epoch = ensemble(), {}
    # best epochs: 2, 4, 1
    holdout_errors([0.5, 0.9, 0.1], [0.2, 0.8, 0.3], [0.4, 0.7, 0.2], [0.3, 0.3, 0.4], [0.9, 0.9, 0.9])

    def remember(epoch, _):
        after_epoch[epoch] = [p.detach().clone() for p in (*model.weights, *model.biases)]

    fit(model, transitions(), seeded(), patience=2, patience_steps=0, on_epoch=remember)
    assert len(after_epoch) == 7
    for member, best in enumerate((2, 4, 1)):
        for parameter, remembered in zip((*model.weights, *model.biases), after_epoch[best], strict=True):
            assert th.equal(parameter[member], remembered[member])
            assert not th.equal(parameter[member], after_epoch[7][0][member])


def test_members_are_ranked_by_the_holdout_error_of_what_was_restored():
    model, data = ensemble(ensemble_size=5), transitions()
    report = model.fit(data, seeded(3), max_epochs=20)
    _, holdout = split_of(200, 3, 40)
    inputs, targets = model.inputs_and_targets(data[holdout])
    mean, _ = model(model.input_normalizer(inputs).expand(5, -1, -1))
    mse = ((mean - model.target_normalizer(targets)) ** 2).mean(dim=(1, 2))
    th.testing.assert_close(model.holdout_mse, mse.detach())
    assert model.elites.tolist() == mse.argsort()[:2].tolist()
    assert report.holdout_mse == pytest.approx(mse[model.elites].mean().item(), rel=1e-5)


@pytest.mark.parametrize(("budget", "n_steps"), [({"max_epochs": 3}, 12), ({"max_gradient_steps": 9}, 9)])
def test_a_budget_caps_a_fit(budget, n_steps):
    report = fit(ensemble(), transitions(), seeded(), batch_size=40, **budget)  # 4 steps an epoch
    assert (report.n_epochs, report.n_gradient_steps) == (3, n_steps)


def test_the_holdout_is_drawn_anew_in_each_fit(monkeypatch):
    splits, generator = [], seeded()
    split = fitting._split

    def spy(*args):
        splits.append(split(*args))
        return splits[-1]

    monkeypatch.setattr(fitting, "_split", spy)
    model = ensemble()
    for _ in range(2):
        fit(model, transitions(), generator, max_epochs=1)
    (_, first), (_, second) = splits
    assert set(first.tolist()) != set(second.tolist())


def test_on_epoch_gets_every_epoch_and_the_best_error_so_far():
    heard = []
    model = ensemble(learning_rate=1e-2)
    report = fit(model, transitions(), seeded(), max_epochs=40, on_epoch=lambda *args: heard.append(args))
    assert [epoch for epoch, _ in heard] == list(range(1, report.n_epochs + 1))
    errors = [error for _, error in heard]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("n", "kwargs", "n_train", "n_holdout"),
    [
        (10, {}, 8, 2),
        (200, {}, 160, 40),
        (200, {"holdout_ratio": 0.1}, 180, 20),
        (200, {"holdout_ratio": 0.0}, 199, 1),
        (200, {"max_holdout": 7}, 193, 7),
        (26_000, {}, 21_000, 5_000),
    ],
)
def test_the_holdout_is_a_fifth_of_the_rows_but_at_most_5000(n, kwargs, n_train, n_holdout):
    report = fit(ensemble(), transitions(n), seeded(), max_epochs=1, batch_size=1024, **kwargs)
    assert (report.n_train, report.n_holdout) == (n_train, n_holdout)


def test_statistics_come_from_the_training_rows_alone():
    model, data = ensemble(), transitions()
    train, holdout = split_of(200, 3, 40)
    data.observations[holdout] += 1000.0
    data.next_observations[holdout] += 2000.0
    fit(model, data, seeded(3), max_epochs=1)
    inputs, targets = model.inputs_and_targets(data[train])
    for normalizer, rows in ((model.input_normalizer, inputs), (model.target_normalizer, targets)):
        th.testing.assert_close(normalizer.mean, rows.mean(0))
        th.testing.assert_close(normalizer.std, rows.std(0, correction=0))


def test_targets_are_not_normalised_if_switched_off():
    model = ensemble(normalize_targets=False)
    fit(model, transitions(), seeded(), max_epochs=1)
    assert model.target_normalizer.mean.tolist() == [0.0] * 4
    assert model.target_normalizer.std.tolist() == [1.0] * 4


def rows_of_each_epoch(monkeypatch, **kwargs):
    epochs, shuffle = [], fitting._shuffle_each

    def watched(rows, generator):
        epochs.append(shuffle(rows, generator))
        return epochs[-1]

    monkeypatch.setattr(fitting, "_shuffle_each", watched)
    fit(ensemble(), transitions(), seeded(3), max_epochs=3, **kwargs)
    return epochs


def test_each_member_has_its_own_bootstrap_with_replacement_kept_over_the_epochs(monkeypatch):
    first, *others = rows_of_each_epoch(monkeypatch)
    train, _ = split_of(200, 3, 40)
    assert first.shape == (3, 160)
    draws = [sorted(member.tolist()) for member in first]
    assert draws[0] != draws[1] != draws[2]
    for draw in draws:
        assert set(draw) <= set(train.tolist())
        assert 0.5 < len(set(draw)) / 160 < 0.75  # 1 - 1/e
    for epoch in others:
        assert [sorted(member.tolist()) for member in epoch] == draws
        assert not th.equal(epoch, first)


def test_without_bootstrap_each_member_sees_all_training_rows_in_its_own_order(monkeypatch):
    train, _ = split_of(200, 3, 40)
    for epoch in rows_of_each_epoch(monkeypatch, bootstrap=False):
        assert all(sorted(member.tolist()) == sorted(train.tolist()) for member in epoch)
        assert not th.equal(epoch[0], epoch[1])


def test_every_row_of_an_epoch_is_trained_on_once(monkeypatch):
    model, data, seen = ensemble(), transitions(), []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda x, y: (seen.append((x, y)), loss(x, y))[1])
    fit(model, data, seeded(3), max_epochs=1, batch_size=64, bootstrap=False)
    assert [x.shape[1] for x, _ in seen] == [64, 64, 32]
    train, _ = split_of(200, 3, 40)
    inputs, targets = model.inputs_and_targets(data[train])
    for position, expected in ((0, model.input_normalizer(inputs)), (1, model.target_normalizer(targets))):
        for member in range(3):
            rows = th.cat([batch[position][member] for batch in seen])
            th.testing.assert_close(rows.sort(dim=0).values, expected.sort(dim=0).values)


def test_a_refit_continues_from_weights_and_optimizer_and_stops_early():
    model, heard = ensemble(learning_rate=1e-2), []
    data, kwargs = transitions(300), {"on_epoch": lambda *args: heard.append(args), "min_improvement": 0.1}
    cold = fit(model, data[:250], seeded(0), **kwargs)
    steps = model.optimizer.state[model.weights[0]]["step"].item()
    assert steps == cold.n_gradient_steps
    warm = fit(model, data, seeded(1), **kwargs)
    assert warm.n_epochs < cold.n_epochs / 2
    assert heard[cold.n_epochs][1] < 0.3 * heard[0][1]  # errors after the first epochs
    assert model.optimizer.state[model.weights[0]]["step"].item() == steps + warm.n_gradient_steps


def test_a_warm_model_still_learns_what_is_harder():
    model, easy = ensemble(), transitions()
    fit(model, easy, seeded(), max_epochs=50)
    hard = dataclasses.replace(easy, rewards=th.randn(200, generator=seeded(4)))
    before = model.weights[0].detach().clone()
    report = fit(model, hard, seeded(), max_epochs=5)
    assert (model.weights[0] != before).flatten(1).any(1).all()  # of each member a new snapshot was taken
    assert model.holdout_mse.mean().item() == pytest.approx(report.holdout_mse, rel=0.5)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_handful_of_transitions_is_enough(n, bootstrap):
    model = ensemble()
    report = model.fit(transitions(n), seeded(), bootstrap=bootstrap, max_epochs=20)
    assert all(math.isfinite(value) for value in report.scalars().values())
    assert (report.n_train, report.n_holdout) == ((n, n) if n < 10 else (8, 2))
    assert model.is_fitted
    assert th.isfinite(model.step(*inputs_of(transitions(5)), seeded()).next_obs).all()


def inputs_of(data):
    return data.observations, data.actions


def test_a_dimension_that_never_moves_is_predicted_not_to_move():
    data = transitions(400)
    data.observations[:, 1] = data.next_observations[:, 1] = 7.0
    data.rewards[:] = -1.0
    model = ensemble(learning_rate=1e-2)
    model.fit(data, seeded(), max_epochs=60)
    step = model.step(*inputs_of(data), seeded(), members="expectation")
    th.testing.assert_close(step.next_obs[:, 1], data.next_observations[:, 1], atol=0.1, rtol=0)
    th.testing.assert_close(step.reward, data.rewards, atol=0.1, rtol=0)
    moved = data.observations + th.tensor([0.0, 1.0, 0.0])
    assert (model.step(moved, data.actions, members="expectation").next_obs - step.next_obs).abs().max() < 10


def test_units_do_not_matter():
    reports = []
    for scale, reward_scale in (((1.0, 1.0, 1.0), 1.0), ((2.0**-13, 1.0, 2.0**13), 2.0**10)):  # about 1e-4 and 1e4
        data = transitions(400, scale=scale, reward_scale=reward_scale)
        reports.append(fit(ensemble(learning_rate=1e-2), data, seeded(), max_epochs=30))
    assert reports[0].holdout_mse < 0.3
    assert reports[1].holdout_mse == pytest.approx(reports[0].holdout_mse, rel=1e-3)
    assert reports[1].reward_mse == pytest.approx(reports[0].reward_mse * 2.0**20, rel=1e-3)


def test_tiny_and_huge_dimensions_are_learned_side_by_side():
    scale = (1e-4, 1.0, 1e4)
    data = transitions(1000, scale=scale)
    model = ensemble(learning_rate=1e-2)
    model.fit(data, seeded(), max_epochs=40)
    unseen = transitions(200, seed=9, scale=scale)
    predicted = model.step(*inputs_of(unseen), members="expectation").next_obs
    error = (predicted - unseen.next_observations).std(0) / (unseen.next_observations - unseen.observations).std(0)
    assert error.max() < 0.3


def test_huge_raw_targets_are_learned_from_although_not_normalised():
    model = ensemble(normalize_targets=False)
    before = model.weights[0].detach().clone()
    fit(model, transitions(reward_scale=1e7), seeded(), max_epochs=3)  # squared errors far beyond 1e10
    assert (model.weights[0] != before).flatten(1).any(1).all()


@pytest.mark.parametrize(
    "name, change, got",
    [
        ("observations", th.Tensor.double, "torch.float64 of shape"),
        ("actions", lambda actions: actions[:, :0], r"torch.float32 of shape \(200, 0\)"),
        ("next_observations", lambda obs: th.cat([obs, obs], dim=1), "torch.float32 of shape"),
        ("rewards", lambda rewards: rewards.unsqueeze(1), r"torch.float32 of shape \(200, 1\)"),
        ("terminated", th.Tensor.float, "torch.float32 of shape"),
        ("rewards", th.Tensor.numpy, "ndarray"),
    ],
)
def test_data_of_another_shape_or_type_are_refused_with_what_was_given_and_what_is_expected(name, change, got):
    data = transitions()
    data = dataclasses.replace(data, **{name: change(getattr(data, name))})
    dtype = "torch.bool" if name == "terminated" else "torch.float32"
    for fit_it in (ensemble().fit, lambda data: fit(ensemble(), data)):
        with pytest.raises(
            ValueError, match=rf"The {name} .* must be a tensor of {dtype} of shape \(200.*, got {got}.*read_dataset"
        ):
            fit_it(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", ["observations", "actions", "next_observations", "rewards"])
def test_data_that_are_not_finite_are_refused_naming_where_and_what_to_do(name, value):
    data = transitions()
    getattr(data, name)[17] = value
    model = ensemble()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=rf"{name} .*NaN, infinity or numbers beyond 1e\+18 \(first in row 17\).*Fix the environment, or drop",
    ):
        model.fit(data, seeded())
    assert all(th.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_no_data_are_refused():
    with pytest.raises(ValueError, match="no transitions"):
        ensemble().fit(transitions()[:0], seeded())


@pytest.mark.parametrize("warm", [False, True])
def test_a_fit_that_diverges_is_an_error_and_leaves_the_model_unfitted(warm):
    model = ensemble()
    if warm:
        model.fit(transitions(), seeded(), max_epochs=1)
    for group in model.optimizer.param_groups:
        group["lr"] = 1e10
    with pytest.raises(ValueError, match=r"diverged.*scale them, or lower the learning rate"):
        model.fit(transitions(), seeded())
    assert not model.is_fitted


def test_the_report_says_what_was_done_and_how_good_it_is():
    model, data = ensemble(), transitions(300, reward_scale=20.0)
    report = model.fit(data, seeded(3), batch_size=100, max_epochs=30)
    assert report.n_gradient_steps == report.n_epochs * math.ceil(report.n_train / 100)
    assert report.seconds > 0
    assert math.isfinite(report.train_loss)
    assert 0 < report.holdout_mse <= report.holdout_mse_worst_dim
    assert report.holdout_nll <= report.holdout_nll_worst_dim
    best, worst = model.holdout_mse[model.elites].tolist()
    assert report.elite_spread == pytest.approx(worst / best, rel=1e-5)
    holdout = data[split_of(300, 3, 60)[1]]
    reward = model.predict(*inputs_of(holdout)).mean[:, :, -1]
    assert report.reward_mse == pytest.approx(((reward - holdout.rewards) ** 2).mean().item(), rel=1e-3)


def test_a_model_that_learned_nothing_has_an_error_near_1():
    report = fit(ensemble(learning_rate=0.0), transitions(2000), seeded(), max_epochs=1)
    assert report.holdout_mse == pytest.approx(1.0, abs=0.3)


def test_the_order_of_the_draws_is_fixed_by_the_generator():
    reports = [vars(fit(ensemble(), transitions(), seeded(seed), max_epochs=3)) for seed in (1, 1, 2)]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1] != reports[2]
