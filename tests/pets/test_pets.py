"""PETS is an algorithm of SB3."""

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_mbrl import MBPO, PETS, MPCPolicy
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.planning import CEM
from sb3_mbrl.tasks.termination_rules import TerminatesOutside

OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
FEW = {"ensemble_size": 2, "n_elites": 1, "net_arch": [8]}


def transitions(model):
    buffer = model.replay_buffer
    return np.concatenate([buffer.observations[: buffer.pos], buffer.actions[: buffer.pos]], axis=2)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Slider-v0", "DiscreteSlider-v0"])
def test_learns(make_pets, env_id):
    model = make_pets(env_id, fit_kwargs={}, planner_kwargs={}, horizon=8, learning_starts=200)
    untrained = np.mean([make_pets(env_id).learn(50).ep_info_buffer[i]["r"] for i in range(2)])
    mean, _ = evaluate_policy(model.learn(250), make_vec_env(env_id, seed=1), n_eval_episodes=3)
    assert mean > 20 > untrained


def test_acts_at_random_then_plans(make_pets):
    model = make_pets().learn(50)
    assert not model.dynamics.is_fitted and model.policy.last_plan is None
    model.learn(10, reset_num_timesteps=False)
    assert model.dynamics.is_fitted and model.policy.last_plan is not None


def test_the_ensemble_is_that_of_the_fidelity_table():
    dynamics = PETS("MPCPolicy", "Slider-v0", device="cpu").dynamics
    assert (dynamics.ensemble_size, dynamics.n_elites, dynamics.net_arch) == (5, 5, (200, 200, 200))
    assert dynamics.normalize_targets and dynamics.nll_beta == 0.5
    assert dynamics.weight_decay == pytest.approx((2.5e-5, 7 / 12 * 1e-4, 7.5e-5, 1e-4))


@pytest.mark.parametrize("env_id", ["Slider-v0", "DiscreteSlider-v0"])
def test_an_action_before_the_first_fit_is_the_middle_or_the_first(make_pets, env_id):
    model = make_pets(env_id)
    for deterministic in (True, False):
        actions, state = model.predict(OBS, deterministic=deterministic)
        assert actions.tolist() == ([[0.0]] * 4 if env_id == "Slider-v0" else [5] * 4) and state is None
    assert model.predict(OBS[0])[0].shape == model.action_space.shape
    with pytest.raises(ValueError, match="not been fitted"):
        model.policy.predict(OBS)


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
    model = make_pets("CartPole-v1", termination_fn="learned", learning_starts=100).learn(130)
    assert isinstance(model.dynamics.termination_fn, LearnedTermination)
    assert model.predict(model.env.reset(), deterministic=True)[0].shape == (1,)


def test_cart_pole_ends_by_its_own_rule(make_pets, tmp_path):
    model = make_pets("CartPole-v1", termination_fn="auto").learn(60)
    assert isinstance(model.dynamics.termination_fn, TerminatesOutside)
    model.save(tmp_path / "pets")
    assert PETS.load(tmp_path / "pets").dynamics.termination_fn == model.dynamics.termination_fn


