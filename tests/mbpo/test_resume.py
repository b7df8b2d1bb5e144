"""A run that is interrupted and resumed in a new process equals an uninterrupted run, bit for bit."""

import pickle
import subprocess
import sys

import numpy as np
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_mbrl.callbacks import ExactCheckpointCallback
from sb3_mbrl.dynamics import AdaptiveRolloutLength
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.mbpo import MBPO

SETTINGS = {
    "learning_starts": 60,
    "buffer_size": 1_000,
    "batch_size": 32,
    "gradient_steps": 2,
    "policy_kwargs": {"net_arch": [32, 32]},
    "seed": 0,
    "device": "cpu",
    "model_train_freq": 50,
    "rollouts_per_step": 20,
    "real_ratio": 0.25,
    "dynamics_kwargs": {"ensemble_size": 3, "n_elites": 2, "net_arch": [32, 32]},
    "fit_kwargs": {"max_epochs": 3},
}


def normalized(env_id):
    return VecNormalize(make_vec_env(env_id, 2))


def short(env_id):
    return make_vec_env(env_id, 2, wrapper_class=TimeLimit, wrapper_kwargs={"max_episode_steps": 35})


CASES = {
    "pendulum": ("Pendulum-v1", make_vec_env, {}),
    "mujoco": ("InvertedPendulum-v5", make_vec_env, {}),
    "normalized": ("InvertedPendulum-v5", normalized, {"learning_rate": LinearSchedule(1e-3, 1e-4, 1.0)}),
    "gsde": ("Pendulum-v1", short, {"use_sde": True, "sde_sample_freq": 4, "train_freq": 6}),
    "learned_termination": (
        "InvertedPendulum-v5",
        make_vec_env,
        {"termination_fn": "learned", "buffer_size": 90, "model_train_freq": 80},
    ),
    "noise": (
        "Pendulum-v1",
        short,
        {
            "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1)),
            "n_steps": 3,
            "rollout_schedule": (60, 200, 1, 4),
            "model_retain_steps": 10,
        },
    ),
    "adaptive": ("Pendulum-v1", make_vec_env, {"rollout_schedule": AdaptiveRolloutLength(5, tolerance=0.7)}),
}
CUT, END = 120, 216


def make_env(case):
    env_id, make, _ = CASES[case]
    return make(env_id)


def make_model(case):
    return MBPO("MlpPolicy", make_env(case), **{**SETTINGS, **CASES[case][2]})


def flat(thing, name=""):
    """Flattens nested dicts and lists to ``{path: bytes or number}``."""
    if isinstance(thing, dict):
        return {path: leaf for key, value in thing.items() for path, leaf in flat(value, f"{name}.{key}").items()}
    if isinstance(thing, (list, tuple)):
        return flat(dict(enumerate(thing)), name)
    if isinstance(thing, th.Tensor):
        return {name: thing.detach().numpy().tobytes()}
    return {name: thing.tobytes() if isinstance(thing, np.ndarray) else repr(thing)}


def everything(model):
    """Parameters, optimizers, buffers, step counters, environments and random streams."""
    state = {
        "parameters": model.get_parameters(),
        "log_ent_coef": model.log_ent_coef,
        "elites": model.dynamics.elites,
        "real": {name: value for name, value in vars(model.replay_buffer).items() if isinstance(value, (np.ndarray, int))},
        "imagined": [vars(model.model_buffer.contents()), model.model_buffer.pos, model.model_buffer.capacity],
        "last": [model._last_obs, model._last_original_obs],
        "clocks": [model.num_timesteps, model._last_fit_timestep, model._n_updates, model._episode_num],
        "episodes": [(info["r"], info["l"]) for info in model.ep_info_buffer],
        "streams": [model._generator.get_state(), th.get_rng_state(), np.random.get_state()],
        "action_space": model.action_space.np_random.bit_generator.state,
        "tasks": [env.unwrapped.np_random.bit_generator.state for env in model.get_env().unwrapped.envs],
    }
    if isinstance(model.get_env(), VecNormalize):
        state["statistics"] = [vars(model.get_env().obs_rms), vars(model.get_env().ret_rms), model.get_env().returns]
    return flat(state)


def train_heads_briefly(replace=setattr):
    """Reduces fits from fifty epochs to two, since they take most of the time in these runs."""
    replace(LearnedTermination.fit, "__defaults__", (None, 2, 256, None))


