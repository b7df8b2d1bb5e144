"""Vectorised environments and wrappers: the model gets raw transitions, and episodes end at the right places."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    sync_envs_normalization,
)

from sb3_mbrl.common.normalization import normalize_obs, normalize_reward
from sb3_mbrl.common.trajectories import real_transitions


@pytest.mark.parametrize("n_envs", [2, 3])
def test_dummy(make_mbpo, n_envs):
    model = make_mbpo(make_vec_env("PointMass-v0", n_envs)).learn(180)
    assert model.num_timesteps == 180
    assert model.replay_buffer.rewards.shape == (2_000 // n_envs, n_envs)
    assert len(real_transitions(model.replay_buffer, "cpu")) == 180
    assert len(model.model_buffer) > 0


def test_other_processes(make_mbpo):
    env = make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv)
    try:
        model = make_mbpo(env).learn(100)
        assert model.num_timesteps == 100
        assert model._last_fit_timestep == 92
    finally:
        env.close()


def test_dummy_and_other_processes_learn_the_same(make_mbpo):
    weights = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env("Pendulum-v1", 2, seed=0, vec_env_cls=vec_env_cls)
        weights.append(make_mbpo(env).learn(60).actor.mu.weight)
        env.close()
    assert th.equal(*weights)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_time_limits_are_not_terminations(make_mbpo, n_envs):
    model = make_mbpo(make_vec_env("Line-v0", n_envs), learning_starts=300).learn(300)
    rows = real_transitions(model.replay_buffer, "cpu")
    beyond = rows.next_observations[:, 0].abs() > 1.2
    assert 0 < beyond.sum() < len(rows)
    assert th.equal(rows.terminated, beyond)
    n_done = int(model.replay_buffer.dones.sum())
    assert n_done > int(beyond.sum())  # some episodes ran to their limit
    # The true last observation is stored, not the first of the next episode: a step moves by less than a reset
    moved = (rows.next_observations - rows.observations).abs().max(dim=1).values
    assert moved.max() < 1.0


def test_terminations_reach_the_imagined_rows(make_mbpo):
    ends = {"termination_fn": lambda obs, action, next_obs: next_obs[:, 0].abs() > 1.2}
    model = make_mbpo(make_vec_env("Line-v0", 2), rollout_schedule=8, **ends).learn(150, log_interval=1_000)
    rows = model.model_buffer.contents()
    assert 0 < rows.terminated.sum() < len(rows)
    assert th.equal(rows.terminated, rows.next_observations[:, 0].abs() > 1.2)
    assert model.logger.name_to_value["imagination/termination_fraction"] > 0


class TestVecNormalize:
    @pytest.mark.parametrize("n_envs", [1, 2])
    @pytest.mark.parametrize("normalised", [{}, {"norm_obs": False}, {"norm_reward": False}, {"clip_obs": 0.5}], ids=str)
    def test_model_sees_raw_rows_and_sac_normalised_ones(self, make_mbpo, n_envs, normalised):
        env = VecNormalize(make_vec_env("PointMass-v0", n_envs), **normalised)
        model = make_mbpo(env).learn(150)
        rows = real_transitions(model.replay_buffer, "cpu")
        # SB3 takes an episode's last observation back out of the normalised one, after the clip
        inside = th.as_tensor(model.replay_buffer.dones[: model.replay_buffer.size()].flatten() < 0.5)
        assert th.allclose(rows.rewards[inside], 1.0 - rows.next_observations[inside, 0].abs(), atol=1e-5)
        imagined = model.model_buffer.contents()
        assert imagined.observations.std(dim=0)[0] == pytest.approx(float(rows.observations.std(dim=0)[0]), rel=0.5)

        with model._mixed_batches(1):
            batch = model.replay_buffer.sample(400, env=model._vec_normalize_env)
        obs = env.normalize_obs(rows.observations.numpy())
        assert batch.observations[:100].mean() == pytest.approx(obs.mean(), abs=0.3)  # real
        assert batch.observations[100:].mean() == pytest.approx(obs.mean(), abs=0.3)  # imagined
        assert batch.observations.abs().max() <= env.clip_obs
        rewards = env.normalize_reward(rows.rewards.numpy())
        assert batch.rewards[100:].mean() == pytest.approx(rewards.mean(), abs=0.3)

    def test_same_numbers_as_vec_normalize(self):
        env = VecNormalize(make_vec_env("PointMass-v0", 2), clip_obs=1.5, clip_reward=0.7)
        env.reset()
        for _ in range(50):
            env.step(np.random.uniform(-1, 1, (2, 1)))
        obs, reward = np.random.randn(20, 2).astype(np.float32), np.random.randn(20).astype(np.float32)
        assert np.allclose(normalize_obs(th.as_tensor(obs), env).numpy(), env.normalize_obs(obs), atol=1e-5)
        assert np.allclose(normalize_reward(th.as_tensor(reward), env).numpy(), env.normalize_reward(reward), atol=1e-5)

    def test_evaluates_with_its_statistics(self, make_mbpo):
        env = VecNormalize(make_vec_env("PointMass-v0", 2))
        model = make_mbpo(env).learn(120)
        other = VecNormalize(make_vec_env("PointMass-v0"), training=False, norm_reward=False)
        sync_envs_normalization(env, other)
        assert np.isfinite(evaluate_policy(model, other, n_eval_episodes=1)[0])


def test_monitored(make_mbpo):
    env = VecMonitor(DummyVecEnv([lambda: gym.make("PointMass-v0").unwrapped for _ in range(2)]))
    model = make_mbpo(env)
    model.learn(80)
    assert "rollout/ep_rew_mean" not in model.logger.name_to_value  # without a time limit no episode ends
    env = VecMonitor(DummyVecEnv([lambda: gym.make("PointMass-v0") for _ in range(2)]))
    model = make_mbpo(env).learn(80)
    assert [info["l"] for info in model.ep_info_buffer] == [30, 30]


def test_stacked_observations(make_mbpo):
    model = make_mbpo(VecFrameStack(make_vec_env("PointMass-v0", 2), 3)).learn(120)
    assert model.dynamics.observation_dim == 6
    assert model.dynamics.is_fitted
