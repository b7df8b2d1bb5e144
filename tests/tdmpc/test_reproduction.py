"""The returns that the docs claim. Minutes to half an hour each: `pytest -m expensive`."""

import pytest
from stable_baselines3.common.env_util import make_vec_env


@pytest.mark.expensive
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env_id", "steps", "target"), [("Pendulum-v1", 8_000, -200), ("InvertedPendulum-v5", 10_000, 1_000)])
def test_solves_within(algorithms, kind, best_return, env_id, steps, target, seed, n_envs):
    model = algorithms[kind]("MlpPolicy", make_vec_env(env_id, n_envs, seed=seed), seed=seed)
    steps = 2 * steps if kind == "tdmpc" else steps
    assert best_return(model, env_id, steps, target) >= target
