import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, is_vecenv_wrapped

from sb3_mbrl.envs import LearnedModelVecEnv


def push(*sizes):
    return np.array(sizes, np.float32)[:, None]


# -- Stepping ----------------------------------------------------------------------------------------------------------


def test_what_a_step_returns(drift_vec):
    obs = drift_vec.reset()
    assert obs.shape == (4, 2) and obs.dtype == np.float32
    obs, rewards, dones, infos = drift_vec.step(push(0.1, 0.1, 0.1, 0.1))
    assert obs.shape == (4, 2) and obs.dtype == np.float32
    assert rewards.shape == (4,) and rewards.dtype == np.float32
    assert dones.shape == (4,) and dones.dtype == bool
    assert infos == [{"TimeLimit.truncated": False}] * 4


def test_the_spaces_are_those_of_the_model(drift_vec, drift_model):
    assert drift_vec.observation_space is drift_model.observation_space
    assert drift_vec.action_space is drift_model.action_space


def test_an_ended_episode_is_reset_in_the_same_step(make_vec, scripted):
    env = make_vec(3, model=scripted(end=1.5))
    env.reset()
    env.step(push(1.0, 0.5, 0.0))
    obs, _, dones, infos = env.step(push(1.0, 0.5, 0.0))
    assert dones.tolist() == [True, False, False]
    assert obs[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert infos[0]["terminal_observation"].tolist() == [2.0, 0.0]
    assert infos[0]["TimeLimit.truncated"] is False
    assert "terminal_observation" not in infos[1]


def test_the_time_limit_truncates_and_does_not_terminate(make_vec):
    env = make_vec(2, max_episode_steps=2)
    env.reset()
    env.step(push(0.1, 0.2))
    _, _, dones, infos = env.step(push(0.1, 0.2))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
    np.testing.assert_allclose([info["terminal_observation"][0] for info in infos], [0.2, 0.4], rtol=1e-6)


def test_a_task_that_ends_at_the_time_limit_has_ended(make_vec, scripted):
    env = make_vec(1, max_episode_steps=1, model=scripted(end=0.5))
    env.reset()
    _, _, dones, infos = env.step(push(1.0))
    assert dones[0] and infos[0]["TimeLimit.truncated"] is False


def test_a_prediction_that_is_not_finite_truncates_the_episode(make_vec, scripted):
    env = make_vec(2, model=scripted(broken_above=0.5))
    env.reset()
    obs, rewards, dones, infos = env.step(push(1.0, 0.0))
    assert dones.tolist() == [True, False] and rewards.tolist() == [0.0, 1.0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["terminal_observation"].tolist() == [0.0, 0.0]
    assert np.isfinite(obs).all()


def test_first_episodes_are_staggered_by_default(drift_model):
    env = LearnedModelVecEnv(drift_model, 5, np.zeros((1, 2)), max_episode_steps=5)
    env.reset()
    ends = [env.step(np.zeros((5, 1), np.float32))[2].sum() for _ in range(5)]
    assert ends == [1] * 5


def test_actions_are_those_of_the_environment(scripted, make_vec):
    model = scripted()
    model.action_space = spaces.Box(0.0, 4.0, (1,), np.float32)
    env = make_vec(3, model=model)
    env.reset()
    obs, *_ = env.step(push(0.0, 3.0, 9.0))  # out of bounds: clipped
    assert obs[:, 0].tolist() == [-1.0, 0.5, 1.0]


def test_discrete_actions_reach_the_model_one_hot(scripted, make_vec, monkeypatch):
    model = scripted()
    model.action_space, model.action_dim = spaces.Discrete(3, start=1), 3
    seen = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda obs, action, *args: seen.append(action) or step(obs, action[:, :1], *args))
    env = make_vec(2, model=model)
    env.reset()
    assert env.action_space == spaces.Discrete(3)  # SB3's policies count from 0
    env.step(np.array([0, 2]))
    assert seen[0].tolist() == [[1, 0, 0], [0, 0, 1]]
    for actions in ([1, 3], [-1, 0]):  # as a policy counts that acts in the space of the model
        with pytest.raises(ValueError, match=r"counts them from 0 to 2.*act in Discrete\(3, start=1\).*LearnedModelEnv"):
            env.step(np.array(actions))


def test_float64_observations(scripted, make_vec):
    model = scripted()
    model.observation_space = spaces.Box(-0.1, 0.1, (2,), np.float64)
    env = make_vec(1, max_episode_steps=2, model=model)
    assert env.reset().dtype == np.float64
    obs, *_ = env.step(push(1.0))
    assert obs.dtype == np.float64 and env.observation_space.contains(obs[0])
    _, _, _, infos = env.step(push(1.0))
    assert infos[0]["terminal_observation"].dtype == np.float64


# -- The contract of SB3 -----------------------------------------------------------------------------------------------


def rollout(env, n_steps=6):
    obs = [env.reset()]
    for t in range(n_steps):
        obs.append(env.step(np.full((env.num_envs, 1), np.sin(t), np.float32))[0])
    return np.stack(obs)


def test_a_seed_makes_a_trajectory(drift_vec):
    trajectories = []
    for seed in (3, 3, 4):
        assert drift_vec.seed(seed) == [seed, seed + 1, seed + 2, seed + 3]
        trajectories.append(rollout(drift_vec))
    assert np.array_equal(trajectories[0], trajectories[1])
    assert not np.array_equal(trajectories[0], trajectories[2])


def test_seeds_and_options_are_consumed_at_reset(drift_vec):
    drift_vec.seed(3)
    drift_vec.set_options({"a": 1})
    first = rollout(drift_vec)
    assert drift_vec._seeds == [None] * 4 and drift_vec._options == [{}] * 4
    assert drift_vec.reset_infos == [{}] * 4
    assert not np.array_equal(first, rollout(drift_vec))


def test_returned_arrays_are_copies(make_vec):
    env = make_vec(2, max_episode_steps=3)
    returned = [env.reset()]
    for _ in range(4):
        obs, rewards, dones, infos = env.step(push(0.1, 0.1))
        returned += [obs, rewards, dones, *(info["terminal_observation"] for info in infos if len(info) > 1)]
        assert infos[0] is not infos[1]
        for array in (obs, rewards):
            array[:] = np.nan  # PPO and VecNormalize write to them
        infos[0]["mine"] = True
    assert not any(np.shares_memory(a, b) for i, a in enumerate(returned) for b in returned[:i])
    obs, rewards, _, infos = env.step(push(0.1, 0.1))
    assert np.isfinite(obs).all() and np.isfinite(rewards).all() and "mine" not in infos[0]


def test_attributes_and_methods_are_shared(drift_vec):
    assert drift_vec.get_attr("render_mode") == [None] * 4
    assert drift_vec.get_attr("num_envs", indices=[0, 2]) == [4, 4]
    assert drift_vec.get_attr("num_envs", indices=1) == [4]
    with pytest.raises(AttributeError):
        drift_vec.get_attr("no_such_thing")
    assert not drift_vec.has_attr("no_such_thing")
    drift_vec.set_attr("task", "go")
    assert drift_vec.get_attr("task") == ["go"] * 4
    with pytest.raises(ValueError, match="shared by all"):
        drift_vec.set_attr("task", "stop", indices=[1])
    assert drift_vec.env_method("has_attr", "task", indices=[0, 1]) == [True, True]
    assert drift_vec.env_is_wrapped(Monitor) == [False] * 4
    assert drift_vec.env_is_wrapped(Monitor, indices=2) == [False]
    assert not is_vecenv_wrapped(drift_vec, VecMonitor)
    drift_vec.close()


def test_vec_monitor_sees_episodes(make_vec):
    env = VecMonitor(make_vec(2, max_episode_steps=3))
    env.reset()
    for _ in range(3):
        _, _, _, infos = env.step(push(0.1, 0.1))
    assert infos[0]["episode"]["r"] == 3.0 and infos[0]["episode"]["l"] == 3


def test_vec_normalize_wraps_it(make_vec):
    env = VecNormalize(make_vec(2, max_episode_steps=3))
    env.reset()
    for _ in range(3):
        obs, _, _, infos = env.step(push(0.5, -0.5))
    assert np.abs(obs).max() <= 10.0
    np.testing.assert_allclose(env.unnormalize_obs(infos[0]["terminal_observation"])[0], 1.5, rtol=1e-5)
    np.testing.assert_allclose(env.get_original_obs(), 0.0)


def test_evaluate_policy_counts_whole_episodes(make_vec):
    class Still:
        def predict(self, obs, state=None, episode_start=None, deterministic=False):
            return np.zeros((len(obs), 1), np.float32), state

    rewards, lengths = evaluate_policy(Still(), VecMonitor(make_vec(2, max_episode_steps=3)), 4, return_episode_rewards=True)
    assert rewards == [3.0] * 4 and lengths == [3] * 4


def test_a_name_that_is_not_known_is_refused(make_vec):
    with pytest.raises(TypeError, match="penalty"):
        make_vec(penalty=1.0)
