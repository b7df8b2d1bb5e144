"""Integer Boxes, and discrete actions that do not start at 0: executed actions are valid and are learned from."""

from copy import deepcopy
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, LearnedModelVecEnv, MBCrossQ, MPCPolicy
from sb3_mbrl.common.actions import for_sb3, from_environment, from_sb3
from sb3_mbrl.common.trajectories import real_transitions, trajectories_from_buffer
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import ProbabilisticEnsemble
from sb3_mbrl.envs import LearnedModelEnv, collect

INTEGERS = {
    "int32": spaces.Box(-5, 5, (1,), np.int32),
    "int8": spaces.Box(-100, 100, (1,), np.int8),
    "uint8": spaces.Box(0, 255, (2,), np.uint8),
}
SPACES = {**INTEGERS, "float16": spaces.Box(-4e4, 4e4, (1,), np.float16)}


class Echo(gym.Env):
    """An environment that returns the executed action, scaled to [-1, 1] in float64, as its observation."""

    metadata: ClassVar[dict] = {"render_modes": []}

    def __init__(self, space):
        self.action_space = space
        n = 1 if isinstance(space, spaces.Discrete) else space.shape[0]
        self.observation_space = spaces.Box(-1.0, 1.0, (n,), np.float32)
        self.age = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.age += 1
        return self.scaled(action), 0.0, False, self.age == 10, {}

    def scaled(self, action):
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return np.array([float(action - space.start) / space.n], np.float32)
        low, high = space.low.astype(float), space.high.astype(float)
        return ((np.asarray(action, float) - low) / (high - low) * 2 - 1).astype(np.float32)


ENSEMBLE = {"ensemble_size": 2, "n_elites": 2, "net_arch": [8]}
SMALL = {"learning_starts": 40, "buffer_size": 200, "seed": 0, "device": "cpu"}
FITTED = {**SMALL, "termination_fn": None, "dynamics_kwargs": ENSEMBLE, "fit_kwargs": {"max_epochs": 1}}
IMAGINED = {"max_episode_steps": 5, "n_imagined_envs": 2, "imagined_steps_per_step": 1, "model_train_freq": 100}
MODEL_BASED = {**FITTED, "batch_size": 8, "gradient_steps": 1, "rollouts_per_step": 2, "real_ratio": 0.5}
MODEL_BASED["policy_kwargs"] = {"net_arch": [8]}
PLAN = {"population_size": 8, "n_elites": 2, "n_iterations": 1}
LATENT = {**SMALL, "pretrain_steps": 1, "batch_size": 4, "gamma": 0.9, "n_proposals": 2, "planner_kwargs": PLAN}
TOLD = {"encoder": 8, "mlp": 8, "latent": 8}
OFF_POLICY = {"learning_starts": 4, "batch_size": 4, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}}
ON_POLICY = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}}
PLANNED = {"planner": "cem", "horizon": 2, "planner_kwargs": PLAN, "n_particles": 2}

WORLD = {**TOLD, "encoder_layers": 1, "n_critics": 2}
MAKE = {
    "mbpo": (MBPO, MODEL_BASED),
    "mbtqc": (MBTQC, MODEL_BASED),
    "mbcrossq": (MBCrossQ, MODEL_BASED),
    "mbtd3": (MBTD3, MODEL_BASED),
    "pets": (PETS, {**FITTED, **PLANNED, "policy": "MPCPolicy"}),
    "tdmpc": (TDMPC, {**LATENT, "model_size": TOLD}),
    "tdmpc2": (TDMPC2, {**LATENT, "model_size": WORLD}),
    "dyna-ppo": (Dyna, {**FITTED, **IMAGINED, "algorithm_class": PPO, "algorithm_kwargs": ON_POLICY}),
    "dyna-sac": (Dyna, {**FITTED, **IMAGINED, "algorithm_class": SAC, "algorithm_kwargs": OFF_POLICY}),
}


def make(name, env, **changes):
    cls, kwargs = MAKE[name]
    return cls(env=env, **{"policy": "MlpPolicy", **deepcopy(kwargs), **changes})  # SB3 writes to policy_kwargs


def assert_learned_from_what_was_executed(model):
    buffer, n = model.replay_buffer, model.replay_buffer.size()
    np.testing.assert_allclose(buffer.actions[:n], buffer.next_observations[:n], atol=1e-3)
    assert len(np.unique(buffer.actions[:n, ..., 0])) > 3


