from dataclasses import replace

import pytest
import torch as th

from sb3_mbrl.tasks.termination_rules import Bound, TerminatesOutside
from tests.dynamics.models import ensemble, seeded, transitions


def known(obs, action, next_obs):
    return obs[:, 0] - 0.1 * (action**2).sum(dim=1)


def data_with_known_reward(model, n=200):
    data = transitions(n)
    return replace(data, rewards=known(data.observations, model.unscale_action(data.actions), data.next_observations))


def fits(model, data, n=2):
    return [model.fit(data, seeded(), max_epochs=1) for _ in range(n)]


def test_a_reward_function_that_the_data_confirm_prints_nothing():
    model = ensemble(reward_fn=known)
    report = fits(model, data_with_known_reward(model))[0]
    assert report.reward_agrees and report.note == "" and report.reward_mse < 1e-10


def test_a_reward_in_other_units_gives_one_warning():
    model = ensemble(reward_fn=lambda *rows: 100 * known(*rows))
    data = data_with_known_reward(model)
    with pytest.warns(UserWarning, match=r"reward_fn pays .* 200 real .*correlation 1\.00.* It is 100 times") as caught:
        reports = fits(model, data)
    assert len(caught) == 1 and [report.note for report in reports] == ["", ""] and not reports[0].reward_agrees


def test_another_reward_is_only_mentioned_once_since_it_may_be_intended():
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


def test_a_constant_reward_in_other_units_gives_a_warning():
    model = ensemble(reward_fn=lambda obs, action, next_obs: th.full((len(obs),), 100.0))
    with pytest.warns(UserWarning, match="reward_fn pays 100 a step .* paid 1. It is 100 times"):
        fits(model, replace(transitions(200), rewards=th.ones(200)))


def test_a_reward_that_is_not_finite_on_real_transitions_is_an_error():
    data = transitions(200)
    model = ensemble(reward_fn=lambda obs, action, next_obs: th.log(obs[:, 0]))
    n_bad = int((data.observations[:, 0] <= 0).sum())
    with pytest.raises(ValueError, match=f"reward_fn returns NaN or infinity for {n_bad} of 200 real transitions"):
        model.fit(data, seeded(), max_epochs=1)


def test_a_termination_that_the_data_contradict_gives_one_warning_per_function():
    model = ensemble(termination_fn=lambda obs, action, next_obs: obs[:, 0] > -th.inf)
    data = transitions(200)
    message = "disagrees with 200 of 200 real transitions: 200 of its 200 terminations did not happen, and it misses 0 of 0"
    with pytest.warns(UserWarning, match=message) as caught:
        reports = fits(model, data)
    assert len(caught) == 1 and reports[0].termination_precision == 0
    model.termination_fn = lambda obs, action, next_obs: obs[:, 0] > 0
    with pytest.warns(UserWarning, match="termination_fn disagrees"):
        fits(model, data)


def test_where_nothing_ever_ended_there_are_no_scores_of_a_termination():
    assert not any("termination" in name for name in fits(ensemble(), transitions(200), 1)[0].scalars())


def test_a_task_that_never_terminates_is_contradicted_by_a_single_termination():
    data = transitions(200, terminated=th.arange(200) < 1)
    with pytest.raises(ValueError, match="1 of 200 transitions terminated.*termination_fn='learned', or your own function"):
        ensemble().fit(data, seeded())


def test_a_function_that_misses_all_of_many_terminations_is_refused():
    data = transitions(200, terminated=th.arange(200) < 10)
    with pytest.raises(ValueError, match="10 of 200 transitions terminated.*predicts none of them"):
        ensemble(termination_fn=lambda obs, action, next_obs: obs[:, 0] > th.inf).fit(data, seeded())


def test_the_rule_of_a_known_task_must_hold_up_to_rounding():
    data = transitions(200)
    model = ensemble(termination_fn=TerminatesOutside((Bound(0, 1, -1.5, 1.5),)))
    right = model.predict_termination(data)
    model.fit(replace(data, terminated=right ^ (th.arange(200) < 1)), seeded(), max_epochs=1)
    with pytest.raises(ValueError, match="rule of the known task disagrees with 2 of 200 real transitions: a wrapper"):
        model.fit(replace(data, terminated=right ^ (th.arange(200) < 2)), seeded(), max_epochs=1)


def test_a_function_is_compared_with_the_data_once_per_fit():
    rows = []

    def ends(obs, action, next_obs):
        rows.append(len(obs))
        return obs[:, 0] > 1

    model, data = ensemble(termination_fn=ends), transitions(200)
    rows.clear()  # forget the rows on which it was tried
    model.fit(replace(data, terminated=data.observations[:, 0] > 1), seeded(), max_epochs=2)
    assert rows == [200]
