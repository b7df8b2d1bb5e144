"""Tests of the returns in the docs. Each takes minutes to half an hour: `pytest -m expensive`."""

import pytest

from sb3_mbrl import PETS
from sb3_mbrl.zoo import load_hyperparams


def upright(obs, action, next_obs):
    """InvertedPendulum's own reward of 1 until the pole falls is the same for all plans that keep it up."""
    return 1 - next_obs[:, 0] ** 2 - 10 * next_obs[:, 1] ** 2


@pytest.mark.expensive
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("env_id", "steps", "target", "reward_fn"),
    [("Pendulum-v1", 2_000, -250, None), ("InvertedPendulum-v5", 2_000, 1_000, upright), ("CartPole-v1", 3_000, 450, None)],
)
def test_solves_within(best_return, env_id, steps, target, reward_fn, seed):
    model = PETS(env=env_id, seed=seed, reward_fn=reward_fn, **load_hyperparams("pets", env_id))
    assert best_return(model, env_id, steps, target) >= target
