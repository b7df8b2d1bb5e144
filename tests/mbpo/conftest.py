"""A small environment and a small model, so that tests of MBPO take a second or two."""

from copy import deepcopy
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry

from sb3_mbrl.mbpo import MBPO


class PointMass(gym.Env):
    """
    A point on a line that is rewarded for being near 0. The first action pushes it; the others do nothing.

    :param limit: the episode terminates beyond this position
    :param low: lowest action
    :param high: highest action
    :param action_shape: shape of the actions
    :param dtype: type of observations and actions
    :param bad_reset: an invalid first observation, which must be detected
    :param bad_steps: invalid results by number of the step since construction: ``(observation entry, reward)``
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        limit=np.inf,
        low=-1.0,
        high=1.0,
        action_shape=(1,),
        dtype=np.float32,
        bad_reset=None,
        bad_steps=None,
        render_mode=None,
    ):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), dtype)
        self.action_space = spaces.Box(low, high, action_shape, dtype)
        self.limit, self.bad_reset, self.bad_steps = limit, bad_reset, bad_steps or {}
        self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2) * [1.0, 0.1]
        return self._observation(self.bad_reset), {}

    def step(self, action):
        low, high = self.action_space.low, self.action_space.high
        push = ((action - low) / (high - low) * 2 - 1).flatten()[0]
        position, velocity = self.state
        velocity = 0.9 * velocity + 0.2 * push
        self.state = np.array([position + 0.5 * velocity, velocity])
        self.n_steps += 1
        bad_obs, bad_reward = self.bad_steps.get(self.n_steps, (None, None))
        reward = 1.0 - abs(self.state[0]) if bad_reward is None else bad_reward
        return self._observation(bad_obs), float(reward), bool(abs(self.state[0]) > self.limit), False, {}

    def _observation(self, bad):
        obs = self.state.astype(self.observation_space.dtype)
        if bad is not None:
            obs[1] = bad
        return obs


@pytest.fixture(autouse=True, scope="session")
def point_mass_ids():
    """``PointMass-v0`` never terminates, ``Line-v0`` does beyond 1.2; episodes of 30 steps."""
    added = {"PointMass-v0": {}, "Line-v0": {"limit": 1.2}}
    for env_id, kwargs in added.items():
        register(env_id, entry_point=PointMass, max_episode_steps=30, kwargs=kwargs)
    yield
    for env_id in added:
        registry.pop(env_id)


TINY = {
    "learning_starts": 40,
    "buffer_size": 2_000,
    "batch_size": 32,
    "gradient_steps": 1,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
    "model_train_freq": 50,
    "rollouts_per_step": 10,
    "real_ratio": 0.25,
    "dynamics_kwargs": {"ensemble_size": 3, "n_elites": 2, "net_arch": [16, 16]},
    "fit_kwargs": {"max_epochs": 3},
}


@pytest.fixture(scope="session")
def tiny_settings():
    return TINY


@pytest.fixture
def tiny(tiny_settings):
    """Arguments of a small MBPO, which a test may change."""
    return deepcopy(tiny_settings)


@pytest.fixture
def make_mbpo(tiny):
    """``make_mbpo(env="PointMass-v0", **changes)``: a small MBPO."""

    def make(env="PointMass-v0", **changes):
        return MBPO("MlpPolicy", env, **{**tiny, **changes})

    return make
