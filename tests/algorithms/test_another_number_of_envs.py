"""A run that was saved with two environments continues with fewer or more."""

import numpy as np
import pytest
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

from sb3_mbrl import MBPO, MBTD3, PETS, TDMPC, TDMPC2, Dyna
from sb3_mbrl.algorithms.checkpoints import noise_for

SMALL = {"learning_starts": 1_000, "buffer_size": 100, "seed": 0, "device": "cpu"}
ALGORITHMS = {
    "mbpo": lambda env, **kwargs: MBPO("MlpPolicy", env, **SMALL, **kwargs),
    "mbtd3": lambda env, **kwargs: MBTD3("MlpPolicy", env, **SMALL, **kwargs),
    "tdmpc": lambda env, **kwargs: TDMPC("MlpPolicy", env, **SMALL, **kwargs),
    "tdmpc2": lambda env, **kwargs: TDMPC2("MlpPolicy", env, **SMALL, **kwargs),
    "pets": lambda env, **kwargs: PETS("MPCPolicy", env, **SMALL, **kwargs),
    "dyna": lambda env, **kwargs: Dyna(TD3, env=env, algorithm_kwargs={"buffer_size": 100}, **SMALL, **kwargs),
}


def pendulums(n_envs):
    return make_vec_env("Pendulum-v1", n_envs, seed=0)


def noise():
    return OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.1))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_action_noise_is_vectorized_for_the_new_number_of_environments(name, tmp_path):
    model = ALGORITHMS[name](pendulums(2), action_noise=noise()).learn(8)
    model.save(tmp_path / "model")
    for n_envs in (1, 3, 4):
        env = pendulums(n_envs)
        loaded = type(model).load(tmp_path / "model", env=env, device="cpu").learn(2 * n_envs, reset_num_timesteps=False)
        assert loaded.replay_buffer.size() == 2 and np.shape(loaded.action_noise()) in [(1,), (n_envs, 1)]
        loaded.save(tmp_path / "again")
        type(model).load(tmp_path / "again", env=pendulums(2), device="cpu").learn(4, reset_num_timesteps=False)


@pytest.mark.parametrize("force_reset", [True, False])
def test_episodes_of_other_environments_are_not_continued(force_reset, tmp_path):
    model = ALGORITHMS["mbpo"](pendulums(2)).learn(8)
    model.save(tmp_path / "model")
    loaded = MBPO.load(tmp_path / "model", env=pendulums(3), force_reset=force_reset, device="cpu")
    loaded.learn(6, reset_num_timesteps=False)
    # The first observation of each of the three environments
    assert np.array_equal(loaded.replay_buffer.observations[0], pendulums(3).reset())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_replay_buffer_of_other_environments_is_refused(name, tmp_path):
    model = ALGORITHMS[name](pendulums(2)).learn(8)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = type(model).load(tmp_path / "model", env=pendulums(3), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="of 2 parallel environments, but this run has 3"):
        loaded.learn(6, reset_num_timesteps=False)


def test_another_number_of_imagined_environments(tmp_path):
    kwargs = {"buffer_size": 100, "learning_starts": 4, "batch_size": 4, "action_noise": noise()}
    small = {"imagined_steps_per_step": 1, "max_episode_steps": 5, "model_train_freq": 40, "fit_kwargs": {"max_epochs": 1}}
    small |= {"dynamics_kwargs": {"ensemble_size": 2, "n_elites": 2, "net_arch": [8]}, "termination_fn": None}
    small |= {"learning_starts": 40, "buffer_size": 100, "seed": 0, "device": "cpu"}
    env = make_vec_env("Pendulum-v1", seed=0, env_kwargs={"max_episode_steps": 10})
    model = Dyna(TD3, env=env, algorithm_kwargs=kwargs, n_imagined_envs=2, **small).learn(41)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    for n in (1, 3):
        loaded = Dyna.load(tmp_path / "model", env=env, device="cpu", n_imagined_envs=n)
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.learn(41, reset_num_timesteps=False)
        assert loaded.agent.env.num_envs == n and loaded.agent.replay_buffer.n_envs == n
    model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="imagined transitions of n_imagined_envs=2 .* got n_imagined_envs=3"):
        Dyna.load_checkpoint(tmp_path / "checkpoint", env=env, device="cpu", n_imagined_envs=3)


def test_noise_for_the_same_number_of_environments_is_kept():
    alone, of_two = NormalActionNoise(np.zeros(1), np.ones(1)), VectorizedActionNoise(noise(), 2)
    assert noise_for(None, 2) is None and noise_for(alone, 3) is alone and noise_for(of_two, 2) is of_two
    assert noise_for(of_two, 3) is of_two.base_noise


def test_an_agent_of_stable_baselines3_is_saved_with_its_imagined_environments(tmp_path):
    model = Dyna(SAC, env=pendulums(1), algorithm_kwargs={"buffer_size": 100}, n_imagined_envs=5, **SMALL)
    model.save(tmp_path / "model")
    assert Dyna.load(tmp_path / "model", device="cpu").agent.n_envs == 5
