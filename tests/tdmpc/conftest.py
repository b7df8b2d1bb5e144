"""A small environment, small networks and a small planner, so that a test takes at most a second."""

from copy import deepcopy
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry

from sb3_mbrl import TDMPC, TDMPC2

CLASSES = {"tdmpc": TDMPC, "tdmpc2": TDMPC2}


class Slider(gym.Env):
    """
    A point on a line, which is pushed by the action and rewarded for being near 0.

    :param ends: whether the task terminates beyond 1.2
    :param observes: the kind of observation: ``"state"``, ``"image"`` or ``"dict"``
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}

    def __init__(self, ends=False, observes="state", render_mode=None):
        self.render_mode = render_mode
        self.ends, self.observes = ends, observes
        state = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        image = spaces.Box(0, 255, (40, 40, 1), np.uint8)
        both = spaces.Dict({"position": spaces.Box(-9, 9, (1,), np.float32), "velocity": spaces.Box(-9, 9, (1,), np.float32)})
        self.observation_space = {"state": state, "image": image, "dict": both}[observes]
        self.action_space = spaces.Box(-2.0, 4.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-1.0, -0.1], [1.0, 0.1])
        return self._observation(), {}

    def step(self, action):
        position, velocity = self.state
        velocity = 0.8 * velocity + 0.2 * (float(action[0]) - 1) / 3
        self.state = np.array([position + 0.5 * velocity, velocity])
        ended = self.ends and bool(abs(self.state[0]) > 1.2)
        return self._observation(), float(1 - abs(self.state[0])), ended, False, {}

    def _observation(self):
        position, velocity = self.state.astype(np.float32)
        if self.observes == "state":
            return np.array([position, velocity])
        if self.observes == "dict":
            return {"position": np.array([position]), "velocity": np.array([velocity])}
        image = np.zeros((40, 40, 1), np.uint8)
        image[:, int(np.clip(20 + 10 * position, 0, 39))] = 255
        return image


ENVS = {
    "LatentSlider-v0": {},
    "Cliff-v0": {"ends": True},
    "SliderImage-v0": {"observes": "image"},
    "SliderDict-v0": {"observes": "dict"},
}


@pytest.fixture(autouse=True, scope="session")
def slider_ids():
    """Episodes of 20 steps."""
    for env_id, kwargs in ENVS.items():
        register(env_id, entry_point=Slider, max_episode_steps=20, kwargs=kwargs)
    yield
    for env_id in ENVS:
        registry.pop(env_id)


SIZES = {
    "tdmpc": {"encoder": 16, "mlp": 16, "latent": 8},
    "tdmpc2": {"encoder": 16, "mlp": 16, "latent": 16, "encoder_layers": 2, "n_critics": 3},
}
TINY = {
    "learning_starts": 20,
    "pretrain_steps": 2,
    "buffer_size": 1_000,
    "batch_size": 8,
    "horizon": 3,
    "n_proposals": 3,
    "planner_kwargs": {"population_size": 12, "n_elites": 4, "n_iterations": 2},
    "seed": 0,
    "device": "cpu",
}
SHORT = {"horizon_schedule": (0, 60, 1, 3), "std_schedule": (0, 60, 0.5, 0.05)}


@pytest.fixture
def make():
    """``make(kind, env="LatentSlider-v0", policy="MlpPolicy", **changes)``: a small TD-MPC or TD-MPC2."""

    def made(kind, env="LatentSlider-v0", policy="MlpPolicy", **changes):
        own = SHORT if kind == "tdmpc" else {}
        return CLASSES[kind](policy, env, **{"model_size": SIZES[kind], **deepcopy(TINY), **own, **changes})

    return made


@pytest.fixture(params=CLASSES)
def kind(request):
    """The name of either algorithm."""
    return request.param


@pytest.fixture(scope="session", params=CLASSES)
def trained(request, slider_ids):
    """Either algorithm after a few episodes that may terminate. Tests share it, so they must not train it further."""
    own = SHORT if request.param == "tdmpc" else {}
    return CLASSES[request.param]("MlpPolicy", "Cliff-v0", model_size=SIZES[request.param], **deepcopy(TINY), **own).learn(60)


@pytest.fixture
def algorithms():
    """``{"tdmpc": TDMPC, "tdmpc2": TDMPC2}``."""
    return CLASSES