def test_a_saved_model_plans_the_same_and_keeps_learning(make_pets, tmp_path):
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
def test_n_and_n_more_steps_equal_2n_steps(make_pets, tmp_path, replan_freq):
    whole = make_pets(replan_freq=replan_freq)
    whole.learn(70)
    whole.save_checkpoint(tmp_path)
    whole.learn(70, reset_num_timesteps=False)
    resumed = PETS.load_checkpoint(tmp_path, env="Slider-v0", device="cpu")
    resumed.learn(70, reset_num_timesteps=False)
    np.testing.assert_array_equal(transitions(whole), transitions(resumed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dynamics_kwargs": {"learning_rate": 1e-3}}, r"does not accept \['learning_rate'\]"),
        ({"fit_kwargs": {"batch_size": 1}}, r"does not accept \['batch_size'\]"),
        ({"planner": "best", "planner_kwargs": {}}, "planner must be one of"),
        ({"planner_kwargs": {"elites": 3}}, "planner 'cem' does not accept"),
        ({"policy_kwargs": {"value_mode": "brave"}}, "value_mode must be one of"),
        ({"policy_kwargs": {"net_arch": [8]}}, r"policy_kwargs does not accept \['net_arch'\].*networks by dynamics_kwargs"),
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


def nearness(obs, action, next_obs):
    return 1 - next_obs[:, 0].abs()


def never(obs, action, next_obs):
    return next_obs[:, 0].abs() > 1e6


def n_plans_made(model, monkeypatch):
    """Records for how many environments each later plan is made."""
    made, plain = [], model.policy._replan
    monkeypatch.setattr(model.policy, "_replan", lambda *args: (made.append(int(args[2].sum())), plain(*args))[1])
    return made


@pytest.mark.parametrize(("replan_freq", "n_plans"), [(1, 24), (2, 12), (4, 6)])
def test_plans_as_often_as_told(make_pets, monkeypatch, replan_freq, n_plans):
    model = make_pets(replan_freq=replan_freq)
    made = n_plans_made(model, monkeypatch)
    # Steps 52 to 75 are planned: the model is fitted at 51, an episode ends at 75
    model.learn(75)
    assert made == [1] * n_plans


def test_an_episode_begins_with_a_new_plan(make_pets, monkeypatch):
    model = make_pets(replan_freq=4, model_train_freq=1_000)
    made = n_plans_made(model, monkeypatch)
    model.learn(77)
    assert len(made) == 6 + 1
    assert model._planner_state[-2].tolist() == [2] and model._planner_state[-1].tolist() == [1]


def test_each_environment_has_its_own_plan(make_pets, monkeypatch):
    def make(length):
        return lambda: gym.make("Slider-v0", max_episode_steps=length)

    model = make_pets(DummyVecEnv([make(10), make(11)]), replan_freq=3, learning_starts=40)
    made = n_plans_made(model, monkeypatch)
    model.learn(120)
    assert 1 in made and 2 in made


def test_a_users_reward_and_termination(make_pets):
    model = make_pets(reward_fn=nearness, termination_fn=never).learn(60)
    rows = th.randn(4, 2)
    step = model.dynamics.step(rows, th.zeros(4, 1))
    assert th.equal(step.reward, nearness(None, None, step.next_obs)) and not step.terminated.any()


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"value_mode": "pessimistic", "kappa": 0.5},
        {"uncertainty_penalty": 1.0},
        {"action_repeat": 2},
        {"terminal_value": lambda obs: -obs[:, 0].abs()},
        {"actor": lambda obs: -obs[:, :1].clamp(-1, 1), "n_proposals": 3},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_of_the_policy(make_pets, tmp_path, policy_kwargs):
    model = make_pets(policy_kwargs=policy_kwargs).learn(60)
    model.save(tmp_path / "pets")
    loaded = PETS.load(tmp_path / "pets")
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


def test_a_users_policy_class(make_pets):
    class Careful(MPCPolicy):
        def __init__(self, *args, care=1.0, **kwargs):
            super().__init__(*args, value_mode="pessimistic", kappa=care, **kwargs)

    kwargs = {"dynamics_kwargs": {"ensemble_size": 2, "n_elites": 2, "net_arch": [8]}, "device": "cpu"}
    model = PETS(Careful, "Slider-v0", policy_kwargs={"care": 3.0}, **kwargs)
    assert model.policy.objective.kappa == 3.0
    with pytest.raises(ValueError, match=r"policy_kwargs does not accept \['seed'\].*'care'"):
        PETS(Careful, "Slider-v0", policy_kwargs={"seed": 3}, **kwargs)


@pytest.mark.parametrize("planner", ["icem", "mppi", "random_shooting", "pddm", "gradient"])
def test_every_planner(make_pets, planner):
    model = make_pets(planner=planner, planner_kwargs={}, horizon=3, dynamics_kwargs=FEW).learn(54)
    assert model.policy.last_plan is not None


def test_a_users_planner(make_pets, tmp_path):
    planner = CEM(horizon=3, population_size=10, n_elites=2)
    model = make_pets(planner=planner, horizon=None, planner_kwargs={}).learn(55)
    assert model.policy.planner is planner
    model.save(tmp_path / "pets")
    assert vars(PETS.load(tmp_path / "pets").policy.planner) == vars(planner)


def test_the_learning_rate_follows_its_schedule(make_pets):
    model = make_pets(learning_rate=lambda left: 1e-3 * left).learn(101)
    # The last of three fits, at step 101, has nothing left
    assert model.dynamics.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    assert make_pets(learning_rate=2e-3).learn(60).dynamics.optimizer.param_groups[0]["lr"] == 2e-3


def test_predictions_follow_the_seed(make_pets):
    model, actions = make_pets().learn(55), []
    for seed in (3, 3, 4):
        model.set_random_seed(seed)
        actions.append(model.predict(OBS)[0])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (actions[0] != actions[2]).any()


def test_the_model_is_fitted_to_raw_observations(make_pets):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=2, seed=0))
    model = make_pets(env).learn(80)
    rows = real_transitions(model.replay_buffer, "cpu")
    # SB3 takes an episode's last observation back out of the normalised one, after the clip
    inside = th.as_tensor(model.replay_buffer.dones[: model.replay_buffer.pos].flatten() < 0.5)
    np.testing.assert_allclose(rows.rewards[inside], nearness(None, None, rows.next_observations[inside]), atol=1e-5)
    np.testing.assert_allclose(model.dynamics.input_normalizer.mean[:2], rows.observations[:72].mean(dim=0), atol=0.2)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("env_id", ["Slider-v0", "DiscreteSlider-v0"])
