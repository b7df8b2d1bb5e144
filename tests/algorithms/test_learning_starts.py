"""A run that would end before training begins warns at its start, in each algorithm that has ``learning_starts``."""

import warnings

import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, MBCrossQ

SMALL = {"learning_starts": 8, "buffer_size": 100, "device": "cpu"}
ALGORITHMS = {each.__name__: each for each in (MBPO, MBTQC, MBCrossQ, MBTD3, TDMPC, TDMPC2)}
ALGORITHMS = {name: lambda env, each=each, **kwargs: each("MlpPolicy", env, **kwargs) for name, each in ALGORITHMS.items()}
ALGORITHMS["PETS"] = lambda env, **kwargs: PETS("MPCPolicy", env, **kwargs)
ALGORITHMS["Dyna"] = lambda env, **kwargs: Dyna(env=env, **kwargs)


def make(name, n_envs=1, **changes):
    model = ALGORITHMS[name](make_vec_env("Pendulum-v1", n_envs), **{**SMALL, **changes})
    model.train = lambda *args, **kwargs: None
    return model


def warnings_of(model, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(*args, **kwargs)
    return [str(each.message) for each in caught if "Nothing will be learned" in str(each.message)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_that_learns_nothing_says_so(name):
    model = make(name)
    assert len(warnings_of(model, 9)) == 0
    (message,) = warnings_of(model, 8)
    assert "ends at step 8, and training begins after learning_starts=8 steps" in message


def test_steps_made_before_count_unless_they_are_forgotten():
    model = make("MBPO")
    assert len(warnings_of(model, 6)) == 1
    assert warnings_of(model, 3, reset_num_timesteps=False) == []
    assert warnings_of(model, 1, reset_num_timesteps=False) == []
    assert "ends at step 6" in warnings_of(model, 6)[0]


@pytest.mark.parametrize(("n_envs", "train_freq", "last"), [(3, 1, 9), (1, 5, 10), (2, 3, 12)])
def test_rollouts_are_completed(n_envs, train_freq, last):
    """A rollout that has begun continues beyond ``total_timesteps``."""
    assert warnings_of(make("MBPO", n_envs, train_freq=train_freq, learning_starts=last - 1), 7) == []
    assert f"ends at step {last}" in warnings_of(make("MBPO", n_envs, train_freq=train_freq, learning_starts=last), 7)[0]
