"""Dyna needs a fifth of the real steps of its algorithm alone. Each test takes minutes: ``pytest -m expensive``."""

import pytest
from stable_baselines3 import DQN, PPO

from sb3_mbrl import Dyna
from sb3_mbrl.zoo import load_hyperparams


@pytest.mark.expensive
@pytest.mark.parametrize(
    ("algorithm", "entry", "env_id", "steps", "target"),
    [(PPO, "dyna_ppo", "Pendulum-v1", 2_000, -250), (DQN, "dyna_dqn", "CartPole-v1", 6_000, 475)],
)
def test_dyna_reaches(best_return, algorithm, entry, env_id, steps, target):
    model = Dyna(algorithm, env=env_id, seed=0, device="cpu", **load_hyperparams(entry, env_id))
    assert best_return(model, env_id, steps, target) >= target