def test_stored_actions_are_the_executed_ones(make_pets, env_id, n_envs):
    model = make_pets(make_vec_env(env_id, n_envs, seed=0)).learn(80)
    buffer, size = model.replay_buffer, model.replay_buffer.pos
    actions = buffer.actions[:size, :, 0]
    push = actions - 6 if env_id == "DiscreteSlider-v0" else actions  # stored in [-1, 1]
    velocity = 0.8 * buffer.observations[:size, :, 1] + 0.2 * push
    np.testing.assert_allclose(buffer.next_observations[:size, :, 1], velocity, atol=1e-5)


def test_checkpoints_of_sb3(make_pets, tmp_path):
    model = make_pets().learn(80, callback=CheckpointCallback(40, str(tmp_path), save_replay_buffer=True))
    loaded = PETS.load(tmp_path / "rl_model_80_steps", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_80_steps")
    assert loaded.replay_buffer.size() == 79
    assert loaded.learn(30, reset_num_timesteps=False)._last_fit_timestep == 101


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            assert_equal_states(value, second[name])
        else:
            assert th.equal(value, second[name]) if isinstance(value, th.Tensor) else value == second[name], name


def test_everything_of_the_model_is_in_the_zip(trained, tmp_path):
    trained.save(tmp_path / "pets")
    loaded = PETS.load(tmp_path / "pets", env=trained.get_env())
    parameters = trained.get_parameters()
    assert parameters.keys() == {"dynamics", "dynamics.optimizer"} and parameters["dynamics.optimizer"]["state"]
    assert_equal_states(parameters, loaded.get_parameters())
    assert loaded.dynamics.is_fitted and loaded._last_fit_timestep == 51


def test_parameters_can_be_changed(trained, make_pets):
    other = make_pets(seed=5)
    other.set_parameters(trained.get_parameters())
    # The samples of a deterministic plan are those of its seed
    same_seed = make_pets()
    same_seed.set_parameters(trained.get_parameters())
    np.testing.assert_array_equal(same_seed.predict(OBS, deterministic=True)[0], trained.predict(OBS, deterministic=True)[0])
    assert_equal_states(other.get_parameters(), trained.get_parameters())
    with pytest.raises(ValueError, match="no_such_object"):
        other.set_parameters({**trained.get_parameters(), "no_such_object": {}})


def test_a_loaded_model_continues_with_another_number_of_environments(trained, tmp_path):
    assert len(trained._planner_state[0]) == 1
    trained.save(tmp_path / "pets")
    loaded = PETS.load(tmp_path / "pets", env=make_vec_env("Slider-v0", n_envs=3))
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 90 and len(loaded._planner_state[0]) == 3


def test_a_model_without_an_environment_plans(trained, tmp_path):
    trained.save(tmp_path / "pets")
    loaded = PETS.load(tmp_path / "pets")
    assert loaded.get_env() is None
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], trained.predict(OBS, deterministic=True)[0])
    loaded.set_env(make_vec_env("Slider-v0"))
    assert loaded.learn(10, reset_num_timesteps=False).num_timesteps == 70


