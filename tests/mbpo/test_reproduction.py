"""Tests of the returns in the docs. Each takes minutes to an hour: `pytest -m expensive`."""

import pytest
from stable_baselines3 import SAC

from sb3_mbrl import MBPO
from sb3_mbrl.zoo import load_hyperparams


@pytest.mark.expensive
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env_id", "steps", "target"), [("Pendulum-v1", 3_000, -200), ("InvertedPendulum-v5", 5_000, 1_000)])
def test_solves_within(best_return, env_id: str, steps: int, target: float, seed: int) -> None:
    assert best_return(MBPO(env=env_id, seed=seed, **load_hyperparams("mbpo", env_id)), env_id, steps, target) >= target


@pytest.mark.expensive
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"])
def test_defaults_learn(best_return, env_id: str) -> None:
    steps = {"Pendulum-v1": 3_000, "InvertedPendulum-v5": 5_000, "Hopper-v5": 15_000}[env_id]
    target = {"Pendulum-v1": -200, "InvertedPendulum-v5": 1_000, "Hopper-v5": 500}[env_id]
    assert best_return(MBPO("MlpPolicy", env_id, seed=0), env_id, steps, target) >= target


@pytest.mark.expensive
def test_hopper_is_above_sac_at_equal_steps(best_return) -> None:
    mbpo = best_return(MBPO(env="Hopper-v5", seed=0, **load_hyperparams("mbpo", "Hopper-v5")), "Hopper-v5", 15_000)
    assert mbpo > best_return(SAC("MlpPolicy", "Hopper-v5", seed=0), "Hopper-v5", 15_000)
