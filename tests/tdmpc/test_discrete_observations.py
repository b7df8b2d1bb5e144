"""Discrete observations may start at any number; the networks see them counted from 0."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.tdmpc.latent_model import counted_from_zero

DISCRETE = spaces.Discrete(4, start=3)
MULTI = spaces.MultiDiscrete([3, 4], start=[-1, 10])
SPACES = {
    "discrete": DISCRETE,
    "negative": spaces.Discrete(4, start=-4),
    "multi": MULTI,
    "dict": spaces.Dict({"cell": DISCRETE, "two": MULTI, "position": spaces.Box(-1, 1, (2,))}),
}


class Dice(gym.Env):
    """An environment that returns samples of its observation space."""

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Box(-1.0, 1.0, (1,))
        self.age = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.age += 1
        return self.observation_space.sample(), 0.0, False, self.age == 8, {}


def policy_for(space):
    return "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"


@pytest.mark.parametrize("name", SPACES)
def test_it_learns_and_predicts(make, kind, name):
    space = SPACES[name]
    model = make(kind, Dice(space), policy_for(space), gamma=0.9).learn(25)
    assert model._n_updates > 0
    for _ in range(10):
        assert model.action_space.contains(model.predict(space.sample(), deterministic=True)[0])


def test_each_value_is_a_different_input(make, kind):
    model = make(kind, Dice(DISCRETE), gamma=0.9).policy.model
    inputs = model.preprocess(th.arange(3, 7).unsqueeze(1))
    assert th.equal(inputs.squeeze(1), th.eye(4))
    inputs = make(kind, Dice(MULTI), gamma=0.9).policy.model.preprocess(th.tensor([[-1, 13], [1, 10]]))
    assert inputs.tolist() == [[1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0]]


def test_spaces_that_count_from_0_are_not_changed():
    obs = {"cell": th.zeros(2, 1), "position": th.zeros(2, 2)}
    space = spaces.Dict({"cell": spaces.Discrete(3), "position": spaces.Box(-1, 1, (2,))})
    counted = counted_from_zero(obs, space)
    assert all(counted[name] is obs[name] for name in obs)


@pytest.mark.parametrize("in_dict", [False, True])
def test_two_dimensions_are_refused_with_what_to_do(make, kind, in_dict):
    space = spaces.MultiDiscrete(np.full((2, 3), 4))
    space = spaces.Dict({"board": space}) if in_dict else space
    with pytest.raises(ValueError, match="MultiDiscrete observations must have one dimension.*Flatten them"):
        make(kind, Dice(space), policy_for(space), gamma=0.9)