def go_on(case, folder, result):
    """The work of the new process."""
    th.set_num_threads(1)
    train_heads_briefly()
    model = MBPO.load_checkpoint(folder, env=make_env(case), device="cpu")
    assert CUT <= model.num_timesteps < CUT + 12
    model.learn(END - model.num_timesteps, reset_num_timesteps=False)
    with open(result, "wb") as file:
        pickle.dump(everything(model), file)


if __name__ == "__main__":
    go_on(*sys.argv[1:])
    sys.exit()


import pytest  # noqa: E402  the process above does without


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    train_heads_briefly(monkeypatch.setattr)


def in_a_new_process(case, tmp_path):
    command = [sys.executable, "-W", "error", __file__, case, str(tmp_path / "checkpoint"), str(tmp_path / "result")]
    subprocess.run(command, check=True)
    return pickle.loads((tmp_path / "result").read_bytes())


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


@pytest.mark.parametrize("case", [case for case in CASES if case != "mujoco"])  # for which see the next test
def test_a_resumed_run_equals_an_uninterrupted_one(case, tmp_path):
    model = make_model(case)
    model.learn(END, ExactCheckpointCallback(CUT, tmp_path / "checkpoint"))
    assert_same(in_a_new_process(case, tmp_path), everything(model))


def test_n_and_n_more_steps_equal_2n_steps(tmp_path):
    model = make_model("mujoco").learn(CUT)
    model.save_checkpoint(tmp_path / "checkpoint")
    assert_same(in_a_new_process("mujoco", tmp_path), everything(make_model("mujoco").learn(END)))


def test_saving_does_not_change_the_run(tmp_path):
    a = make_model("gsde").learn(CUT, ExactCheckpointCallback(7, tmp_path))
    assert_same(everything(a), everything(make_model("gsde").learn(CUT)))


def test_subproc_starts_with_new_episodes(tmp_path):
    def make():
        return VecNormalize(make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv))

    model = MBPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 2)), **SETTINGS).learn(CUT)
    model.save_checkpoint(tmp_path)
    env = make()
    try:
        loaded = MBPO.load_checkpoint(tmp_path, env=env)
        assert loaded._last_obs is None
        assert np.array_equal(env.obs_rms.mean, model.get_env().obs_rms.mean)
        loaded.learn(20, reset_num_timesteps=False)
        assert loaded.replay_buffer.pos == model.replay_buffer.pos + 10
        assert not np.array_equal(loaded.replay_buffer.observations[CUT // 2], loaded.replay_buffer.observations[0])
    finally:
        env.close()


def test_a_checkpoint_does_not_store_empty_rows_of_the_model_buffer(tmp_path):
    model = make_model("pendulum").learn(70)
    assert 0 < len(model.model_buffer) < model.model_buffer.capacity / 10
    model.save_checkpoint(tmp_path)
    size = (tmp_path / "checkpoint-00000001" / "extras.pth").stat().st_size
    assert size < 4 * 9 * len(model.model_buffer) + 20_000


def test_a_checkpoint_before_the_first_step(tmp_path):
    model = make_model("pendulum")
    model.save_checkpoint(tmp_path)
    loaded = MBPO.load_checkpoint(tmp_path, env=make_env("pendulum"), device="cpu")
    loaded.learn(CUT, reset_num_timesteps=False)
    assert loaded.num_timesteps == CUT


def test_prediction_needs_no_environment(tmp_path):
    model = make_model("pendulum").learn(CUT)
    model.save_checkpoint(tmp_path)
    obs = np.zeros((1, 3), dtype=np.float32)
    loaded = MBPO.load_checkpoint(tmp_path)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_settings_can_be_changed(tmp_path):
    make_model("pendulum").learn(CUT).save_checkpoint(tmp_path)
    loaded = MBPO.load_checkpoint(tmp_path, env="Pendulum-v1", gradient_steps=1, model_retain_steps=5)
    loaded.learn(60, reset_num_timesteps=False)
    assert len(loaded.model_buffer) == 5 * SETTINGS["rollouts_per_step"]


def test_sac_zip(tmp_path):
    SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}).save(tmp_path / "sac")
    with pytest.raises(
        ValueError, match=r"sac was saved by another library .*not by MBPO: load it with the class that saved it"
    ):
        MBPO.load(tmp_path / "sac", env=make_env("pendulum"))


def test_arguments_that_do_not_fit_the_zip(tmp_path):
    MBPO("MlpPolicy", make_env("mujoco"), **SETTINGS, termination_fn="learned").save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"(?s)does not fit the arguments .*termination_fn"):
        MBPO.load(tmp_path / "model", termination_fn=lambda obs, action, next_obs: obs[:, 0] > 1)
