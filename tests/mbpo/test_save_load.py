"""The contents of the zip, and continuing from it."""

import io
import pathlib
from copy import deepcopy

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_mbrl.dynamics import AdaptiveRolloutLength
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.mbpo import MBPO

OBS = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(10, 2)


def is_far(obs, action, next_obs):
    return next_obs[:, 0].abs() > 1.2


def nearness(obs, action, next_obs):
    return 1.0 - next_obs[:, 0].abs()


@pytest.fixture(scope="module")
def trained_once(point_mass_ids, tiny_settings):
    return MBPO("MlpPolicy", "Line-v0", learning_rate=1e-3, **deepcopy(tiny_settings)).learn(110)


@pytest.fixture
def trained(trained_once):
    """110 steps in a task that terminates: one fit at step 41, one at 91."""
    return deepcopy(trained_once)


def saved(model, tmp_path):
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def imagine(model, seed=0):
    generator = th.Generator().manual_seed(seed)
    obs = th.as_tensor(OBS)
    return model.dynamics.step(obs, th.zeros(len(obs), model.dynamics.action_dim), generator, uncertainty=True)


def predict(model, seed=0):
    model.set_random_seed(seed)
    if model.use_sde:
        model.policy.reset_noise()
    return np.concatenate([model.predict(OBS, deterministic=deterministic)[0] for deterministic in (True, False)])


def assert_equal_states(first, second):
    """Compares nested dicts and lists of tensors and plain values."""
    if isinstance(first, th.Tensor):
        assert th.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal_states(first[key], second[key])
    elif isinstance(first, list):
        for one, other in zip(first, second, strict=True):
            assert_equal_states(one, other)
    else:
        assert first == second


def test_everything_is_in_the_zip(trained, tmp_path):
    loaded = MBPO.load(saved(trained, tmp_path), env=trained.get_env())
    before = trained.get_parameters()
    assert next(iter(before)) == "policy"
    assert {"dynamics", "dynamics.optimizer", "dynamics.termination_fn.optimizer"} <= before.keys()
    assert before["dynamics.optimizer"]["state"] and before["dynamics.termination_fn.optimizer"]["state"]
    assert_equal_states(before, loaded.get_parameters())
    assert th.equal(loaded.dynamics.elites, trained.dynamics.elites)
    assert loaded.dynamics.is_fitted and repr(loaded.dynamics) == repr(trained.dynamics)
    for clock in ("num_timesteps", "_last_fit_timestep", "_n_updates", "_episode_num", "_seconds"):
        assert getattr(loaded, clock) == getattr(trained, clock)
    assert loaded._last_fit_timestep == 91
    assert np.array_equal(predict(loaded), predict(trained))
    for one, other in zip(imagine(loaded), imagine(trained), strict=True):
        assert th.equal(one, other)


def test_learned_termination_is_saved(trained, tmp_path):
    head = MBPO.load(saved(trained, tmp_path)).dynamics.termination_fn
    assert isinstance(head, LearnedTermination)
    assert head.termination_seen == 1.0
    far = th.as_tensor(OBS) * 2
    assert th.equal(head.probability(far, far[:, :1], far), trained.dynamics.termination_fn.probability(far, far[:, :1], far))


@pytest.mark.parametrize("path_type", [str, pathlib.Path, io.BytesIO])
def test_saves_to_paths_and_streams(make_mbpo, tmp_path, path_type):
    model = make_mbpo()
    target = io.BytesIO() if path_type is io.BytesIO else path_type(tmp_path / "model")
    model.save(target)
    if path_type is io.BytesIO:
        target.seek(0)
    assert np.array_equal(predict(MBPO.load(target)), predict(model))


def test_before_the_first_fit(make_mbpo, tmp_path):
    loaded = MBPO.load(saved(make_mbpo(), tmp_path), env=make_vec_env("PointMass-v0"))
    assert not loaded.dynamics.is_fitted
    assert loaded.learn(60).dynamics.is_fitted


