"""Tests of the returns in the docs. Each takes a quarter to half an hour: `pytest -m expensive`."""

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl.zoo import load_hyperparams


@pytest.mark.expensive
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env_id", "steps", "target"), [("Pendulum-v1", 8_000, -200), ("InvertedPendulum-v5", 10_000, 1_000)])
def test_solved_after(algorithms, kind, env_id, steps, target, seed, n_envs):
    """Trains with the zoo's values and evaluates at the end, not at the best step before."""
    tuned = load_hyperparams(kind, env_id)
    model = algorithms[kind](env=make_vec_env(env_id, n_envs, seed=seed), seed=seed, **tuned)
    model.learn(2 * steps if kind == "tdmpc" else steps)
    mean, _ = evaluate_policy(model, make_vec_env(env_id, 5, seed=10_000), n_eval_episodes=5)
    assert mean >= target
