"""MBPO refuses at once what it does not support, and says what to do instead."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import PETS
from sb3_mbrl.mbpo import MBPO

NAN, INF = float("nan"), float("inf")


class OfSpaces(gym.Env):
    """An environment that has only spaces."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


FLAT = spaces.Box(-1.0, 1.0, (3,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
GOAL = spaces.Dict({"observation": FLAT, "achieved_goal": FLAT, "desired_goal": FLAT})
BAD_SPACES = [
    (GOAL, FLAT, "got Dict.*FlattenObservation.*TDMPC2\\('MultiInputPolicy'"),
    (IMAGE, FLAT, "images are not supported.*feature extractor"),
    (spaces.Box(-1.0, 1.0, (3, 2)), FLAT, r"shape \(3, 2\).*FlattenObservation"),
    (spaces.Box(0, 9, (3,), np.int64), FLAT, "floats, got shape .* of int64"),
    (spaces.Discrete(3), FLAT, r"got Discrete\(3\).*continuous"),
    (spaces.MultiDiscrete([2, 3]), FLAT, "got MultiDiscrete.*continuous"),
    (spaces.MultiBinary(3), FLAT, r"got MultiBinary\(3\).*continuous"),
    (FLAT, spaces.Discrete(3), r"Box actions, got Discrete\(3\)"),
    (FLAT, spaces.MultiDiscrete([2, 3]), "Box actions, got MultiDiscrete"),
    (FLAT, spaces.Box(-1.0, np.inf, (2,)), "finite bounds.*TransformAction"),
    (FLAT, spaces.Box(-np.inf, np.inf, (2,)), "finite bounds.*TransformAction"),
]


@pytest.mark.parametrize("observation_space, action_space, message", BAD_SPACES)
def test_spaces(make_mbpo, observation_space, action_space, message):
    with pytest.raises(ValueError, match=message):
        make_mbpo(OfSpaces(observation_space, action_space))
    with pytest.raises(ValueError, match=message):
        make_mbpo(DummyVecEnv([lambda: OfSpaces(observation_space, action_space)]))


def test_cart_pole(make_mbpo):
    with pytest.raises(ValueError, match=r"Box actions, got Discrete\(2\)"):
        make_mbpo("CartPole-v1")


def test_the_message_names_the_available_policies():
    with pytest.raises(ValueError, match="MBPO must be 'MlpPolicy' .* TDMPC2 supports Dict observations"):
        MBPO("MultiInputPolicy", OfSpaces(GOAL, FLAT))
    with pytest.raises(ValueError, match="MBPO must be 'MlpPolicy' .* TDMPC2 supports images"):
        MBPO("CnnPolicy", OfSpaces(IMAGE, FLAT))
    with pytest.raises(ValueError, match="Policy MlpPolicy unknown: that of PETS must be 'MPCPolicy'"):
        PETS("MlpPolicy", OfSpaces(FLAT, FLAT))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 8, "real_ratio": 0.1}, "batch_size=8 at real_ratio=0.1 leaves no real.*batch_size >= 10"),
        ({"batch_size": 1, "real_ratio": 0.5}, "batch_size >= 2.*real_ratio=0 to train on imagined"),
        ({"dynamics_kwargs": {"ensemble_size": 3}}, "n_elites must lie between 1 and ensemble_size=3, got 5"),
        ({"dynamics_kwargs": {"n_elites": 8}}, "n_elites must lie between 1 and ensemble_size=7, got 8"),
        ({"dynamics_kwargs": {"n_members": 3}}, r"dynamics_kwargs does not accept \['n_members'\].*ensemble_size"),
        ({"dynamics_kwargs": {"device": "cpu"}}, r"dynamics_kwargs does not accept \['device'\].*MBPO's own arguments"),
        ({"dynamics_kwargs": {"activation": "sine"}}, "activation must be one of .*silu.*got 'sine'"),
        ({"dynamics_kwargs": {"weight_decay": [1e-4, 1e-4]}}, "one for each of 5 layers .*, got 2 numbers"),
        ({"fit_kwargs": {"epochs": 3}}, r"fit_kwargs does not accept \['epochs'\].*max_epochs"),
        ({"fit_kwargs": {"generator": None}}, r"fit_kwargs does not accept \['generator'\]"),
        ({"fit_kwargs": {"patience": -1}}, "patience must be an integer of at least 0, got -1"),
        ({"branch_from": "middle"}, "branch_from must be 'all' or 'initial', got 'middle'"),
        ({"termination_fn": "sometimes"}, "termination_fn must be 'auto', 'learned', a function or None.*got 'sometimes'"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage=True.*smaller buffer_size"),
        ({"replay_buffer_class": HerReplayBuffer}, "HerReplayBuffer holds Dict observations.*Flatten"),
        ({"replay_buffer_class": DictReplayBuffer}, "DictReplayBuffer holds Dict observations"),
        ({"replay_buffer_kwargs": {"handle_timeout_termination": False}}, "handle_timeout_termination=False.*Leave it True"),
        ({"rollout_schedule": (10, 5, 1, 5)}, r"rollout_schedule.*\(start_step, end_step, min_length, max_length\)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments(make_mbpo, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_mbpo(**arguments)


class TestNonFinite:
    """An observation or reward of one step is not finite, with and without terminations, before and after the first fit."""

    @pytest.fixture
    def point_mass(self):
        env_class = type(make_vec_env("PointMass-v0").envs[0].unwrapped)

        def make(**kwargs):
            return gym.wrappers.TimeLimit(env_class(**kwargs), 30)

        return make

    @pytest.mark.parametrize("step", [20, 60, 90], ids=["warm-up", "trained", "last of an episode"])
    @pytest.mark.parametrize(
        "bad, message",
        [
            *[((value, None), "observation") for value in (NAN, INF, 1e30)],
            *[((None, value), "reward") for value in (NAN, -INF)],
        ],
    )
    def test_step(self, make_mbpo, point_mass, bad, message, step):
        model = make_mbpo(point_mass(bad_steps={step: bad}))
        with pytest.raises(
            ValueError, match=f"Environment 0 returned an? (last )?{message} .*at step {step}.*not stored.*Fix"
        ):
            model.learn(200)
        assert model.replay_buffer.size() == step - 1
        for name in ("observations", "next_observations", "rewards"):
            assert np.isfinite(getattr(model.replay_buffer, name)).all()
        model.learn(60, reset_num_timesteps=False)
        assert model.num_timesteps == step + 60
        assert model.dynamics.is_fitted
        assert np.isfinite(model.predict(np.zeros(2, dtype=np.float32))[0]).all()

    def test_one_bad_environment_among_many(self, make_mbpo, point_mass):
        env = DummyVecEnv([point_mass, lambda: point_mass(bad_steps={3: (NAN, None)})])
        with pytest.raises(ValueError, match="Environment 1 returned a"):
            make_mbpo(env).learn(50)

    def test_a_failed_step_does_not_join_transitions_that_do_not_follow(self, make_mbpo, point_mass):
        env = point_mass(bad_steps={10: (NAN, None)})
        model = make_mbpo(env)
        with pytest.raises(ValueError):
            model.learn(50)
        model.learn(1, reset_num_timesteps=False)
        buffer = model.replay_buffer
        assert buffer.size() == 10
        # The environment was reset: to go on from step 9 would store two steps as one
        assert not np.array_equal(buffer.observations[9, 0], buffer.next_observations[8, 0])

    def test_reset(self, make_mbpo, point_mass):
        model = make_mbpo(point_mass(bad_reset=NAN))
        with pytest.raises(ValueError, match=r"reset to an observation that is NaN.*Fix its reset"):
            model.learn(50)
        assert model.replay_buffer.size() == 0

    @pytest.mark.parametrize("bad", [(INF, None), (None, INF)])
    def test_behind_vec_normalize_that_clips(self, make_mbpo, point_mass, bad):
        env = VecNormalize(DummyVecEnv([lambda: point_mass(bad_steps={10: bad})]), training=False)
        with pytest.raises(ValueError, match="NaN, infinite or larger than 1e.18 at step 10"):
            make_mbpo(env).learn(50)


class TestTermination:
    def test_terminations_that_the_rule_excludes(self, make_mbpo):
        with pytest.raises(ValueError, match=r"transitions terminated, but .*never terminates.*termination_fn='learned'"):
            make_mbpo("Line-v0", termination_fn=None).learn(100)

    @pytest.mark.parametrize("function", [lambda o, a, n: n[:, 0], lambda o, a, n: n > 1.2], ids=["floats", "too wide"])
    def test_function_of_another_shape(self, make_mbpo, function):
        with pytest.raises(ValueError, match="termination_fn must return a bool tensor of shape"):
            make_mbpo("Line-v0", termination_fn=function)

    def test_reward_of_another_shape(self, make_mbpo):
        with pytest.raises(ValueError, match="reward_fn must return a float tensor of shape"):
            make_mbpo(reward_fn=lambda o, a, n: n)

    def test_reward_that_is_not_a_number(self, make_mbpo):
        with pytest.raises(ValueError, match="Not one of 500 imagined transitions is finite.*reward_fn"):
            make_mbpo(reward_fn=lambda o, a, n: n[:, 0] * (NAN if len(o) == 500 else 1.0)).learn(100)

    def test_known_task_with_other_rules(self, make_mbpo):
        pytest.importorskip("mujoco")

        class EndsEarly(gym.Wrapper):
            def step(self, action):
                obs, reward, _, truncated, info = self.env.step(action)
                return obs, reward, abs(float(obs[1])) > 0.02, truncated, info

        env = EndsEarly(gym.make("InvertedPendulum-v5"))
        with pytest.raises(ValueError, match=r"disagrees with .* real transitions.*termination_fn='learned'"):
            make_mbpo(env).learn(100)


def test_error_in_the_middle_of_a_batch_gives_the_replay_buffer_back(make_mbpo, monkeypatch):
    model = make_mbpo().learn(60)
    real = model.replay_buffer
    monkeypatch.setattr(type(real), "sample", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.train(1, 32)
    assert model.replay_buffer is real


@pytest.mark.parametrize("reward", [1e18, 1e-18])
def test_rewards_of_any_scale_are_fitted(make_mbpo, reward):
    env = gym.wrappers.TransformReward(gym.make("PointMass-v0"), lambda r: r * reward)
    model = make_mbpo(env).learn(60)
    assert th.isfinite(model.dynamics.holdout_mse).all()
