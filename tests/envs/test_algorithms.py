"""Algorithms of Stable-Baselines3 and sb3-contrib train in a model unchanged. Warnings are errors."""

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from sb3_contrib import TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize, sync_envs_normalization

from sb3_mbrl.envs import LearnedModelEnv, LearnedModelVecEnv

ON_POLICY = {"n_steps": 16}
OFF_POLICY = {"learning_starts": 16, "batch_size": 8, "buffer_size": 500}
# (algorithm, policy, arguments of its own)
CONTINUOUS = [
    (PPO, "MlpPolicy", {**ON_POLICY, "batch_size": 16, "n_epochs": 1}),
    (A2C, "MlpPolicy", ON_POLICY),
    (RecurrentPPO, "MlpLstmPolicy", {**ON_POLICY, "batch_size": 16, "n_epochs": 1}),
    (SAC, "MlpPolicy", OFF_POLICY),
    (TD3, "MlpPolicy", OFF_POLICY),
    (TQC, "MlpPolicy", OFF_POLICY),
    (CrossQ, "MlpPolicy", OFF_POLICY),
]
DISCRETE = [
    (DQN, "MlpPolicy", OFF_POLICY),
    (PPO, "MlpPolicy", {**ON_POLICY, "batch_size": 16, "n_epochs": 1}),
    (A2C, "MlpPolicy", ON_POLICY),
]


def small(**arguments):
    """SB3 writes to the ``policy_kwargs`` that it is given."""
    return {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **arguments}


def names(algorithms):
    return [algorithm.__name__ for algorithm, *_ in algorithms]


@pytest.fixture(scope="module")
def cart_pole(tiny_fit):
    return LearnedModelVecEnv.from_env("CartPole-v1", n_envs=4, max_episode_steps=10, **tiny_fit)


@pytest.mark.parametrize("algorithm, policy, arguments", CONTINUOUS, ids=names(CONTINUOUS))
def test_it_trains_in_the_vec_env(algorithm, policy, arguments, drift_vec):
    model = algorithm(policy, VecMonitor(drift_vec), **small(**arguments)).learn(96)
    assert model.num_timesteps >= 96
    assert 0 < np.mean([episode["l"] for episode in model.ep_info_buffer]) <= 20


@pytest.mark.parametrize("algorithm, policy, arguments", DISCRETE, ids=names(DISCRETE))
def test_it_trains_with_discrete_actions(algorithm, policy, arguments, cart_pole):
    model = algorithm(policy, VecMonitor(cart_pole), **small(**arguments)).learn(96)
    assert len(model.ep_info_buffer) > 0


@pytest.mark.parametrize("algorithm, arguments", [(PPO, CONTINUOUS[0][2]), (SAC, OFF_POLICY)])
def test_it_trains_in_the_gymnasium_env(algorithm, arguments, drift_env):
    assert len(algorithm("MlpPolicy", drift_env, **small(**arguments)).learn(64).ep_info_buffer) > 0


def test_training_is_reproducible(drift_vec):
    weights = []
    for _ in range(2):
        model = PPO("MlpPolicy", drift_vec, **small(**CONTINUOUS[0][2])).learn(64)
        weights.append(model.policy.action_net.weight.detach().numpy().copy())
    assert np.array_equal(*weights)


def test_training_continues_with_normalisation_and_evaluation(drift_vec, drift_model):
    train = VecMonitor(VecNormalize(drift_vec))
    other = LearnedModelVecEnv(drift_model, 2, np.zeros((1, 2)), max_episode_steps=5, stagger=False)
    evaluate = VecMonitor(VecNormalize(other, training=False, norm_reward=False))
    callback = EvalCallback(evaluate, n_eval_episodes=2, eval_freq=8, verbose=0)
    PPO("MlpPolicy", train, **small(**CONTINUOUS[0][2])).learn(64, callback=callback)
    assert np.isfinite(callback.last_mean_reward)


def test_normalisation_statistics_of_the_real_environment_work_in_the_imagined_one(drift, drift_vec):
    real = VecNormalize(DummyVecEnv([lambda: TimeLimit(drift(), 20)]))
    real.reset()
    for _ in range(30):
        real.step(np.ones((1, 1), np.float32))
    imagined = VecNormalize(drift_vec, training=False)
    sync_envs_normalization(real, imagined)
    obs = imagined.reset()
    np.testing.assert_allclose(imagined.unnormalize_obs(obs), imagined.get_original_obs(), atol=1e-5)
    assert np.array_equal(imagined.obs_rms.mean, real.obs_rms.mean)


def test_a_policy_trained_in_the_model_runs_in_the_real_environment(drift, drift_model):
    env = LearnedModelEnv(TimeLimit(drift(), 20), drift_model, max_episode_steps=20)
    model = PPO("MlpPolicy", env, **small(**CONTINUOUS[0][2])).learn(32)
    mean, _ = evaluate_policy(model, Monitor(env.env), n_eval_episodes=4)
    assert -20 <= mean < 0


@pytest.mark.slow
def test_a_policy_learned_in_the_model_works_in_the_real_environment():
    # A mean of three seeds, since machines round differently and one policy may well end at half another's return
    returns = []
    for seed in range(3):
        dynamics = {"ensemble_size": 3, "n_elites": 2, "net_arch": [64, 64]}
        env = LearnedModelVecEnv.from_env(
            "CartPole-v1",
            n_envs=32,
            n_steps=4_000,
            seed=seed,
            device="cpu",
            dynamics_kwargs=dynamics,
            fit_kwargs={"max_epochs": 40},
        )
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=256, n_epochs=5, learning_rate=1e-3, seed=seed, device="cpu")
        real = make_vec_env("CartPole-v1", seed=seed)
        returns.append(evaluate_policy(model.learn(20_000), real)[0])
    assert np.mean(returns) > 150  # Random actions: 22 on average, 72 at best in a hundred episodes
