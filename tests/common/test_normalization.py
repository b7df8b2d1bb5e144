import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl.common.normalization import normalize_obs, normalize_reward


class Still(gym.Env):
    """The parts of an environment that VecNormalize needs."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


def vec_normalize(**kwargs):
    env = VecNormalize(DummyVecEnv([Still]), **kwargs)
    if env.norm_obs:
        env.obs_rms.mean, env.obs_rms.var = np.array([0.0, 5.0, -100.0]), np.array([1.0, 25.0, 1e-7])
    env.ret_rms.var = np.array(16.0)
    return env


NORMALIZE = [{}, {"norm_obs": True, "norm_reward": False}, {"norm_obs": False}, {"clip_obs": 0.5, "clip_reward": 1.0}]


@pytest.mark.parametrize("kwargs", NORMALIZE)
def test_normalising_equals_vec_normalize(kwargs):
    rng = np.random.default_rng(0)
    obs = (rng.normal(size=(50, 3)) * [1, 5, 3e-4] + [0, 5, -100]).astype(np.float32)
    reward = rng.normal(scale=30, size=50).astype(np.float32)
    env = vec_normalize(**kwargs)
    th.testing.assert_close(
        normalize_obs(th.as_tensor(obs), env), th.as_tensor(env.normalize_obs(obs), dtype=th.float32), rtol=1e-4, atol=1e-4
    )
    th.testing.assert_close(normalize_reward(th.as_tensor(reward), env), th.as_tensor(env.normalize_reward(reward)).float())


def test_without_vec_normalize_nothing_changes():
    values = th.tensor([1e6, -3.0])
    assert normalize_obs(values, None) is values
    assert normalize_reward(values, None) is values
