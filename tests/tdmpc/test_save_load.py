"""The contents of the zip, and continuing from it; an interrupted run equals an uninterrupted one."""

import io
from copy import deepcopy

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import TDMPC, TDMPC2
from sb3_mbrl.callbacks import ExactCheckpointCallback

OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


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
    """Parameters, optimizers, buffers, step counters, plans, environments and random streams."""
    buffer, env = vars(model.replay_buffer), model.get_env()
    state = {
        "parameters": model.get_parameters(),
        "buffer": {name: value for name, value in buffer.items() if isinstance(value, (np.ndarray, int, float, dict))},
        "last": [model._last_obs, model._last_original_obs, model._last_episode_starts, model._planner_state],
        "clocks": [model.num_timesteps, model._n_updates, model._episode_num],
        "schedules": [model.policy.planner.n_planned, model.policy.planner.std_bounds, model.gamma],
        "episodes": [(info["r"], info["l"]) for info in model.ep_info_buffer],
        "streams": [model._generator.get_state(), model.policy.generator.get_state()],
        "global streams": [th.get_rng_state(), np.random.get_state()],
        "action_space": model.action_space.np_random.bit_generator.state,
        "tasks": [each.unwrapped.np_random.bit_generator.state for each in env.unwrapped.envs],
    }
    if isinstance(env, VecNormalize):
        state["statistics"] = [vars(env.obs_rms), vars(env.ret_rms), env.returns]
    return flat(state)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def assert_equal_parameters(first, second):
    assert_same(flat(first.get_parameters()), flat(second.get_parameters()))


def saved(model, tmp_path):
    model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def predictions(model, obs=OBS):
    actions, state = model.predict(obs, deterministic=True)
    return np.concatenate([actions, model.predict(obs, state, deterministic=True)[0]])


# ---------------------------------------------------------------- save and load


def test_everything_is_in_the_zip(trained, tmp_path):
    loaded = type(trained).load(saved(trained, tmp_path), env=trained.get_env())
    parameters = trained.get_parameters()
    assert list(parameters) == ["policy", "policy.model_optimizer", "policy.prior_optimizer"]
    assert parameters["policy.model_optimizer"]["state"] and parameters["policy.prior_optimizer"]["state"]
    assert_equal_parameters(trained, loaded)
    np.testing.assert_array_equal(predictions(loaded), predictions(trained))
    for name in ("gamma", "num_timesteps", "_n_updates", "_episode_num", "horizon", "model_size", "planner_kwargs"):
        assert getattr(loaded, name) == getattr(trained, name)
    assert loaded.model.terminates == trained.model.terminates == 1
    assert vars(loaded.policy.planner) == vars(trained.policy.planner)


def test_the_q_scale_is_in_the_zip(make, tmp_path):
    model = make("tdmpc2")
    model.model.q_scale.fill_(7.0)
    assert TDMPC2.load(saved(model, tmp_path)).model.q_scale == 7


def test_a_model_saved_during_training_predicts_the_same(make, kind, tmp_path):
    """This includes TD-MPC, whose plans change with every step."""
    model = make(kind).learn(33)
    np.testing.assert_array_equal(predictions(type(model).load(saved(model, tmp_path))), predictions(model))


def test_without_an_environment(trained, tmp_path):
    loaded = type(trained).load(saved(trained, tmp_path))
    assert loaded.get_env() is None and loaded.gamma == trained.gamma
    np.testing.assert_array_equal(predictions(loaded), predictions(trained))
    loaded.set_env(make_vec_env("Cliff-v0"))
    assert loaded.learn(10, reset_num_timesteps=False).num_timesteps == 70


def test_a_loaded_model_continues_with_another_number_of_environments(trained, tmp_path):
    loaded = type(trained).load(saved(trained, tmp_path), env=make_vec_env("Cliff-v0", 3))
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 90 and len(loaded._planner_state[0]) == 3
    assert loaded._n_updates > trained._n_updates