class TestParameters:
    def test_unknown_object(self, trained):
        parameters = {**deepcopy(trained.get_parameters()), "no_such_object": {}}
        for exact_match in (True, False):
            with pytest.raises(ValueError, match="no_such_object"):
                trained.set_parameters(parameters, exact_match=exact_match)

    @pytest.mark.parametrize("name", ["dynamics", "dynamics.optimizer", "policy"])
    def test_missing_object(self, trained, name):
        parameters = deepcopy(trained.get_parameters())
        del parameters[name]
        with pytest.raises(ValueError, match=name):
            trained.set_parameters(parameters)
        trained.set_parameters(parameters, exact_match=False)

    def test_missing_tensor(self, trained):
        parameters = deepcopy(trained.get_parameters())
        del parameters["dynamics"]["holdout_mse"]
        with pytest.raises(RuntimeError, match="holdout_mse"):
            trained.set_parameters(parameters)

    def test_perturbed_and_restored(self, trained, tmp_path):
        original = deepcopy(trained.get_parameters())
        actions, imagined = predict(trained), imagine(trained)
        perturbed = {
            name: state if "optim" in name else {key: th.rand_like(value) for key, value in state.items()}
            for name, state in original.items()
        }
        trained.set_parameters(perturbed)
        for name in ("policy", "dynamics"):
            for key, value in trained.get_parameters()[name].items():
                assert not th.equal(value, original[name][key]), key
        assert not np.array_equal(predict(trained), actions)

        loaded = MBPO.load(saved(trained, tmp_path))
        assert_equal_states(loaded.get_parameters(), trained.get_parameters())

        loaded.set_parameters(original)
        assert_equal_states(loaded.get_parameters(), original)
        assert np.array_equal(predict(loaded), actions)
        assert th.equal(imagine(loaded).next_obs, imagined.next_obs)

    def test_from_a_file(self, trained, make_mbpo, tmp_path):
        other = make_mbpo("Line-v0", seed=5)
        other.set_parameters(saved(trained, tmp_path), device="cpu")
        assert_equal_states(other.get_parameters(), trained.get_parameters())


