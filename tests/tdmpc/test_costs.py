"""How long a run will take, said before it starts."""

import re

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.tdmpc import costs
from sb3_mbrl.tdmpc.costs import Costs, forecast, measure

COSTS = Costs(update=1.0, plan=0.1)


def test_measuring_changes_nothing(make, kind):
    """A run that says how long it takes ends as one that is silent does."""
    loud, silent = (make(kind, verbose=verbose).learn(26).learn(4, reset_num_timesteps=False) for verbose in (1, 0))
    for name, parameter in loud.policy.state_dict().items():
        assert th.equal(parameter, silent.policy.state_dict()[name]), name
    np.testing.assert_array_equal(loud.replay_buffer.actions[:30], silent.replay_buffer.actions[:30])


@pytest.mark.parametrize(
    ("env", "policy"),
    [("LatentSlider-v0", "MlpPolicy"), ("SliderImage-v0", "CnnPolicy"), ("SliderDict-v0", "MultiInputPolicy")],
)
def test_it_is_said_at_verbose_1(make, kind, env, policy, capsys):
    envs = make_vec_env(env, 2)
    make(kind, VecNormalize(envs) if policy == "MlpPolicy" else envs, policy, verbose=1, buffer_size=100).learn(21)
    assert "To step 21: about" in capsys.readouterr().out


def test_plans_are_timed_at_the_length_that_they_will_have(make, monkeypatch):
    model, lengths = make("tdmpc"), []

    def work_and_see(work, device):
        work()
        lengths.append(model.policy.planner.n_planned)
        return 1.0

    monkeypatch.setattr(costs, "seconds", work_and_see)
    model._setup_learn(30)
    for num_timesteps in (0, 60):
        assert measure(model, num_timesteps) == Costs(update=1 / costs.N_UPDATES, plan=1 / costs.N_PLANS)
    assert (lengths[1], lengths[3], model.policy.planner.n_planned) == (1, 3, 1)


@pytest.mark.parametrize(
    ("changes", "learned", "expected"),
    [
        ({}, 0, "To step 120: about 1.9 minutes .* 102 updates of 1000.0 ms, 100 plans of 100.0 ms"),
        ({}, 80, "To step 120: about 44 seconds .* 40 updates of 1000.0 ms, 40 plans"),
        ({"gradient_steps": 2, "train_freq": 4}, 0, "52 updates"),
        ({"pretrain_steps": None}, 0, "120 updates"),
    ],
)
def test_what_is_counted(make, kind, changes, learned, expected):
    model = make(kind, **changes)
    model.num_timesteps, model._n_updates = learned, learned
    assert re.search(expected, forecast(model, 120, COSTS))


def test_what_is_not_known(make, kind):
    assert forecast(make(kind), 20, COSTS) is None
    assert forecast(make(kind, train_freq=(1, "episode"), gradient_steps=1), 120, COSTS) is None