def test_a_second_run_does_not_start_from_the_plan_of_the_first(make, kind, tmp_path, monkeypatch):
    """Random actions come in between, and the environments may be different ones."""
    model = make(kind).learn(30)
    path, states = saved(model, tmp_path), []
    predict = model.policy.predict
    monkeypatch.setattr(model.policy, "predict", lambda *args, **kwargs: (states.append(args[1]), predict(*args, **kwargs))[1])
    model.learn(30)
    assert states[0] is None and states[1] is not None
    loaded = type(model).load(path, env=make_vec_env("LatentSlider-v0", 3)).learn(90)
    assert len(loaded._planner_state[0]) == 3


def test_arguments_are_kept_as_given_and_can_be_replaced(make, kind, tmp_path):
    given = {"replay_buffer_kwargs": {"handle_timeout_termination": True}, "policy_kwargs": {"max_plan_seconds": 9.0}}
    model = make(kind, **deepcopy(given))
    assert {name: getattr(model, name) for name in given} == given
    loaded = type(model).load(
        saved(model, tmp_path), gamma=0.5, batch_size=4, planner_kwargs={"n_iterations": 1, "n_elites": 9}
    )
    assert {name: getattr(loaded, name) for name in given} == given
    assert loaded.policy.objective.discount == 0.5 and loaded.policy.planner.n_iterations == 1
    assert loaded.policy.planner.population_size > 400  # the default again


def test_the_planner_can_be_switched_off_and_on(trained, tmp_path):
    path = saved(trained, tmp_path)
    without = type(trained).load(path, planner="none", env=make_vec_env("Cliff-v0"))
    actions, state = without.predict(OBS, deterministic=True)
    assert state is None
    assert without.learn(5, reset_num_timesteps=False)._planner_state is None
    again = type(trained).load(saved(without, tmp_path), planner="mppi")
    assert again.predict(OBS)[1] is not None
    prior = without.model.unscale_action(without.model.act(without.model.start(th.as_tensor(OBS)), deterministic=True))
    assert (actions != predictions(trained)[:4]).any() and prior.shape == (4, 1)


def test_a_run_continues_with_another_planner(make, kind, tmp_path):
    make(kind).learn(35).save_checkpoint(tmp_path)
    kwargs = {"population_size": 5, "n_elites": 5, "n_iterations": 1}
    resumed = type(make(kind)).load_checkpoint(tmp_path, env="LatentSlider-v0", device="cpu", planner_kwargs=kwargs)
    assert resumed.learn(5, reset_num_timesteps=False).policy.last_plan.n_iterations == 1


@pytest.mark.parametrize("stream", [False, True])
def test_saves_to_paths_and_streams(make, kind, tmp_path, stream):
    model, target = make(kind), io.BytesIO() if stream else str(tmp_path / "model")
    model.save(target)
    if stream:
        target.seek(0)
    np.testing.assert_array_equal(predictions(type(model).load(target)), predictions(model))


def test_zips_of_other_algorithms_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match="was saved by TDMPC2, not by TDMPC"):
        TDMPC.load(saved(make("tdmpc2"), tmp_path))
    SAC("MlpPolicy", "LatentSlider-v0", buffer_size=10, policy_kwargs={"net_arch": [8]}, device="cpu").save(tmp_path / "sac")
    with pytest.raises(ValueError, match="was saved by another library"):
        TDMPC2.load(tmp_path / "sac")


def test_another_size_is_refused_with_a_clear_message(trained, tmp_path):
    with pytest.raises(ValueError, match="does not fit the arguments that it is loaded with"):
        type(trained).load(saved(trained, tmp_path), model_size="small")


def test_parameters_can_be_changed(make, kind):
    model = make(kind, "Cliff-v0")
    original = deepcopy(model.get_parameters())
    perturbed = {
        name: state if "optim" in name else {key: th.rand_like(value) for key, value in state.items()}
        for name, state in original.items()
    }
    before = predictions(model)
    model.set_parameters(perturbed)
    assert (predictions(model) != before).any()
    model.set_parameters(original)
    np.testing.assert_array_equal(predictions(model), before)
    with pytest.raises(ValueError, match="no_such_object"):
        model.set_parameters({**original, "no_such_object": {}})
    with pytest.raises(ValueError, match="policy.prior_optimizer"):
        model.set_parameters({name: state for name, state in original.items() if name != "policy.prior_optimizer"})


