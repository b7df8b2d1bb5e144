"""The forecast from the first full round, measured with a clock that only tests advance."""

import re

import gymnasium as gym
import pytest
import torch as th

from sb3_mbrl import MBPO, PETS, TDMPC, Dyna
from sb3_mbrl.algorithms.forecast import growth, in_words
from sb3_mbrl.mbpo import imagination

RUN = {"learning_starts": 100, "buffer_size": 500, "seed": 0, "device": "cpu", "verbose": 1}
MODEL = {"dynamics_kwargs": {"ensemble_size": 2, "n_elites": 2, "net_arch": [8]}, "model_train_freq": 50}
TINY = {**RUN, **MODEL, "policy_kwargs": {"net_arch": [4]}, "batch_size": 16, "real_ratio": 0.5, "gradient_steps": 1}
PLANNER = {"planner_kwargs": {"population_size": 8, "n_elites": 2, "n_iterations": 1}}


class OneSecond(gym.Wrapper):
    """Each step of the environment takes a second."""

    def __init__(self, clock):
        super().__init__(gym.make("Pendulum-v1"))
        self.clock = clock

    def step(self, action):
        self.clock.now += 1
        return super().step(action)


@pytest.fixture
def takes(clock, monkeypatch):
    """``takes(owner, name, seconds)``: each call of the method takes ``seconds(*args, **kwargs)``."""

    def slow_down(owner, name, seconds):
        method = getattr(owner, name)

        def slow(*args, **kwargs):
            clock.now += seconds(*args, **kwargs)
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    return slow_down


@pytest.fixture
def make_mbpo(clock, takes):
    """
    ``make_mbpo(**changes)``: an update takes 2 s, a gradient step of the model 0.5 s, an imagined transition 0.1 s; 2 branches
    are imagined for each environment step, and a fit has 2 gradient steps for each.
    """
    takes(imagination, "branched_rollouts", lambda model, policy, starts, length, *args: 0.1 * len(starts) * length)

    def make(**changes):
        arguments = {**TINY, "rollouts_per_step": 2, "fit_kwargs": {"patience": 10**6}}
        model = MBPO("MlpPolicy", OneSecond(clock), **{**arguments, **changes})
        takes(model, "_update", lambda gradient_steps, batch_size: 2 * gradient_steps)
        takes(model.dynamics, "fit", lambda *args, max_gradient_steps, **kwargs: 0.5 * max_gradient_steps)
        return model

    return make


def learn_until(model, last, total_timesteps, **kwargs):
    model.learn(total_timesteps, callback=lambda names, _: names["self"].num_timesteps < last, **kwargs)


def forecasts(capsys):
    """For each line: the last step, and the seconds of each phase and of all together."""
    spans = {"seconds": 1, "minutes": 60, "hours": 3600}
    for line in re.findall("To step .*", capsys.readouterr().out):
        parts = re.findall(r"(about|fitting|imagining|updating|planning|everything else) ([\d.]+) (\w+)", line)
        yield int(re.search(r"\d+", line)[0]), {name: float(number) * spans[unit] for name, number, unit in parts}


def test_the_first_fit_does_not_count(make_mbpo, capsys):
    """The first fit has the budget of all previous steps, here 202 gradient steps, while the others have 100."""
    learn_until(make_mbpo(), 160, 400)
    ((total, seconds),) = forecasts(capsys)
    left = 400 - 151  # the second fit is made at step 151
    each = {"updating": 2, "fitting": 2 * 0.5, "imagining": 2 * 0.1, "everything else": 1}
    assert total == 400
    assert seconds == pytest.approx({"about": left * 4.2, **{phase: left * cost for phase, cost in each.items()}}, rel=0.03)


def test_rollouts_become_longer(make_mbpo, capsys):
    model = make_mbpo(rollout_schedule=(100, 400, 1, 7))
    learn_until(model, 160, 400)
    ((_, seconds),) = forecasts(capsys)
    # Two branches of length 2 at step 151; from 1 to 7 up to the end
    lengths = [model._schedule(step) for step in range(151, 400)]
    assert seconds["imagining"] == pytest.approx(0.1 * 2 * sum(lengths), rel=0.03)
    assert seconds["updating"] == pytest.approx(2 * 249, rel=0.03)