def assert_predicts_in_the_space(predict, space):
    obs = np.random.default_rng(0).uniform(-1, 1, (5, *Echo(space).observation_space.shape)).astype(np.float32)
    for actions in (predict(obs)[0], [predict(each)[0] for each in obs]):
        assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for kind in SPACES for name in (MAKE if kind == "int8" else ("mbpo", "tdmpc2", "dyna-sac"))],
)
def test_executed_actions_are_in_the_space_and_are_learned_from(name, kind, tmp_path):
    space = SPACES[kind]
    model = make(name, DummyVecEnv([lambda: Echo(space)] * 2)).learn(52)
    assert_learned_from_what_was_executed(model)
    assert_predicts_in_the_space(model.predict, space)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", env=DummyVecEnv([lambda: Echo(space)] * 2), device="cpu")
    assert_predicts_in_the_space(loaded.predict, space)
    assert loaded.replay_buffer.actions.dtype == np.float32


@pytest.mark.parametrize("name", ["mbpo", "pets", "tdmpc2", "dyna-sac"])
def test_noise_is_rounded_with_the_action(name):
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.5))
    model = make(name, Echo(INTEGERS["int8"]), action_noise=noise).learn(50)
    assert_learned_from_what_was_executed(model)


@pytest.mark.parametrize("kind", INTEGERS)
def test_random_actions_cover_all_whole_numbers(kind):
    trajectories = collect(Echo(INTEGERS[kind]), 3_000, seed=0)
    for trajectory in trajectories[:5]:
        np.testing.assert_allclose(trajectory.actions, trajectory.next_observations, atol=1e-6)
    actions = th.cat([trajectory.actions for trajectory in trajectories])
    assert actions.min() == -1 and actions.max() == 1


def test_a_model_is_stepped_with_the_actions_that_would_be_executed():
    space = spaces.Box(0, 3, (1,), np.uint8)
    model = ProbabilisticEnsemble(spaces.Box(-1, 1, (1,)), space, **ENSEMBLE, device="cpu")
    action = th.linspace(-1, 1, 31).unsqueeze(1).requires_grad_()
    obs = th.zeros(31, 1)
    rewards = model.step(obs, action, members="expectation").reward
    assert len(rewards.unique()) == 4
    rewards.sum().backward()
    assert (action.grad != 0).all()  # a planner or a policy can still improve on it


@pytest.mark.parametrize("name", ["tdmpc", "tdmpc2"])
def test_a_latent_model_is_stepped_with_the_actions_that_would_be_executed(name):
    model = make(name, Echo(spaces.Box(0, 3, (1,), np.uint8))).model
    action = th.linspace(-1, 1, 31).unsqueeze(1)
    latents = model.step(model.start(th.zeros(1, 1)).expand(31, -1), action).next_obs
    assert len(latents.round(decimals=4).unique(dim=0)) == 4


def test_planned_actions_are_in_the_space():
    space = INTEGERS["uint8"]
    model = ProbabilisticEnsemble(Echo(space).observation_space, space, **ENSEMBLE, device="cpu")
    data = th.rand(50, 2) * 2 - 1
    model.fit(Transitions(data, data, data, data[:, 0], th.zeros(50, dtype=th.bool)), max_epochs=1)
    assert_predicts_in_the_space(MPCPolicy(model, "cem", horizon=2, planner_kwargs=PLAN).predict, space)


@pytest.mark.parametrize("read", [real_transitions, trajectories_from_buffer])
def test_actions_that_were_cut_to_whole_numbers_are_not_learned_from(read):
    space, zeros = spaces.Box(-1, 1, (1,)), np.zeros((1, 1))
    buffer = ReplayBuffer(10, space, INTEGERS["int32"], device="cpu")  # as SB3's algorithms make it
    buffer.add(zeros, zeros, np.full((1, 1), 0.4), zeros[0], zeros[0], [{}])
    assert buffer.actions[0] == 0
    with pytest.raises(ValueError, match="keeps actions as int32, .* cut to -1, 0 and 1"):
        read(buffer, "cpu")


