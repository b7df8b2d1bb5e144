import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_env_gymnasium
from gymnasium.utils.passive_env_checker import env_render_passive_checker
from gymnasium.wrappers import RescaleAction
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from sb3_mbrl.dynamics import SimulatorModel
from sb3_mbrl.envs import LearnedModelEnv

# -- The checkers ------------------------------------------------------------------------------------------------------


def test_both_checkers_pass_without_a_warning(drift_env):
    check_env_sb3(drift_env)
    # Renderings of other modes are made through a spec, which wants a registered id
    check_env_gymnasium(drift_env, skip_render_check=True)


def test_both_checkers_pass_with_the_true_simulator():
    env = RescaleAction(gym.make("Pendulum-v1"), np.float32(-1.0), np.float32(1.0))
    model = SimulatorModel("Pendulum-v1")
    model.action_space = env.action_space
    imagined = LearnedModelEnv(env, model)
    check_env_sb3(imagined)
    check_env_gymnasium(imagined, skip_render_check=True)


def test_what_reset_and_step_return(drift_env):
    obs, info = drift_env.reset(seed=0)
    assert drift_env.observation_space.contains(obs) and info == {}
    obs, reward, terminated, truncated, info = drift_env.step(np.array([0.5], np.float32))
    assert drift_env.observation_space.contains(obs) and info == {}
    assert type(reward) is float and type(terminated) is bool and type(truncated) is bool


def test_float64_observations(drift, scripted):
    env, model = drift(np.float64), scripted()
    model.observation_space = env.observation_space
    imagined = LearnedModelEnv(env, model, max_episode_steps=20)
    check_env_sb3(imagined)
    assert imagined.reset()[0].dtype == np.float64


# -- Episodes ----------------------------------------------------------------------------------------------------------


def trajectory(env, seed, n_episodes=2):
    rows = []
    for episode in range(n_episodes):
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        rows.append(obs)
        for _ in range(3):
            rows.append(env.step(np.array([0.2], np.float32))[0])
    return np.stack(rows)


def test_a_seed_makes_the_episodes_that_follow(drift_env):
    first = trajectory(drift_env, seed=1)
    assert np.array_equal(first, trajectory(drift_env, seed=1))
    assert not np.array_equal(first, trajectory(drift_env, seed=2))
    assert not np.array_equal(first[:4], first[4:])


def test_episodes_last_as_long_as_the_real_ones():
    env = LearnedModelEnv("Pendulum-v1", SimulatorModel("Pendulum-v1"))
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_episodes_start_where_the_real_ones_do(drift, drift_model):
    env = LearnedModelEnv(drift(), drift_model, max_episode_steps=5)
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(200)])
    real = {tuple(drift().reset(seed=seed)[0]) for seed in range(100)}
    assert {tuple(start) for start in starts} <= real
    assert len({tuple(start) for start in starts}) > 50


def test_the_true_simulator_gives_the_real_episode():
    real = gym.make("Pendulum-v1")
    obs, _ = real.reset(seed=5)
    env = LearnedModelEnv("Pendulum-v1", SimulatorModel("Pendulum-v1"), obs[None])
    np.testing.assert_array_equal(env.reset()[0], obs)
    for t in range(50):
        action = np.array([2 * np.cos(0.2 * t)], np.float32)
        expected, got = real.step(action), env.step(action)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
        assert got[1] == pytest.approx(expected[1], abs=1e-4)


# -- Rendering ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Hopper-v5"])
def test_the_real_environment_renders_the_imagined_state(env_id, monkeypatch):
    real = gym.make(env_id, render_mode="rgb_array")
    task = real.unwrapped
    # No screen here
    monkeypatch.setattr(type(task), "render", lambda self: np.zeros((4, 4, 3), np.uint8))
    env = LearnedModelEnv(real, SimulatorModel(env_id))
    env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(env.action_space.sample())
        env_render_passive_checker(env)
    observe = getattr(task, "_get_obs", None) or getattr(task, "_get_ob", lambda: task.state)
    np.testing.assert_allclose(observe(), obs, atol=1e-5)


def test_what_cannot_be_rendered_says_so(drift_model, drift):
    with pytest.raises(ValueError, match="not be rendered"):
        LearnedModelEnv(drift(), drift_model, max_episode_steps=5).render()


def test_with_human_rendering_each_step_is_shown(monkeypatch):
    real = gym.make("Pendulum-v1").unwrapped
    frames = []
    monkeypatch.setattr(real, "render", lambda: frames.append(real.state), raising=False)
    env = LearnedModelEnv(real, SimulatorModel("Pendulum-v1"), max_episode_steps=10)
    env.render_mode = "human"
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert len(frames) == 2


# -- Bad input ---------------------------------------------------------------------------------------------------------


def test_a_model_of_another_environment_is_refused(drift_model):
    with pytest.raises(ValueError, match="model belongs to another environment: its observation_space"):
        LearnedModelEnv("Pendulum-v1", drift_model)


def test_an_unknown_time_limit_is_announced(drift, drift_model):
    with pytest.warns(UserWarning, match="truncated after 1000 steps; pass max_episode_steps="):
        env = LearnedModelEnv(drift(), drift_model)
    assert env.imagination.rules.max_episode_steps == 1_000


def test_closing_closes_the_real_environment(drift_env, monkeypatch):
    closed = []
    monkeypatch.setattr(drift_env.env, "close", lambda: closed.append(True), raising=False)
    drift_env.close()
    assert closed == [True]
