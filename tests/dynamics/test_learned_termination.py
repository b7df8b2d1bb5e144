import math
from dataclasses import replace

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.statistics import termination_scores
from sb3_mbrl.dynamics import data as data_module
from sb3_mbrl.dynamics import learned_termination
from sb3_mbrl.dynamics.learned_termination import LearnedTermination, _stratified_split
from tests.dynamics.models import ACTION_DIM, OBS_DIM, ensemble, seeded, transitions


def scores_of(fn, rows):
    return termination_scores(fn(rows.observations, rows.actions, rows.next_observations), rows.terminated)


def synthetic(n, seed=0, limit=0.2):
    """Data like InvertedPendulum's: 3 % of the steps terminate, because the second entry leaves ±0.2."""
    generator = th.Generator().manual_seed(seed)
    obs = th.randn(n, 4, generator=generator)
    actions = th.rand(n, 1, generator=generator) * 2 - 1
    next_obs = obs + 0.1 * th.randn(n, 4, generator=generator)
    next_obs[:, 1] = 0.2 / 2.17 * th.randn(n, generator=generator)
    return Transitions(obs, actions, next_obs, th.zeros(n), next_obs[:, 1].abs() > limit)


@pytest.fixture(scope="module")
def fitted():
    head = LearnedTermination(4, 1, generator=th.Generator().manual_seed(0))
    head.fit(synthetic(10_000), generator=th.Generator().manual_seed(1))
    return head


def test_learns_rare_terminations(fitted):
    scores = scores_of(fitted, synthetic(20_000, seed=1))
    assert scores["precision"] > 0.9
    assert scores["recall"] > 0.9


def test_a_refit_stops_by_itself_and_keeps_what_was_learned(fitted):
    head = LearnedTermination(4, 1)
    head.load_state_dict(fitted.state_dict())
    result = head.fit(synthetic(10_000), max_epochs=1_000)
    assert result["epochs"] < 1_000
    assert min(result["precision"], result["recall"]) > 0.9
    scores = scores_of(head, synthetic(20_000, seed=1))
    assert min(scores["precision"], scores["recall"]) > 0.9


def test_a_fit_is_deterministic_and_does_not_use_the_global_stream():
    before = th.get_rng_state()
    weights = []
    for _ in range(2):
        head = LearnedTermination(4, 1, (32,), generator=th.Generator().manual_seed(3))
        head.fit(synthetic(1000), generator=th.Generator().manual_seed(4), max_epochs=3)
        weights.append(head.state_dict())
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert th.equal(before, th.get_rng_state())


def test_generator_draws_the_initial_weights():
    first, same, other = (LearnedTermination(4, 1, (8,), generator=th.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert th.equal(first.network[0].weight, same.network[0].weight)
    assert not th.equal(first.network[0].weight, other.network[0].weight)


def test_probability_is_differentiable_and_agrees_with_forward(fitted):
    batch = synthetic(100, seed=2)
    next_obs = batch.next_observations.clone().requires_grad_()
    probability = fitted.probability(batch.observations, batch.actions, next_obs)
    probability.sum().backward()
    assert next_obs.grad.abs().sum() > 0
    assert th.equal(fitted(batch.observations, batch.actions, next_obs), probability > 0.5)


def test_a_learned_termination_ends_predictions_that_are_not_finite(fitted):
    batch = synthetic(3, seed=2, limit=1.0)
    next_obs = th.zeros(3, 4)
    next_obs[0, 0] = math.nan
    next_obs[1, 3] = math.inf
    assert fitted(batch.observations, batch.actions, next_obs).tolist() == [True, True, False]


@pytest.mark.parametrize("n", [1, 6, 500])
def test_predicts_never_until_a_termination_was_seen(n):
    head = LearnedTermination(4, 1, (32,))
    rows = synthetic(n, limit=100.0)
    assert not head(rows.observations, rows.actions, rows.next_observations).any()
    head.fit(rows)
    assert not head(rows.observations, rows.actions, rows.next_observations * 100).any()


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_tiny_data_fits(terminated, seed):
    rows = synthetic(len(terminated), seed=seed)
    data = Transitions(rows.observations, rows.actions, rows.next_observations, rows.rewards, th.tensor(terminated))
    head = LearnedTermination(4, 1, (16,))
    result = head.fit(data, max_epochs=2)
    assert all(math.isfinite(result[name]) for name in ("epochs", "loss"))
    assert math.isnan(result["recall"]) == (not any(terminated))
    assert all(value.isfinite().all() for value in head.state_dict().values())


def test_learned_terminations_survive_new_data_without_terminations(fitted):
    head = LearnedTermination(4, 1)
    head.load_state_dict(fitted.state_dict())
    assert head.fit(synthetic(100, limit=100.0))["epochs"] == 0
    assert all(th.equal(value, fitted.state_dict()[name]) for name, value in head.state_dict().items())


def test_first_terminations_are_learned_without_a_holdout():
    rows = synthetic(1000, limit=0.28)
    assert 0 < rows.terminated.sum() < 5
    head = LearnedTermination(4, 1, (64, 64))
    head.fit(rows)
    assert scores_of(head, rows)["recall"] > 0.9


def test_constant_inputs_do_not_blow_up():
    rows = synthetic(500)
    rows.observations[:, 0] = 1000.0
    head = LearnedTermination(4, 1, (32,))
    head.fit(rows, max_epochs=2)
    assert head.std[0] == 1.0


def test_fit_of_nan_names_cause_and_remedy():
    rows = synthetic(10)
    rows.next_observations[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"`next_observations` holds NaN.*first: row 3.*Fix it there"):
        LearnedTermination(4, 1, (8,)).fit(rows)


def test_fit_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no transitions"):
        LearnedTermination(4, 1, (8,)).fit(synthetic(4)[:0])


def test_rows_held_out_stay_held_out_while_data_grows():
    labels = synthetic(2000).terminated
    _, before = _stratified_split(labels[:1000])
    train, after = _stratified_split(labels)
    assert set(before.tolist()) <= set(after.tolist())
    assert sorted(train.tolist() + after.tolist()) == list(range(2000))
    assert labels[after].sum() == labels.sum() // 5


def test_state_dict_holds_floats_and_continues_exactly(fitted):
    state = fitted.state_dict()
    assert all(value.is_floating_point() for value in state.values())
    other = LearnedTermination(4, 1)
    other.load_state_dict(state)
    batch = synthetic(100, seed=5)
    arguments = (batch.observations, batch.actions, batch.next_observations)
    assert th.equal(other.probability(*arguments), fitted.probability(*arguments))


def test_the_optimizer_state_survives_a_refit():
    head = LearnedTermination(4, 1, (8,))
    head.fit(synthetic(200), max_epochs=1)
    steps = head.optimizer.state_dict()["state"][0]["step"].item()
    head.fit(synthetic(200), max_epochs=1)
    assert head.optimizer.state_dict()["state"][0]["step"].item() > steps > 0


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


def test_a_fit_of_the_ensemble_looks_once_for_numbers_that_are_not_finite(monkeypatch):
    looked = []
    monkeypatch.setattr(data_module, "_check_values", lambda rows: looked.append("dynamics"))
    monkeypatch.setattr(learned_termination, "_require_finite", lambda rows: looked.append("termination"))
    data = transitions(terminated=th.arange(200) % 9 == 0)
    ensemble(termination_fn=LearnedTermination(OBS_DIM, ACTION_DIM, (8,))).fit(data, seeded(), max_epochs=1)
    assert looked == ["dynamics"]
