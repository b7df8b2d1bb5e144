"""A small environment that passes the checkers, and models of it."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.envs import LearnedModelEnv, LearnedModelVecEnv


class Drift(gym.Env):
    """
    A position and a velocity in [-1, 1] that an action in [-1, 1] accelerates; ends beyond 0.9.

    :param dtype: type of the observations
    """

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, dtype=np.float32):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), dtype)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.5, 0.5, 2)
        return self.state.astype(self.observation_space.dtype), {}

    def step(self, action):
        position, velocity = self.state
        velocity = np.clip(0.9 * velocity + 0.1 * action[0], -1, 1)
        position = np.clip(position + 0.2 * velocity, -1, 1)
        self.state = np.array([position, velocity])
        ended = bool(abs(position) > 0.9)
        return self.state.astype(self.observation_space.dtype), float(-abs(position)), ended, False, {}


class Scripted:
    """
    A model that adds the action to the first entry of the observation, and ends above ``end``. Its two members disagree by
    ``disagreement`` about the observation (one entry) and by ``reward_std`` about the reward.

    :param end: the task terminates if the first entry is above this value
    :param broken_above: the prediction is ``broken`` if the first entry is above this value
    :param broken: the prediction in that case
    """

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_dim = 1
    device = th.device("cpu")
    elites = th.tensor([1, 4, 2])

    def __init__(self, end=np.inf, broken_above=np.inf, broken=np.nan, disagreement=0.0, reward_std=0.0):
        self.end, self.broken_above, self.broken = end, broken_above, broken
        self.disagreement, self.reward_std = disagreement, reward_std
        self.seen_members = []

    def start(self, obs):
        return obs.float()

    def observe(self, states):
        return states

    def unscale_action(self, action):
        return action

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        self.seen_members.append(members.clone() if isinstance(members, th.Tensor) else members)
        next_obs = obs + th.cat([action, th.zeros_like(action)], dim=1)
        next_obs = th.where(next_obs[:, :1] > self.broken_above, self.broken, next_obs)
        std = th.tensor([self.disagreement, 0.0, self.reward_std]).expand(len(obs), 3) if uncertainty else None
        return ModelStep(next_obs, th.ones(len(obs)), next_obs[:, 0] > self.end, std, std)


@pytest.fixture
def scripted():
    return Scripted


@pytest.fixture
def make_vec():
    """``make_vec(n_envs=3, max_episode_steps=5, model=..., **rules)``: environments that start at 0, in a scripted model."""

    def make(n_envs=3, max_episode_steps=5, model=None, start_states=((0.0, 0.0),), stagger=False, **rules):
        model = Scripted() if model is None else model
        starts = start_states if callable(start_states) else np.array(start_states, np.float32)
        return LearnedModelVecEnv(model, n_envs, starts, max_episode_steps, stagger=stagger, **rules)

    return make


TINY = {
    "n_steps": 200,
    "dynamics_kwargs": {"ensemble_size": 3, "n_elites": 2, "net_arch": [16]},
    "fit_kwargs": {"max_epochs": 3},
    "seed": 0,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def tiny_fit():
    """Arguments of a small ``from_env``."""
    return TINY


@pytest.fixture(scope="session")
def drift():
    return Drift


@pytest.fixture(scope="session")
def drift_ends():
    """The termination function of :class:`Drift`."""
    return lambda obs, action, next_obs: next_obs[:, 0].abs() > 0.9


@pytest.fixture(scope="session")
def drift_model(drift_ends):
    """A model that is fitted once; a test that fits it further must make its own."""
    return LearnedModelEnv.from_env(Drift(), max_episode_steps=20, termination_fn=drift_ends, **TINY).dynamics


@pytest.fixture
def drift_env(drift_model):
    return LearnedModelEnv(Drift(), drift_model, max_episode_steps=20)


@pytest.fixture
def drift_vec(drift_model):
    starts = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
    return LearnedModelVecEnv(drift_model, 4, starts, max_episode_steps=20)