def test_another_environment_begins_with_a_new_plan(make_pets, monkeypatch):
    model = make_pets(replan_freq=4).learn(57)
    model.set_env(make_vec_env("Slider-v0"))
    made = n_plans_made(model, monkeypatch)
    model.learn(1, reset_num_timesteps=False)
    assert made == [1] and model._planner_state[-1].tolist() == [1]


def test_normalization_is_that_of_the_environment_given(make_pets, tmp_path):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=2, seed=0))
    model = make_pets(env).learn(80)
    model.save(tmp_path / "pets")
    assert PETS.load(tmp_path / "pets", env=env).policy.vec_normalize is env
    assert PETS.load(tmp_path / "pets").policy.vec_normalize is None
    model.set_env(make_vec_env("Slider-v0", n_envs=2))
    assert model.policy.vec_normalize is None


@pytest.fixture
def agent(tmp_path):
    """An agent that writes to TensorBoard and so holds a file, which cannot be pickled."""
    kwargs = {"buffer_size": 100, "learning_starts": 5, "policy_kwargs": {"net_arch": [8]}, "device": "cpu"}
    return SAC("MlpPolicy", "Slider-v0", tensorboard_log=str(tmp_path / "logs"), **kwargs).learn(10)


@pytest.mark.parametrize("names", [["terminal_value"], ["actor", "terminal_value"]], ids=str)
def test_agents_are_not_saved_and_must_be_passed_again(make_pets, agent, tmp_path, names):
    agents = dict.fromkeys(names, agent)
    given = {"n_proposals": 2, **agents}
    model = make_pets(policy_kwargs=given).learn(55)
    assert given == {"n_proposals": 2, **agents}
    model.save(tmp_path / "pets")
    with pytest.raises(ValueError, match=rf"SB3 algorithms as \['{names[0]}'.*PETS.load\(path, {names[0]}=\.\.\."):
        PETS.load(tmp_path / "pets")
    for _ in range(2):  # a loaded model is saved alike
        loaded = PETS.load(tmp_path / "pets", **agents)
        np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])
        loaded.save(tmp_path / "pets")


def test_a_run_with_an_agent_continues(make_pets, agent, tmp_path):
    settings = {"policy_kwargs": {"terminal_value": agent}}
    whole = make_pets(**settings).learn(60)
    make_pets(**settings).learn(55).save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="Pass them again"):
        PETS.load_checkpoint(tmp_path, env="Slider-v0")
    resumed = PETS.load_checkpoint(tmp_path, env="Slider-v0", device="cpu", terminal_value=agent)
    resumed.learn(5, reset_num_timesteps=False)
    np.testing.assert_array_equal(transitions(whole), transitions(resumed))


def test_a_run_continues_with_another_horizon(make_pets, tmp_path):
    make_pets().learn(55).save_checkpoint(tmp_path)
    resumed = PETS.load_checkpoint(tmp_path, env="Slider-v0", device="cpu", horizon=3)
    assert resumed.learn(5, reset_num_timesteps=False).policy.last_plan.actions.shape == (1, 3, 1)


