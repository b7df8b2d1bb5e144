"""A small environment and a small PETS, so that tests of planners as policies take a second or two."""

from copy import deepcopy
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry

from sb3_mbrl import PETS


class Slider(gym.Env):
    """
    A point on a line, which is pushed by the action and rewarded for being near 0.

    :param discrete: three actions (left, none, right), numbered from 5, instead of a Box of [-2, 2]
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}

    def __init__(self, discrete=False, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3, start=5) if discrete else spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.discrete = discrete

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-1.0, -0.1], [1.0, 0.1])
        return self.state.astype(np.float32), {}

    def step(self, action):
        push = float(action - 6) if self.discrete else float(action[0]) / 2
        position, velocity = self.state
        velocity = 0.8 * velocity + 0.2 * push
        self.state = np.array([position + 0.5 * velocity, velocity])
        return self.state.astype(np.float32), float(1 - abs(self.state[0])), False, False, {}


@pytest.fixture(autouse=True, scope="session")
def slider_ids():
    """Registers the ids, with episodes of 25 steps. Test folders share this fixture; the first one registers them."""
    ids: dict[str, dict] = {"Slider-v0": {}, "DiscreteSlider-v0": {"discrete": True}}
    added = {env_id: kwargs for env_id, kwargs in ids.items() if env_id not in registry}
    for env_id, kwargs in added.items():
        register(env_id, entry_point=Slider, max_episode_steps=25, kwargs=kwargs)
    yield
    for env_id in added:
        registry.pop(env_id)


TINY = {
    "learning_starts": 50,
    "buffer_size": 1_000,
    "planner": "cem",
    "horizon": 4,
    "planner_kwargs": {"population_size": 20, "n_elites": 4, "n_iterations": 2},
    "n_particles": 2,
    "model_train_freq": 25,
    "dynamics_kwargs": {"ensemble_size": 2, "n_elites": 2, "net_arch": [16, 16]},
    "fit_kwargs": {"max_epochs": 5},
    "termination_fn": None,
    "seed": 0,
    "device": "cpu",
}


@pytest.fixture
def make_pets():
    """A function ``make_pets(env="Slider-v0", **changes)`` that returns a small PETS."""

    def make(env="Slider-v0", **changes):
        return PETS("MPCPolicy", env, **{**deepcopy(TINY), **changes})

    return make


@pytest.fixture(scope="session")
def trained(slider_ids):
    """A small PETS with a fitted model. Tests share it, so they must not train it further."""
    return PETS("MPCPolicy", "Slider-v0", **deepcopy(TINY)).learn(60)
