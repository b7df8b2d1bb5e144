"""Bad input is refused at construction; the message says what was given, what is accepted, and what to do."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl.common.sequences import DictSequenceReplayBuffer
from sb3_mbrl.tdmpc.policies import MlpPolicy

FLAT = spaces.Box(-1.0, 1.0, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 40, 3), np.uint8)


class Blank(gym.Env):
    def __init__(self, observation_space=FLAT, action_space=FLAT):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def first(value):
    return "-".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, dict) else ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"priority_exponent": 1.5}, r"priority_exponent must be a number in \[0, 1\]"),
        ({"horizon_schedule": 5}, "horizon_schedule must be .start, end, first, last.*; got 5"),
        ({"horizon_schedule": (0, 10, 1)}, "horizon_schedule must be .start, end, first, last"),
        ({"horizon_schedule": (10, 10, 1, 3)}, "the first before the second"),
        ({"horizon_schedule": (0, 10, 0, 3)}, "values from 1 to inf"),
        ({"std_schedule": (0, 10, 0.5, -0.1)}, "std_schedule must be .*, then values from 0 to 2.0"),
        ({"std_schedule": (0, 10, 3.0, 0.1)}, "std_schedule must be .*, then values from 0 to 2.0"),
        ({"std_schedule": "linear"}, "std_schedule must be .*; got 'linear'"),
        ({"planner_kwargs": {"std_bounds": (0.1, 1)}}, "does not accept 'std_bounds', which is set by std_schedule"),
        ({"planner_kwargs": {"horizon": 2}}, "does not accept 'horizon', which is set by horizon_schedule"),
    ],
    ids=first,
)
def test_arguments_of_tdmpc(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make("tdmpc", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho": 1.5}, r"rho must be a number in \(0, 1\], got 1.5"),
        ({"gamma": 1.1}, r"gamma must be a number in \[0, 1\], or None"),
        ({"buffer_size": 2}, "buffer_size=2 transitions .* have no room for a sequence"),
        ({"planner": "cem"}, "planner must be 'mppi', or 'none' to act by the policy prior alone; got 'cem'"),
        ({"planner_kwargs": {"elites": 3}}, r"planner_kwargs does not accept \['elites'\]; it accepts \[.*'n_elites'"),
        ({"planner_kwargs": {"n_elites": 600}}, "n_elites"),
        ({"planner_kwargs": {"temperature": 0}}, "temperature must be a number above 0, got 0"),
        ({"policy_kwargs": {"unknown": [8]}}, r"policy_kwargs does not accept \['unknown'\]; it accepts"),
        ({"policy_kwargs": {"net_arch": [8]}}, "policy_kwargs does not accept 'net_arch', which is set by model_size"),
        ({"policy_kwargs": {"n_critics": 2}}, "policy_kwargs does not accept 'n_critics', which is set by model_size"),
        ({"policy_kwargs": {"seed": 1}}, "policy_kwargs does not accept 'seed', which is set by the argument of this name"),
        ({"policy_kwargs": {"discount": 1}}, "policy_kwargs does not accept 'discount', which is set by gamma"),
        ({"policy_kwargs": {"max_plan_seconds": 0}}, "max_plan_seconds must be a number above 0"),
        ({"replay_buffer_kwargs": {"optimize_memory_usage": True}}, "'optimize_memory_usage'.* lose the last observation"),
        ({"replay_buffer_kwargs": {"horizon": 2}}, "does not accept 'horizon', which is set by horizon"),
        ({"replay_buffer_kwargs": {"priority_exponent": 1}}, "does not accept 'priority_exponent'"),
        ({"replay_buffer_kwargs": {"n_steps": 3}}, r"replay_buffer_kwargs does not accept \['n_steps'\]"),
        ({"replay_buffer_class": ReplayBuffer}, "must be SequenceReplayBuffer or a subclass .* got ReplayBuffer"),
        ({"replay_buffer_class": DictReplayBuffer}, "must be SequenceReplayBuffer or a subclass .* got DictReplayBuffer"),
        ({"replay_buffer_class": DictSequenceReplayBuffer}, "must be SequenceReplayBuffer .* got DictSequenceReplayBuffer"),
        ({"train_freq": "often"}, "train_freq"),
    ],
    ids=first,
)
def test_other_arguments(make, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **changes)


@pytest.mark.parametrize(
    ("action_space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,), np.float32), "Actions are scaled to .*finite bounds.*TransformAction"),
        (spaces.Box(-1.0, np.inf, (2,), np.float32), "finite bounds"),
        (spaces.Box(np.float32([-1, 1]), np.float32([1, 1])), "low < high in each dimension"),
        (spaces.Discrete(3), r"supports Box actions, got Discrete\(3\). PETS, Dyna and DynaQ"),
        (spaces.MultiDiscrete([2, 3]), "supports Box actions, got MultiDiscrete"),
        (spaces.MultiBinary(3), "supports Box actions, got MultiBinary"),
    ],
    ids=str,
)
def test_actions(make, kind, action_space, message):
    with pytest.raises(ValueError, match=message):
        make(kind, Blank(action_space=action_space), gamma=0.9)


@pytest.mark.parametrize(
    ("policy", "observation_space", "message"),
    [
        ("MlpPolicy", IMAGE, "MlpPolicy takes flat observations; CnnPolicy takes images"),
        ("CnnPolicy", FLAT, "CnnPolicy takes images of at least 39 x 39 pixels.*MlpPolicy takes flat observations"),
        ("CnnPolicy", spaces.Box(0, 255, (3, 36, 36), np.uint8), "CnnPolicy takes images of at least 39 x 39 pixels"),
        (
            "CnnPolicy",
            spaces.Box(0, 1, (3, 40, 40), np.float32),
            "policy_kwargs=.*'normalized_image': True",
        ),
        ("MlpPolicy", spaces.Dict({"a": FLAT}), "must use `MultiInputPolicy`"),
        (MlpPolicy, spaces.Dict({"a": FLAT}), "MultiInputPolicy takes Dict"),
        ("MultiInputPolicy", FLAT, "MultiInputPolicy takes Dict observations; MlpPolicy takes flat ones"),
        ("BestPolicy", FLAT, "Policy BestPolicy unknown"),
        (SACPolicy, FLAT, r"policy must be one of \['CnnPolicy', 'MlpPolicy', 'MultiInputPolicy'\].*got SACPolicy"),
    ],
    ids=str,
)
def test_observations(make, kind, policy, observation_space, message):
    with pytest.raises(ValueError, match=message):
        make(kind, Blank(observation_space), policy, gamma=0.9)


def test_the_advice_on_unbounded_actions_helps(make, kind):
    unbounded = Blank(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    bounded = TransformAction(unbounded, lambda action: action, spaces.Box(-1, 1, (2,), np.float32))
    assert make(kind, bounded, gamma=0.9).action_space.is_bounded()


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("tdmpc", "tiny", r"model_size must be one of \['small', 'default'\], or a mapping .*'latent'\]"),
        ("tdmpc", [16, 16, 8], "model_size must be one of"),
        ("tdmpc", {"encoder": 16}, r"mapping must have the keys \['encoder', 'mlp', 'latent'\].*got \{'encoder': 16\}"),
        ("tdmpc", {"encoder": 16, "mlp": 16, "latent": 0}, "an integer of at least 1"),
        ("tdmpc2", 7, "model_size must be one of .*317"),
        (
            "tdmpc2",
            {"encoder": 16, "mlp": 16, "latent": 12, "encoder_layers": 2, "n_critics": 3},
            "must be a multiple of 8, got 12",
        ),
    ],
    ids=str,
)
def test_sizes(make, kind, size, message):
    with pytest.raises(ValueError, match=message):
        make(kind, model_size=size)


def test_dicts_need_a_buffer_of_dicts(make):
    buffer_class = make("tdmpc2", "LatentSlider-v0").replay_buffer_class
    with pytest.raises(ValueError, match="must be DictSequenceReplayBuffer .* Dict observations, got SequenceReplayBuffer"):
        make("tdmpc2", "SliderDict-v0", "MultiInputPolicy", replay_buffer_class=buffer_class)
    with pytest.raises(ValueError, match="horizon=3 transitions of each"):
        make("tdmpc2", "SliderDict-v0", "MultiInputPolicy", replay_buffer_class=DictSequenceReplayBuffer, buffer_size=1)


def test_without_a_time_limit_gamma_is_099_and_is_announced(make, kind):
    with pytest.warns(UserWarning, match="time limit .* is not known. gamma is derived from it, and is 0.99 instead"):
        model = make(kind, Blank())
    assert model.gamma == model.policy.objective.discount == 0.99
    assert make(kind, Blank(), gamma=0.9).gamma == 0.9


def test_arguments_replaced_by_load_are_checked_too(trained, tmp_path):
    trained.save(tmp_path / "model")
    with pytest.raises(ValueError, match="rho must be a number in"):
        type(trained).load(tmp_path / "model", rho=-1)
    with pytest.raises(ValueError, match="finite bounds"):
        trained.set_env(Blank(action_space=spaces.Box(-np.inf, np.inf, (1,), np.float32)))


@pytest.mark.parametrize("bad", ["observation", "reward"])
def test_an_environment_that_returns_nan(make, kind, bad):
    class Breaks(gym.Wrapper):
        n_steps = 0

        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            self.n_steps += 1
            if self.n_steps == 25:
                obs, reward = (obs * np.nan, reward) if bad == "observation" else (obs, np.nan)
            return obs, reward, *rest

    model = make(kind, Breaks(gym.make("LatentSlider-v0")))
    with pytest.raises(
        ValueError, match=f"returned an? {bad} that is NaN, infinite or larger than 1e\\+18 at step 25.*It was not stored"
    ):
        model.learn(40)
    assert model.replay_buffer.size() == 24
    assert model.learn(10, reset_num_timesteps=False).num_timesteps == 35


def test_episodes_shorter_than_the_horizon(make, kind):
    model = make(kind, gym.make("LatentSlider-v0", max_episode_steps=2)).learn(30)
    assert model._n_updates > 0
    assert model._last_batch.valid.mean(dim=1).tolist()[-1] == 0


@pytest.mark.parametrize("part", ["encoder", "dynamics", "critics", "prior"])
def test_diverged_networks_are_detected(make, kind, part):
    model = make(kind).learn(21)
    next(getattr(model.model, part).parameters()).data.fill_(th.nan)
    with pytest.raises(ValueError, match="The networks have diverged: after .*Lower learning_rate"):
        model.learn(1, reset_num_timesteps=False)
