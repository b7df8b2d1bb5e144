"""PETS as an SB3 algorithm."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl import MBPO, PETS


def transitions(model):
    buffer = model.replay_buffer
    return np.concatenate([buffer.observations[: buffer.pos], buffer.actions[: buffer.pos]], axis=2)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Slider-v0", "DiscreteSlider-v0"])
def test_learns(make_pets, env_id):
    model = make_pets(env_id, fit_kwargs={}, planner_kwargs={}, horizon=8, learning_starts=100)
    untrained = np.mean([make_pets(env_id).learn(50).ep_info_buffer[i]["r"] for i in range(2)])
    mean, _ = evaluate_policy(model.learn(150), make_vec_env(env_id, seed=1), n_eval_episodes=3)
    assert mean > 20 > untrained


def test_acts_at_random_then_plans(make_pets):
    model = make_pets().learn(50)
    assert not model.dynamics.is_fitted and model.policy.last_plan is None
    model.learn(10, reset_num_timesteps=False)
    assert model.dynamics.is_fitted and model.policy.last_plan is not None


def test_refits_when_it_is_time(make_pets, monkeypatch):
    for aggregate, fits in ((True, [51, 76, 101]), (False, [51])):
        model, seen = make_pets(aggregate=aggregate), []
        monkeypatch.setattr(model, "_log_fit", lambda report, model=model, seen=seen: seen.append(model.num_timesteps))
        model.learn(110)
        assert seen == fits


def test_training_is_deterministic(make_pets):
    first, second = make_pets().learn(80), make_pets().learn(80)
    np.testing.assert_array_equal(transitions(first), transitions(second))
    assert (transitions(first) != transitions(make_pets(seed=1).learn(80))).any()


@pytest.mark.parametrize("vec_env_cls", [None, SubprocVecEnv])
def test_several_environments(make_pets, vec_env_cls):
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=vec_env_cls)
    model = make_pets(env).learn(100)
    assert model.num_timesteps == 100 and model.dynamics.is_fitted
    env.close()


def test_vec_normalize(make_pets):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=2, seed=0))
    model = make_pets(env).learn(80)
    env.training = False
    assert model.policy.vec_normalize is env
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2)
    assert np.isfinite(mean)


def test_callbacks_and_evaluation(make_pets):
    callback = EvalCallback(make_vec_env("Slider-v0", seed=1), eval_freq=30, n_eval_episodes=1, verbose=0)
    make_pets().learn(60, callback=callback)
    assert np.isfinite(callback.best_mean_reward)


def test_tensorboard(make_pets, tmp_path):
    make_pets(tensorboard_log=str(tmp_path)).learn(110)
    events = EventAccumulator(str(tmp_path / "PETS_1"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"dynamics/holdout_mse", "planner/value", "planner/std", "planner/n_iterations", "time/planning_seconds"} <= set(
        tags
    )
    assert [event.step for event in events.Scalars("dynamics/holdout_mse")] == [51, 76, 101]


def test_action_noise_is_stored_as_executed(make_pets):
    noisy = make_pets(action_noise=NormalActionNoise(np.zeros(1), 5 * np.ones(1))).learn(70)
    assert (np.abs(noisy.replay_buffer.actions[51:70]) == 1).mean() > 0.5


def test_cart_pole_learns_its_termination(make_pets):
    model = make_pets("CartPole-v1", termination_fn="auto", learning_starts=100).learn(130)
    assert model.predict(model.env.reset(), deterministic=True)[0].shape == (1,)


# ---------------------------------------------------------------- save and load


def test_a_saved_model_plans_alike_and_learns_on(make_pets, tmp_path):
    model = make_pets().learn(60)
    model.save(tmp_path / "pets")
    loaded = PETS.load(tmp_path / "pets", env="Slider-v0", device="cpu")
    obs = model.env.reset()
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    assert loaded.policy.model is loaded.dynamics
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 120


def test_zips_of_other_algorithms_are_refused(make_pets, tmp_path):
    make_pets().save(tmp_path / "pets")
    with pytest.raises(ValueError, match="was saved by PETS, not by MBPO"):
        MBPO.load(tmp_path / "pets")
    MBPO("MlpPolicy", "Slider-v0", device="cpu", buffer_size=100, policy_kwargs={"net_arch": [8]}).save(tmp_path / "mbpo")
    with pytest.raises(ValueError, match="was saved by MBPO, not by PETS"):
        PETS.load(tmp_path / "mbpo")


@pytest.mark.parametrize("replan_freq", [1, 3])
def test_n_and_n_steps_are_2n(make_pets, tmp_path, replan_freq):
    whole = make_pets(replan_freq=replan_freq)
    whole.learn(70)
    whole.save_checkpoint(tmp_path)
    whole.learn(70, reset_num_timesteps=False)
    resumed = PETS.load_checkpoint(tmp_path, env="Slider-v0", device="cpu")
    resumed.learn(70, reset_num_timesteps=False)
    np.testing.assert_array_equal(transitions(whole), transitions(resumed))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics_kwargs": {"learning_rate": 1e-3}}, r"does not accept \['learning_rate'\]"),
        ({"fit_kwargs": {"batch_size": 1}}, r"does not accept \['batch_size'\]"),
        ({"planner": "best", "planner_kwargs": {}}, "planner must be one of"),
        ({"planner_kwargs": {"elites": 3}}, "do not fit planner 'cem'"),
        ({"model_train_freq": 0}, "model_train_freq must be at least 1"),
        ({"policy_kwargs": {"value_mode": "brave"}}, "value_mode must be one of"),
        ({"policy_kwargs": {"net_arch": [8]}}, r"policy_kwargs does not accept \['net_arch'\]"),
        ({"termination_fn": "never"}, "termination_fn must be"),
    ],
)
def test_bad_arguments(make_pets, changes, message):
    with pytest.raises(ValueError, match=message):
        make_pets(**changes)


def test_actions_that_cannot_be_planned(make_pets):
    class Switches(type(make_vec_env("Slider-v0").envs[0].unwrapped)):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.MultiBinary(3)

    with pytest.raises(ValueError, match="Discrete or Box actions"):
        make_pets(Switches())