CASES = {
    "two environments": ("Slider-v0", 2, {"replan_freq": 3}),
    "discrete": ("DiscreteSlider-v0", 1, {"planner": "icem", "planner_kwargs": {"population_size": 10, "n_elites": 4}}),
    "learned termination": ("CartPole-v1", 1, {"termination_fn": "learned", "replan_freq": 2}),
    "noise": ("Slider-v0", 1, {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))}),
    "once": ("Slider-v0", 1, {"aggregate": False, "planner": "mppi", "planner_kwargs": {"population_size": 20}}),
    "pessimistic": ("Slider-v0", 2, {"learning_rate": 2e-3, "policy_kwargs": {"value_mode": "pessimistic"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_equals_an_uninterrupted_one(make_pets, tmp_path, monkeypatch, case):
    # Two epochs instead of fifty; nothing else takes as long
    monkeypatch.setattr(LearnedTermination.fit, "__defaults__", (None, 2, 256, None))
    env_id, n_envs, settings = CASES[case]
    whole = make_pets(make_vec_env(env_id, n_envs), **deepcopy(settings)).learn(130)
    make_pets(make_vec_env(env_id, n_envs), **deepcopy(settings)).learn(70).save_checkpoint(tmp_path)
    resumed = PETS.load_checkpoint(tmp_path, env=make_vec_env(env_id, n_envs), device="cpu")
    resumed.learn(60, reset_num_timesteps=False)
    np.testing.assert_array_equal(transitions(whole), transitions(resumed))
    assert_equal_states(whole.get_parameters(), resumed.get_parameters())
    for one, other in zip(whole._planner_state, resumed._planner_state, strict=True):
        np.testing.assert_array_equal(one, other)
    for stream in (lambda model: model.policy.generator, lambda model: model._generator):
        assert th.equal(stream(whole).get_state(), stream(resumed).get_state())


def test_a_run_can_be_interrupted_within_a_plan(make_pets, tmp_path, monkeypatch):
    model = make_pets(replan_freq=4).learn(57)
    assert model._planner_state[-2].tolist() == [2]  # of the four actions of its second plan
    model.save_checkpoint(tmp_path)
    resumed = PETS.load_checkpoint(tmp_path, env="Slider-v0", device="cpu")
    made = n_plans_made(resumed, monkeypatch)
    resumed.learn(2, reset_num_timesteps=False)
    assert made == []
    resumed.learn(1, reset_num_timesteps=False)
    assert made == [1]


FLAT = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Dict({"a": FLAT}), FLAT, "got Dict.*FlattenObservation"),
        (spaces.Box(0, 255, (3, 36, 36), np.uint8), FLAT, "images are not supported"),
        (spaces.Discrete(3), FLAT, "continuous observation"),
        (FLAT, spaces.MultiDiscrete([2, 3]), "Discrete or Box actions, got MultiDiscrete"),
        (FLAT, spaces.Box(-np.inf, np.inf, (2,), np.float32), "finite bounds.*TransformAction"),
    ],
    ids=["dict", "image", "discrete", "multi discrete", "unbounded"],
)
def test_spaces_that_are_not_supported(make_pets, observation_space, action_space, message):
    env = gym.make("Slider-v0").unwrapped
    env.observation_space, env.action_space = observation_space, action_space
    with pytest.raises(ValueError, match=message):
        make_pets(env)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planner": CEM()}, "horizon and planner_kwargs are for a planner given by name"),
        ({"replan_freq": 5}, "replan_freq must lie between 1 and horizon=4, got 5"),
        ({"propagation": "ts9"}, "propagation must be one of"),
        ({"policy_kwargs": {"seed": 1}}, r"policy_kwargs does not accept \['seed'\].*PETS's own arguments"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_more_bad_arguments(make_pets, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_pets(**changes)


def test_continuous_noise_is_refused_for_discrete_actions(make_pets):
    with pytest.raises(ValueError, match=r"action_noise is for Box actions, got Discrete\(3, start=5\)"):
        make_pets("DiscreteSlider-v0", action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))


def test_a_gradient_planner_is_refused_for_discrete_actions(make_pets):
    with pytest.raises(ValueError, match="planner must be one of .* for discrete actions, got 'gradient'"):
        make_pets("DiscreteSlider-v0", planner="gradient", planner_kwargs={})


@pytest.mark.parametrize(
    ("policy", "message"), [("MlpPolicy", "MlpPolicy unknown"), (SACPolicy, "subclass of MPCPolicy, got SACP")]
)
def test_policies_that_do_not_plan(policy, message):
    with pytest.raises(ValueError, match=message):
        PETS(policy, "Slider-v0", device="cpu")