@pytest.mark.parametrize("name", ["mbpo", "tdmpc2", "pets"])
def test_a_buffer_that_cuts_actions_is_refused_when_learning_continues(name):
    env = Echo(INTEGERS["int32"])
    model = make(name, env)
    model.replay_buffer.actions = model.replay_buffer.actions.astype(np.int32)
    with pytest.raises(ValueError, match="keeps actions as int32"):
        model.learn(10)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("low, high, dtype", [(0, 0, np.float32), (1, 1, np.int8), (-3e38, 3e38, np.float32)])
def test_bounds_that_do_not_allow_scaling_are_refused(name, low, high, dtype):
    with pytest.raises(ValueError, match="low < high in each dimension, and a difference that float32 can hold"):
        make(name, Echo(spaces.Box(low, high, (1,), dtype)))


# ---------------------------------------------------------------- discrete actions


@pytest.mark.parametrize("start", [-2, 1, 5])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_dyna_counts_discrete_actions_from_0(algorithm, start, tmp_path):
    space = spaces.Discrete(3, start=start)
    kwargs = ON_POLICY if algorithm is PPO else {**OFF_POLICY, "exploration_fraction": 0.01}
    env = DummyVecEnv([lambda: Echo(space)] * 2)
    model = make("dyna-ppo", env, algorithm_class=algorithm, algorithm_kwargs=deepcopy(kwargs)).learn(60)
    assert_predicts_in_the_space(model.predict, space)
    n = model.replay_buffer.size()
    expected = (model.replay_buffer.actions[:n] - start) / 3
    np.testing.assert_allclose(expected, model.replay_buffer.next_observations[:n], atol=1e-6)
    assert model.agent.action_space == spaces.Discrete(3)
    model.save(tmp_path / "model")
    assert_predicts_in_the_space(Dyna.load(tmp_path / "model", env=env, device="cpu").predict, space)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=5), INTEGERS["int8"]], ids=str)
def test_algorithms_of_sb3_learn_in_the_model(space):
    kwargs = {
        "n_steps": 60,
        "max_episode_steps": 5,
        "seed": 0,
        "device": "cpu",
        "termination_fn": None,
        "dynamics_kwargs": ENSEMBLE,
    }
    kwargs["fit_kwargs"] = {"max_epochs": 1}
    env = LearnedModelVecEnv.from_env(Echo(space), n_envs=2, **kwargs)
    PPO("MlpPolicy", env, device="cpu", **deepcopy(ON_POLICY)).learn(16)
    algorithm = DQN if isinstance(space, spaces.Discrete) else SAC
    model = algorithm("MlpPolicy", env, device="cpu", **deepcopy(OFF_POLICY)).learn(16)
    assert np.issubdtype(model.replay_buffer.actions.dtype, np.floating) or algorithm is DQN
    # LearnedModelEnv has the actions of the real environment, and refuses others with a message that says so
    env = LearnedModelEnv.from_env(Echo(space), **kwargs)
    assert env.action_space == space
    env.reset(seed=0)
    env.step(space.sample())
    if isinstance(space, spaces.Discrete):
        with pytest.raises(ValueError, match="from 0 to 0, but those of .* from 5 to 7.*Policies of Stable-Baselines3 count"):
            env.step(0)


def test_spaces_that_sb3_supports_are_not_changed():
    for space in (spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.Box(-2, 1, (2,), np.float64)):
        assert for_sb3(space) is space
        action = space.sample()
        assert from_sb3(action, space) is action


@pytest.mark.parametrize("kind", INTEGERS)
def test_actions_survive_the_conversion_in_both_directions(kind):
    space = INTEGERS[kind]
    actions = np.stack([space.low, space.high, (space.low.astype(int) + space.high) // 2]).astype(space.dtype)
    scaled = from_environment(actions, space)
    assert (scaled[0] == -1).all() and (scaled[1] == 1).all() and (np.abs(scaled[2]) < 0.01).all()
    floats = for_sb3(space)
    assert np.array_equal(floats.low, space.low) and np.array_equal(floats.high, space.high)
    assert np.array_equal(from_sb3(actions + np.float32(0.4), space), actions)


def test_a_buffer_of_floats_is_not_changed():
    space = spaces.Box(-1, 1, (1,))
    model = make("mbpo", Echo(space))
    assert model.replay_buffer.actions.dtype == ReplayBuffer(5, space, space).actions.dtype
    assert model.policy.action_space is model.action_space
