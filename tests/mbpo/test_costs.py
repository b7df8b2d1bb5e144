"""How long a run will take, said before it starts."""

import os
import re
import threading

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBPO, MBTD3, MBTQC, MBCrossQ
from sb3_mbrl.mbpo.costs import N_GRADIENT_STEPS, Costs, forecast, measure

COSTS = Costs(update=1.0, fit=0.01, imagine=0.0001)


def test_measuring_changes_nothing(make_mbpo):
    """A run that says how long it takes ends as one that is silent does."""
    loud, silent = (make_mbpo(verbose=verbose).learn(120).learn(30, reset_num_timesteps=False) for verbose in (1, 0))
    for name, parameter in loud.policy.state_dict().items():
        assert th.equal(parameter, silent.policy.state_dict()[name]), name
    np.testing.assert_array_equal(loud.replay_buffer.actions[:150], silent.replay_buffer.actions[:150])


def test_measuring_does_not_count_as_a_fit(make_mbpo):
    model = make_mbpo().learn(120)
    before = repr(model.dynamics)
    measure(model)
    assert repr(model.dynamics) == before


@pytest.mark.parametrize("algorithm", [MBTQC, MBTD3, MBCrossQ])
def test_other_algorithms(tiny, algorithm, capsys):
    algorithm("MlpPolicy", "PointMass-v0", **tiny, verbose=1).learn(60)
    assert "To step 60: about" in capsys.readouterr().out


def test_larger_networks_cost_more(make_mbpo):
    large = {"policy_kwargs": {"net_arch": [512, 512]}, "dynamics_kwargs": {"net_arch": [256, 256]}}
    small, large = measure(make_mbpo()), measure(make_mbpo(**large))
    assert large.update > small.update and large.fit > small.fit and large.imagine > small.imagine > 0


def test_normalised_environments(make_mbpo, capsys):
    env = VecNormalize(make_mbpo().env)
    make_mbpo(env, verbose=1).learn(60)
    assert "To step 60: about" in capsys.readouterr().out
    assert env.obs_rms.count < 70  # what is measured is not normalised


def test_what_cannot_be_copied_or_saved(tiny, capsys):
    """A lock in a reward function, an open file, a constructor of one's own."""
    lock = threading.Lock()

    def reward(obs, action, next_obs):
        with lock:
            return -obs[:, 0].abs()

    class Mine(MBPO):
        def __init__(self, name, *args, **kwargs):
            self.name, self.file = name, open(os.devnull)
            super().__init__(*args, **kwargs)

    model = Mine("mine", "MlpPolicy", "PointMass-v0", **tiny, reward_fn=reward, verbose=1)
    with model.file:
        model.learn(60)
    assert "To step 60: about" in capsys.readouterr().out


def test_given_functions_see_no_states_that_were_made_up(tiny):
    rows = []

    def reward(obs, action, next_obs):
        rows.append(len(obs))
        return -obs[:, 0].abs()

    def termination(obs, action, next_obs):
        return reward(obs, action, next_obs) < -100

    model = MBPO("MlpPolicy", "PointMass-v0", **{**tiny, "reward_fn": reward, "termination_fn": termination})
    rows.clear()  # forget those on which the functions were tried
    assert measure(model).imagine > 0 and rows == []
    assert model.dynamics.reward_fn is reward and model.dynamics.termination_fn is termination


def test_nobody_hears_of_it(make_mbpo):
    epochs = []
    model = make_mbpo(fit_kwargs={"on_epoch": lambda *epoch: epochs.append(epoch)})
    measure(model)
    assert epochs == [] and model._seconds == {}
    assert len(model.model_buffer) == model.replay_buffer.size() == model._n_updates == 0


def test_forecast_counts(make_mbpo):
    model = make_mbpo(gradient_steps=3, model_updates_per_step=2.0)
    said = forecast(model, 1_040, COSTS)
    assert "3000 updates of 1000.0 ms" in said
    assert "at most 2080 gradient steps of the model of 10.0 ms" in said  # of the first fit, since the beginning
    assert "10000 imagined transitions of 100.0 us" in said
    assert "about 50.4 minutes" in said  # 3000 + 20.8 + 1 seconds


def test_forecast_of_longer_rollouts(make_mbpo):
    said = forecast(make_mbpo(rollout_schedule=(0, 40, 1, 5)), 140, COSTS)
    assert "5000 imagined transitions" in said


def test_forecast_of_adaptive_rollouts(make_mbpo):
    said = forecast(make_mbpo(rollout_schedule={"max_length": 7}), 140, COSTS)
    assert "at most 7000 imagined transitions" in said


def test_forecast_of_a_run_that_goes_on(make_mbpo):
    model = make_mbpo().learn(60)
    assert "100 updates" in forecast(model, 160, COSTS)
    assert "200 gradient steps" in forecast(model, 160, COSTS)


def test_forecast_of_several_environments(make_mbpo):
    model = make_mbpo(gradient_steps=4)
    model.n_envs = 2
    assert "200 updates" in forecast(model, 140, COSTS)
    model.gradient_steps = -1
    assert "100 updates" in forecast(model, 140, COSTS)


def test_fits_without_a_budget_are_not_counted(make_mbpo):
    said = forecast(make_mbpo(model_updates_per_step=None), 140, COSTS)
    assert "fits of the model to their end, which are not counted" in said


def test_limits_of_single_fits(make_mbpo):
    # Fits are due at 41, 91 and so on
    said = forecast(make_mbpo(fit_kwargs={"max_gradient_steps": 10}), 140, COSTS)
    assert "at most 30 gradient steps" in said
    said = forecast(make_mbpo(fit_kwargs={"max_gradient_steps": None}), 140, COSTS)
    assert "fits of the model to their end, which are not counted" in said


@pytest.mark.parametrize(
    "fit_kwargs", [{"max_epochs": 1}, {"patience": 0, "patience_steps": 0}, {"max_gradient_steps": 3}], ids=str
)
def test_fits_that_end_early_cost_as_much_a_step(make_mbpo, monkeypatch, fit_kwargs):
    model, reports = make_mbpo(fit_kwargs=fit_kwargs), []
    fit = model.dynamics.fit
    monkeypatch.setattr(model.dynamics, "fit", lambda *args, **kwargs: reports.append(fit(*args, **kwargs)))
    measure(model)
    assert {report.n_gradient_steps for report in reports} == {N_GRADIENT_STEPS}


def test_fits_of_a_learned_termination_are_counted(make_mbpo, monkeypatch):
    model, steps = make_mbpo(termination_fn="learned"), []
    head = model.dynamics.termination_fn
    monkeypatch.setattr(head, "_update", lambda inputs, labels: steps.append(len(inputs)))
    measure(model)
    assert len(steps) == 2 * N_GRADIENT_STEPS  # once to warm up
    assert "with those of the learned termination" in forecast(model, 140, COSTS)
    assert "learned termination" not in forecast(make_mbpo(termination_fn=None), 140, COSTS)


def test_episodes_have_no_known_length(make_mbpo, capsys):
    make_mbpo(train_freq=(1, "episode"), gradient_steps=2, verbose=1).learn(60)
    assert "depends on the length of episodes" in capsys.readouterr().out


def test_steps_without_learning_are_silent(make_mbpo, capsys):
    model = make_mbpo(verbose=1).learn(30)
    assert not re.search("To step|depends on", capsys.readouterr().out)
    model.learn(60, reset_num_timesteps=False)
    assert "To step 90" in capsys.readouterr().out
    model.learn(0, reset_num_timesteps=False)
    assert not re.search("To step|depends on", capsys.readouterr().out)