def test_each_learn_with_a_full_round_prints_a_forecast(make_mbpo, capsys):
    model = make_mbpo()
    model.learn(140)
    assert list(forecasts(capsys)) == []
    learn_until(model, 220, 200, reset_num_timesteps=False)
    assert [total for total, _ in forecasts(capsys)] == [340]
    learn_until(model, 160, 300)  # from step 0 again, with random actions at first
    assert [total for total, _ in forecasts(capsys)] == [300]
    model.verbose = 0
    learn_until(model, 160, 300)
    assert list(forecasts(capsys)) == []


def test_the_forecast_does_not_change_the_run(capsys):
    """A run with a forecast has the same result as one without, and calls the user's function as often."""
    runs = []
    for verbose in (1, 0):
        model = MBPO("MlpPolicy", "Pendulum-v1", **{**TINY, "fit_kwargs": {"max_epochs": 1}, "verbose": verbose})
        calls = []
        model.learn(160, callback=lambda names, _, calls=calls: calls.append(names["num_collected_steps"]) or True)
        runs.append((calls, model.policy.state_dict()))
    assert len(list(forecasts(capsys))) == 1
    (loud, first), (silent, second) = runs
    assert loud == silent
    assert all(th.equal(tensor, second[name]) for name, tensor in first.items())


def test_pets_that_fits_once(clock, takes, capsys):
    model = PETS("MPCPolicy", OneSecond(clock), **RUN, **MODEL, **PLANNER, horizon=3, aggregate=False)
    takes(model.dynamics, "fit", lambda *args, **kwargs: 1_000)
    takes(model.policy, "predict", lambda *args, **kwargs: 3)
    learn_until(model, 160, 400)
    ((_, seconds),) = forecasts(capsys)
    left = 400 - 151
    assert seconds == pytest.approx({"about": 4 * left, "fitting": 0, "planning": 3 * left, "everything else": left}, rel=0.03)


def test_dyna(clock, takes, capsys):
    arguments = {"n_steps": 8, "batch_size": 8, "policy_kwargs": {"net_arch": [4]}}
    model = Dyna(env=OneSecond(clock), algorithm_kwargs=arguments, **RUN, **MODEL, imagined_steps_per_step=1)
    takes(model, "_learn_in_the_model", lambda n_steps: n_steps)
    learn_until(model, 160, 400)
    ((_, seconds),) = forecasts(capsys)
    assert seconds["imagining"] == pytest.approx(400 - 151, rel=0.03)


def test_td_mpc_whose_plans_become_longer(clock, takes, capsys):
    model = TDMPC(
        "MlpPolicy",
        OneSecond(clock),
        **{**RUN, **PLANNER, "batch_size": 4, "pretrain_steps": 5, "n_proposals": 1, "horizon": 3},
        model_size={"encoder": 8, "mlp": 8, "latent": 8},
        horizon_schedule=(0, 400, 1, 3),
    )
    takes(model, "_update", lambda batch: 2)
    takes(model.policy, "predict", lambda *args, **kwargs: model._n_planned(model.num_timesteps) + 3)
    learn_until(model, 210, 400)
    ((_, seconds),) = forecasts(capsys)
    left = 400 - 201  # a round is 100 steps long
    assert seconds["updating"] == pytest.approx(2 * left, rel=0.03)  # without those of the pretraining
    assert seconds["planning"] == pytest.approx(sum(model._n_planned(step) + 3 for step in range(201, 400)), rel=0.03)


def test_growth_of_a_schedule():
    assert growth(lambda step: 3.0, 10, 20, 30) == 1
    assert growth(lambda step: step, 0, 2_000, 4_000) == pytest.approx(3, rel=0.01)


def test_durations_are_printed_in_suitable_units():
    assert [in_words(seconds) for seconds in (0.4, 89, 90, 5_399, 5_400)] == [
        *("0 seconds", "89 seconds", "1.5 minutes", "90.0 minutes", "1.5 hours")
    ]