def test_the_policy_alone(trained, tmp_path):
    policy = trained.policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy")
    np.testing.assert_array_equal(predictions(loaded), predictions(policy))


def test_the_policy_alone_in_the_middle_of_schedules(make, tmp_path):
    """The policy keeps the current values of the schedules."""
    policy = make("tdmpc").learn(45).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy")
    assert loaded.planner.horizon == policy.planner.n_planned == 2
    assert loaded.planner.std_bounds == policy.planner.std_bounds
    policy.plans, policy.max_plan_seconds = False, 5.0
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy")
    assert not loaded.plans and loaded.max_plan_seconds == 5.0


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_replay_buffer(make, kind, tmp_path, n_envs):
    model = make(kind, make_vec_env("Cliff-v0", n_envs)).learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(kind, make_vec_env("Cliff-v0", n_envs))
    other.load_replay_buffer(tmp_path / "buffer")
    batches = []
    for each in (model, other):
        np.random.seed(0)
        batches.append(flat(each.replay_buffer.sample(50)._asdict()))
    assert_same(*batches)


def test_a_replay_buffer_of_another_horizon_is_refused(make, kind, tmp_path):
    model = make(kind).learn(25)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(kind, horizon=2, horizon_schedule=(0, 9, 1, 2)) if kind == "tdmpc" else make(kind, horizon=2)
    other.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="sequences of horizon=2 transitions, got a SequenceReplayBuffer of horizon=3"):
        other.learn(5)


# ---------------------------------------------------------------- a run that was cut


def normalized(env_id):
    return VecNormalize(make_vec_env(env_id, 2))


def two(env_id):
    return make_vec_env(env_id, 2)


CASES = {
    "one": ("Cliff-v0", make_vec_env, {}),
    "two": ("Cliff-v0", two, {"train_freq": 2}),
    "normalized": ("LatentSlider-v0", normalized, {"learning_rate": LinearSchedule(1e-3, 1e-4, 1.0)}),
    "noise": ("LatentSlider-v0", two, {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))}),
    "prior alone": ("LatentSlider-v0", make_vec_env, {"planner": "none", "buffer_size": 30}),
}
CUT, END = 46, 80


@pytest.mark.parametrize("case", CASES)
def test_n_and_n_more_steps_equal_2n_steps(make, kind, tmp_path, case):
    env_id, make_env, settings = CASES[case]
    whole = make(kind, make_env(env_id), **deepcopy(settings))
    whole.learn(END, ExactCheckpointCallback(CUT, tmp_path))
    resumed = type(whole).load_checkpoint(tmp_path, env=make_env(env_id), device="cpu")
    assert CUT <= resumed.num_timesteps < CUT + 5
    resumed.learn(END - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same(everything(whole), everything(resumed))


def test_runs_with_images_and_dicts_resume_too(make, kind, tmp_path):
    for policy, env_id in (("CnnPolicy", "SliderImage-v0"), ("MultiInputPolicy", "SliderDict-v0")):
        whole = make(kind, env_id, policy, buffer_size=60).learn(32, ExactCheckpointCallback(26, tmp_path / policy))
        resumed = type(whole).load_checkpoint(tmp_path / policy, env=env_id, device="cpu")
        resumed.learn(32 - resumed.num_timesteps, reset_num_timesteps=False)
        assert_equal_parameters(whole, resumed)


def test_between_two_calls_of_learn(make, kind, tmp_path):
    whole = make(kind).learn(46)
    whole.save_checkpoint(tmp_path)
    resumed = type(whole).load_checkpoint(tmp_path, env="LatentSlider-v0", device="cpu")
    for model in (whole, resumed):
        np.random.seed(1)  # checkpoints set the global streams, of which there is one
        th.manual_seed(1)
        model.learn(20, reset_num_timesteps=False)
    assert_equal_parameters(whole, resumed)


def test_logs_do_not_change_what_is_learned(make, kind):
    silent, logged = make(kind).learn(60, log_interval=None), make(kind).learn(60, log_interval=1)
    assert "latent/effective_rank" not in silent.logger.name_to_value
    assert_same(everything(silent), everything(logged))
