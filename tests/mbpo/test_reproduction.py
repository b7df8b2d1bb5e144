"""The returns that the docs claim. Minutes to an hour each: `pytest -m expensive`."""

import math

import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import MBPO
from sb3_mbrl.zoo import load_hyperparams


def best_return(model: SAC, env_id: str, steps: int, enough: float = math.inf) -> float:
    """Best mean return of five deterministic episodes, evaluated every 250 steps; training ends where it is enough."""
    stop = StopTrainingOnRewardThreshold(enough)
    callback = EvalCallback(make_vec_env(env_id, seed=1_000), callback_on_new_best=stop, eval_freq=250, verbose=0)
    model.learn(steps, callback=callback)
    return callback.best_mean_reward


@pytest.mark.expensive
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env_id", "steps", "target"), [("Pendulum-v1", 3_000, -200), ("InvertedPendulum-v5", 5_000, 1_000)])
def test_solves_within(env_id: str, steps: int, target: float, seed: int) -> None:
    assert best_return(MBPO(env=env_id, seed=seed, **load_hyperparams("mbpo", env_id)), env_id, steps, target) >= target


@pytest.mark.expensive
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"])
def test_defaults_learn(env_id: str) -> None:
    steps = {"Pendulum-v1": 3_000, "InvertedPendulum-v5": 5_000, "Hopper-v5": 15_000}[env_id]
    target = {"Pendulum-v1": -200, "InvertedPendulum-v5": 1_000, "Hopper-v5": 500}[env_id]
    assert best_return(MBPO("MlpPolicy", env_id, seed=0), env_id, steps, target) >= target


@pytest.mark.expensive
def test_hopper_is_above_sac_at_equal_steps() -> None:
    mbpo = best_return(MBPO(env="Hopper-v5", seed=0, **load_hyperparams("mbpo", "Hopper-v5")), "Hopper-v5", 15_000)
    assert mbpo > best_return(SAC("MlpPolicy", "Hopper-v5", seed=0), "Hopper-v5", 15_000)