class TestLoad:
    def test_without_env_predicts_and_learns_once_it_has_one(self, trained, tmp_path):
        loaded = MBPO.load(saved(trained, tmp_path))
        assert loaded.get_env() is None
        assert np.array_equal(predict(loaded), predict(trained))
        with pytest.raises(ValueError, match="no environment to learn in"):
            loaded.learn(10)
        loaded.set_env(make_vec_env("Line-v0"))
        assert loaded.learn(100, reset_num_timesteps=False).num_timesteps == 210

    def test_with_another_number_of_envs(self, trained, tmp_path):
        loaded = MBPO.load(saved(trained, tmp_path), env=make_vec_env("Line-v0", 3))
        assert loaded.n_envs == 3
        loaded.learn(120)
        assert loaded.replay_buffer.rewards.shape[1] == 3
        assert loaded._last_fit_timestep > 0

    def test_arguments_can_be_changed(self, trained, tmp_path):
        loaded = MBPO.load(saved(trained, tmp_path), env=trained.get_env(), gradient_steps=3, real_ratio=0.5)
        n_updates = loaded._n_updates
        loaded.learn(10, reset_num_timesteps=False)
        assert (loaded.gradient_steps, loaded.real_ratio) == (3, 0.5)
        assert loaded._n_updates == n_updates + 3 * 10

    def test_rollout_schedule_can_be_changed(self, make_mbpo, tmp_path):
        model = make_mbpo(rollout_schedule=(0, 100, 1, 3))
        path = saved(model, tmp_path)
        assert MBPO.load(path)._rollout_length(100) == 3
        assert MBPO.load(path, rollout_schedule=7)._rollout_length(0) == 7

    def test_adapted_rollout_length_is_kept(self, make_mbpo, tmp_path):
        model = make_mbpo(rollout_schedule=AdaptiveRolloutLength(4, tolerance=1e6)).learn(100)
        loaded = MBPO.load(saved(model, tmp_path))
        assert loaded.rollout_schedule == AdaptiveRolloutLength(4, tolerance=1e6)
        assert loaded._rollout_length(100) == 4

    def test_custom_objects(self, trained, tmp_path):
        loaded = MBPO.load(saved(trained, tmp_path), custom_objects={"learning_rate": 2e-5, "dummy": 1.0})
        assert loaded.learning_rate == 2e-5
        assert not hasattr(loaded, "dummy")

    def test_exclude_and_include(self, make_mbpo, tmp_path):
        model = make_mbpo(verbose=2)
        model.save(tmp_path / "excluded", exclude=["verbose"])
        assert MBPO.load(tmp_path / "excluded").verbose == 0
        model.save(tmp_path / "included", exclude=["verbose"], include=["verbose"])
        assert MBPO.load(tmp_path / "included").verbose == 2

    @pytest.mark.parametrize(
        "settings",
        [
            {"use_sde": True},
            {"ent_coef": 0.1},
            {"ent_coef": "auto_0.1"},
            {"train_freq": (1, "episode")},
            {"n_steps": 3},
            {"learning_rate": lambda left: 1e-3 * left},
            {"termination_fn": None, "dynamics_kwargs": {"probabilistic": False}},
        ],
        ids=lambda settings: "-".join(settings),
    )
    def test_settings_survive_and_learning_continues(self, make_mbpo, tmp_path, settings):
        model = make_mbpo(**settings).learn(60)
        loaded = MBPO.load(saved(model, tmp_path), env=model.get_env())
        assert np.array_equal(predict(loaded), predict(model))
        loaded.learn(30, reset_num_timesteps=False)
        assert loaded.num_timesteps == 90

    def test_custom_policy_class(self, tiny, tmp_path):
        class MyPolicy(SACPolicy):
            pass

        model = MBPO(MyPolicy, "PointMass-v0", **tiny).learn(60)
        loaded = MBPO.load(saved(model, tmp_path))
        assert type(loaded.policy).__name__ == "MyPolicy"
        assert np.array_equal(predict(loaded), predict(model))

    def test_policy_alone(self, trained, tmp_path):
        trained.policy.save(tmp_path / "policy")
        loaded = SACPolicy.load(tmp_path / "policy")
        assert np.array_equal(loaded.predict(OBS, deterministic=True)[0], trained.policy.predict(OBS, deterministic=True)[0])

    def test_other_spaces(self, trained, tmp_path):
        with pytest.raises(ValueError, match="Observation spaces do not match"):
            MBPO.load(saved(trained, tmp_path), env=make_vec_env("Pendulum-v1"))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"real_ratio": 2.0}, "real_ratio"),
            ({"rollout_schedule": (1, 2)}, "rollout_schedule"),
            ({"branch_from": "nowhere"}, "branch_from"),
            ({"dynamics_kwargs": {"ensemble_size": 3, "n_elites": 4, "net_arch": [16, 16]}}, "n_elites"),
            ({"optimize_memory_usage": True}, "optimize_memory_usage"),
        ],
    )
    def test_bad_changes(self, trained, tmp_path, change, message):
        with pytest.raises(ValueError, match=message):
            MBPO.load(saved(trained, tmp_path), env=trained.get_env(), **change)

    def test_sac_reads_the_policy_of_mbpo(self, trained, tmp_path):
        policy = SACPolicy(trained.observation_space, trained.action_space, lambda _: 1e-3, net_arch=[16])
        policy.load_state_dict(MBPO.load(saved(trained, tmp_path)).policy.state_dict())
        sac = SAC("MlpPolicy", "Line-v0", policy_kwargs={"net_arch": [16]})
        sac.policy.load_state_dict(policy.state_dict())
        assert np.array_equal(sac.predict(OBS, deterministic=True)[0], trained.predict(OBS, deterministic=True)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_policy(make_mbpo, tmp_path):
    model = make_mbpo()
    expected = predict(model)
    model.policy = th.compile(model.policy)
    assert np.array_equal(predict(MBPO.load(saved(model, tmp_path))), expected)


class TestUserFunctions:
    @pytest.mark.parametrize("function", [is_far, lambda obs, action, next_obs: next_obs[:, 0].abs() > 1.2])
    def test_termination_survives(self, make_mbpo, tmp_path, function):
        model = make_mbpo("Line-v0", termination_fn=function).learn(60)
        loaded = MBPO.load(saved(model, tmp_path), env=model.get_env())
        assert th.equal(imagine(loaded).terminated, imagine(model).terminated)
        assert loaded.learn(60).dynamics.is_fitted

    def test_reward_survives(self, make_mbpo, tmp_path):
        loaded = MBPO.load(saved(make_mbpo(reward_fn=nearness).learn(60), tmp_path))
        step = imagine(loaded)
        assert th.equal(step.reward, nearness(None, None, step.next_obs))

    def test_can_be_passed_again(self, make_mbpo, tmp_path):
        path = saved(make_mbpo("Line-v0", reward_fn=nearness, termination_fn=is_far).learn(60), tmp_path)
        own = {"reward_fn": lambda o, a, n: n[:, 1] * 0, "termination_fn": lambda o, a, n: n[:, 1] < np.inf}
        step = imagine(MBPO.load(path, **own))
        assert (step.reward == 0).all() and step.terminated.all()

    def test_can_be_left_out_of_the_file(self, make_mbpo, tmp_path):
        model = make_mbpo("Line-v0", termination_fn=is_far).learn(60)
        model.save(tmp_path / "model", exclude=["termination_fn"])
        loaded = MBPO.load(tmp_path / "model", termination_fn=is_far)
        assert th.equal(imagine(loaded).terminated, imagine(model).terminated)


def test_known_termination_survives_without_env(make_mbpo, tmp_path):
    pytest.importorskip("mujoco")
    model = make_mbpo("InvertedPendulum-v5")
    assert model._auto_termination != "learned"
    loaded = MBPO.load(saved(model, tmp_path))
    assert loaded.dynamics.termination_fn == model.dynamics.termination_fn
    tilted = th.tensor([[0.0, 0.3, 0.0, 0.0]])
    assert loaded.dynamics.step(tilted, th.zeros(1, 1)).terminated.all()


class TestReplayBuffer:
    def test_round_trip(self, trained, tmp_path):
        trained.save_replay_buffer(tmp_path / "buffer")
        loaded = MBPO.load(saved(trained, tmp_path), env=trained.get_env())
        assert loaded.replay_buffer.size() == 0
        loaded.load_replay_buffer(tmp_path / "buffer")
        assert loaded.replay_buffer.size() == trained.replay_buffer.size() == 110
        for name in ("observations", "actions", "next_observations", "rewards", "dones", "timeouts"):
            assert np.array_equal(getattr(loaded.replay_buffer, name), getattr(trained.replay_buffer, name))
        loaded.learn(100, reset_num_timesteps=False)
        assert loaded._last_fit_timestep == 161
        assert len(loaded.model_buffer) > 0

    def test_without_the_buffer_the_model_is_not_refitted_to_a_few_transitions(self, trained, tmp_path, capsys):
        loaded = MBPO.load(saved(trained, tmp_path), env=trained.get_env(), learning_starts=100, verbose=1)
        before = deepcopy(loaded.dynamics.state_dict())
        loaded.learn(40, reset_num_timesteps=False)
        assert "Model not refitted at step 142: it was fitted to 91 transitions, and the replay buffer holds 32" in (
            capsys.readouterr().out
        )
        assert_equal_states(before, loaded.dynamics.state_dict())
        assert len(loaded.model_buffer) > 0
        loaded.learn(60, reset_num_timesteps=False)
        assert not th.equal(before["holdout_mse"], loaded.dynamics.holdout_mse)


class TestGoingOn:
    def test_second_learn_from_zero_refits(self, make_mbpo):
        model = make_mbpo().learn(150)
        assert model._last_fit_timestep == 141
        model.learn(100)
        # Warm-up is repeated, as in SAC; the clock of the refits starts again with num_timesteps
        assert model.num_timesteps == 100
        assert model._last_fit_timestep == 91

    def test_a_second_learn_keeps_the_step_counter(self, make_mbpo):
        model = make_mbpo().learn(150).learn(100, reset_num_timesteps=False)
        assert model.num_timesteps == 250
        assert model._last_fit_timestep == 241

    def test_after_saving(self, trained, tmp_path):
        before = deepcopy(trained.get_parameters())
        path = saved(trained, tmp_path)
        trained.learn(60, reset_num_timesteps=False)
        assert trained._last_fit_timestep == 141
        assert_equal_states(before, MBPO.load(path).get_parameters())

    def test_step_counters_continue_after_loading(self, trained, tmp_path):
        loaded = MBPO.load(saved(trained, tmp_path), env=trained.get_env())
        loaded.replay_buffer = trained.replay_buffer
        loaded.learn(25, reset_num_timesteps=False)
        assert loaded._last_fit_timestep == 111  # at once: the zip holds no imagined transitions
        loaded.learn(50, reset_num_timesteps=False)
        assert loaded._last_fit_timestep == 161


class TestSetEnv:
    def test_another_env(self, trained):
        trained.set_env(make_vec_env("Line-v0"))
        assert trained._last_obs is None
        assert trained.learn(50, reset_num_timesteps=False).num_timesteps == 160

    def test_one_that_is_not_vectorised(self, trained):
        env = Monitor(trained.get_env().envs[0].unwrapped)
        trained.set_env(env)
        assert trained.learn(45).num_timesteps == 45

    def test_same_env_without_a_reset(self, trained, tmp_path):
        env = trained.get_env()
        trained.set_env(env, force_reset=False)
        assert trained._last_obs is not None
        trained.learn(20, reset_num_timesteps=False)
        loaded = MBPO.load(saved(trained, tmp_path), env=env, force_reset=False)
        assert loaded._last_obs is not None
        assert loaded.learn(20, reset_num_timesteps=False).num_timesteps == 150

    def test_another_number_of_envs(self, trained):
        with pytest.raises(AssertionError, match="number of environments"):
            trained.set_env(make_vec_env("Line-v0", 2))

    def test_other_spaces(self, trained):
        with pytest.raises(ValueError, match="Observation spaces do not match"):
            trained.set_env(make_vec_env("Pendulum-v1"))

    def test_vec_normalize_is_picked_up(self, make_mbpo, tmp_path):
        env = VecNormalize(make_vec_env("PointMass-v0", 2))
        model = make_mbpo(env).learn(120)
        env.save(tmp_path / "statistics")
        path = saved(model, tmp_path)
        env = VecNormalize.load(tmp_path / "statistics", make_vec_env("PointMass-v0", 2))
        loaded = MBPO.load(path, env=env)
        assert loaded.get_vec_normalize_env() is env
        assert loaded.learn(60, reset_num_timesteps=False).num_timesteps == 180


def test_no_warnings_and_no_open_files(trained, tmp_path, recwarn):
    path = saved(trained, tmp_path)
    trained.save_replay_buffer(tmp_path / "buffer")
    loaded = MBPO.load(path, env=trained.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert len(recwarn) == 0
