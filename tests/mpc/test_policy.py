"""A planner as an SB3 policy."""

import json
import pickle
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_mbrl import MBPO, MPCPolicy
from sb3_mbrl.dynamics import ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.mpc.agents import actor_function, value_function
from sb3_mbrl.planning import CEM, CategoricalCEM

PLANNER = {"planner": "cem", "horizon": 5, "planner_kwargs": {"population_size": 30, "n_elites": 5, "n_iterations": 2}}
OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def model(trained):
    return trained.dynamics


@pytest.fixture
def policy(model):
    return MPCPolicy(model, **PLANNER)


def calls(policy):
    """How often the policy has planned since."""
    counted, plain = [], policy.objective.score_states

    def score(*args):
        counted.append(len(args[0]))
        return plain(*args)

    policy.objective.score_states = score
    return counted


def random_model(action_space, fitted=True, **functions):
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    generator = th.Generator().manual_seed(0)
    model = ProbabilisticEnsemble(
        space, action_space, 2, 2, [8], generator=generator, device="cpu", normalize_targets=False, **functions
    )
    if fitted:
        model.holdout_mse.copy_(th.arange(2.0))
    return model


# ---------------------------------------------------------------- acting


def test_actions_are_the_environments(policy):
    actions, state = policy.predict(OBS)
    assert actions.shape == (4, 1) and actions.dtype == np.float32
    assert all(policy.action_space.contains(action) for action in actions)
    action, _ = policy.predict(OBS[0])
    assert action.shape == (1,)
    assert all(isinstance(part, np.ndarray) and len(part) == 4 for part in state)
    assert pickle.loads(pickle.dumps(state))[0].shape == state[0].shape


def test_discrete_actions_are_the_environments():
    policy = MPCPolicy(random_model(spaces.Discrete(3, start=5)), **PLANNER)
    actions, _ = policy.predict(OBS)
    assert actions.shape == (4,)
    assert all(policy.action_space.contains(action) for action in actions)


def test_a_deterministic_action_depends_on_model_observation_and_state_alone(model, policy):
    first, state = policy.predict(OBS, deterministic=True)
    policy.predict(OBS[::-1].copy())
    th.manual_seed(5)
    again, _ = MPCPolicy(model, **PLANNER).predict(OBS, deterministic=True)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(
        policy.predict(OBS, state, deterministic=True)[0], policy.predict(OBS, state, deterministic=True)[0]
    )


def test_a_batch_is_a_loop(policy):
    actions, state = policy.predict(OBS, deterministic=True)
    actions, state = policy.predict(OBS + 0.1, state, deterministic=True)
    for i in range(4):
        alone, own = policy.predict(OBS[i : i + 1], deterministic=True)
        alone, own = policy.predict(OBS[i : i + 1] + 0.1, own, deterministic=True)
        np.testing.assert_allclose(alone[0], actions[i], atol=1e-4)
        for part, whole in zip(own, state, strict=True):
            np.testing.assert_allclose(part[0], whole[i], atol=1e-4)


def test_equal_seeds_equal_actions(model):
    def act(seed):
        policy = MPCPolicy(model, **PLANNER, seed=seed)
        return np.stack([policy.predict(OBS)[0] for _ in range(2)])

    np.testing.assert_array_equal(act(1), act(1))
    assert (act(1) != act(2)).any()
    assert (act(1)[0] != act(1)[1]).any()


def test_global_streams_are_left_alone(policy):
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    policy.predict(OBS)
    policy.predict(OBS, deterministic=True)
    assert th.get_rng_state().equal(before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_an_episode_begins_from_nothing_in_its_row_alone(policy):
    _, state = policy.predict(OBS, deterministic=True)
    starts = np.array([False, True, False, False])
    actions, new_state = policy.predict(OBS, state, starts, deterministic=True)
    fresh, _ = policy.predict(OBS[1:2], deterministic=True)
    np.testing.assert_allclose(actions[1], fresh[0], atol=1e-4)
    on, _ = policy.predict(OBS, state, deterministic=True)
    np.testing.assert_allclose(actions[[0, 2, 3]], on[[0, 2, 3]], atol=1e-4)
    assert new_state[-1].tolist() == [2, 1, 2, 2]


def test_a_plan_is_executed_before_the_next_is_made(model):
    policy = MPCPolicy(model, **PLANNER, replan_freq=2, action_repeat=2)
    planned = calls(policy)
    actions, state = [], None
    for _ in range(9):
        action, state = policy.predict(OBS, state, deterministic=True)
        actions.append(action)
    assert planned == [4, 4, 4]
    np.testing.assert_array_equal(actions[0], actions[1])
    # A reset puts one environment out of phase
    _, state = policy.predict(OBS, state, np.array([True, False, False, False]), deterministic=True)
    assert planned[3:] == [1]
    for _ in range(4):
        _, state = policy.predict(OBS, state, deterministic=True)
    assert planned[3:] == [1, 3, 1]


def test_open_loop_executes_the_whole_plan(model):
    policy = MPCPolicy(model, **PLANNER, replan_freq=5)
    _, state = policy.predict(OBS, deterministic=True)
    plan = policy.last_plan.actions
    for t in range(1, 5):
        action, state = policy.predict(OBS + t, state, deterministic=True)
        np.testing.assert_allclose(action, 2 * plan[:, t].numpy(), atol=1e-6)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5"])
def test_plans_in_a_simulator(env_id):
    env = gym.make(env_id, max_episode_steps=20)
    policy = MPCPolicy(SimulatorModel(env_id), **{**PLANNER, "horizon": 15})
    episode_rewards, lengths = evaluate_policy(policy, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert lengths == [20, 20]
    assert np.isfinite(episode_rewards).all()


def test_evaluation_of_several_environments(policy):
    mean, _ = evaluate_policy(policy, make_vec_env("Slider-v0", n_envs=3, seed=0), n_eval_episodes=3)
    assert np.isfinite(mean)


def test_normalized_observations_are_what_they_stand_for(model, policy):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=4, seed=0))
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    normalized = MPCPolicy(model, **PLANNER, vec_normalize=env)
    np.testing.assert_allclose(
        normalized.predict(env.normalize_obs(OBS), deterministic=True)[0],
        policy.predict(OBS, deterministic=True)[0],
        atol=1e-3,
    )


def test_a_reward_can_be_swapped():
    def turn_left(obs, action, next_obs):
        return next_obs[:, 2]

    def turn_right(obs, action, next_obs):
        return -next_obs[:, 2]

    hanging, simulator = np.array([[-1.0, 0.0, 0.0]], np.float32), SimulatorModel("Pendulum-v1")
    left = MPCPolicy(simulator, **PLANNER, reward_fn=turn_left).predict(hanging, deterministic=True)[0]
    right = MPCPolicy(simulator, **PLANNER, reward_fn=turn_right).predict(hanging, deterministic=True)[0]
    assert left > 1 and right < -1


# ---------------------------------------------------------------- actors and critics

OFF = {"learning_starts": 0, "buffer_size": 100}


@pytest.mark.parametrize(
    ("algorithm", "env_id", "kwargs"),
    [
        (SAC, "Slider-v0", OFF),
        (TD3, "Slider-v0", OFF),
        (TQC, "Slider-v0", OFF),
        (CrossQ, "Slider-v0", OFF),
        (PPO, "Slider-v0", {}),
        (A2C, "DiscreteSlider-v0", {}),
        (DQN, "DiscreteSlider-v0", OFF),
    ],
)
def test_any_sb3_actor_and_critic(algorithm, env_id, kwargs):
    env = VecNormalize(make_vec_env(env_id, seed=0), norm_reward=False)
    env.obs_rms.mean = np.array([0.5, -0.5])
    agent = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **kwargs)
    agent.policy.set_training_mode(False)
    model = random_model(env.action_space)
    raw = th.as_tensor(OBS)
    with th.no_grad():
        actions, values = actor_function(agent)(raw), value_function(agent)(raw)
    assert values.shape == (4,) and th.isfinite(values).all()
    predicted, _ = agent.predict(env.normalize_obs(OBS), deterministic=True)
    if isinstance(env.action_space, spaces.Discrete):
        np.testing.assert_array_equal(actions.argmax(dim=1).numpy(), predicted)
    else:
        np.testing.assert_allclose(2 * actions.numpy(), predicted, atol=1e-5)
    policy = MPCPolicy(model, **PLANNER, terminal_value=agent, actor=agent, n_proposals=2)
    action, _ = policy.predict(OBS, deterministic=True)
    assert all(policy.action_space.contains(each) for each in action)


def test_a_recurrent_actor_is_refused():
    agent = RecurrentPPO("MlpLstmPolicy", "Slider-v0", n_steps=8, device="cpu")
    with pytest.raises(ValueError, match="no function of the observation alone"):
        MPCPolicy(random_model(agent.action_space), actor=agent)


# ---------------------------------------------------------------- bad input


def test_observations_that_do_not_fit(policy):
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.predict(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="obs, info = env.reset()"):
        policy.predict((OBS, {}))
    _, state = policy.predict(OBS)
    with pytest.raises(ValueError, match="state is of 4 environments, the observation of 2"):
        policy.predict(OBS[:2], state)
    with pytest.raises(ValueError, match="episode_start is of 3 environments"):
        policy.predict(OBS, state, np.zeros(3, bool))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"planner": "best"}, "planner must be one of"),
        ({"planner": CEM(), "horizon": 3}, "for a planner given by name"),
        ({"planner": CategoricalCEM()}, "CategoricalCEM does not plan Box actions"),
        ({"replan_freq": 31}, "replan_freq must lie between 1 and horizon=30"),
        ({"n_proposals": 0}, "n_proposals must be an integer from 1"),
        ({"max_plan_seconds": 0}, "max_plan_seconds must be a number above 0"),
        ({"value_mode": "brave"}, "value_mode must be one of"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MPCPolicy(model, **kwargs)


@pytest.mark.parametrize("changes", [{"horizon": 6}, {"horizon": 4, "replan_freq": 2}, {"planner": "icem"}], ids=str)
def test_the_state_of_another_policy_is_refused(model, policy, changes):
    _, state = MPCPolicy(model, **{**PLANNER, **changes}).predict(OBS)
    with pytest.raises(
        ValueError, match=r"shape \(4, .*expected \(4, .*another horizon, planner or action space.*None to begin"
    ):
        policy.predict(OBS, state)


def test_the_state_of_other_actions_or_of_no_planner_is_refused(model, policy):
    _, state = MPCPolicy(random_model(spaces.Box(-1, 1, (3,))), **PLANNER).predict(OBS)
    with pytest.raises(ValueError, match=r"The state's mean has shape \(4, 5, 3\), expected \(4, 5, 1\)"):
        policy.predict(OBS, state)
    with pytest.raises(ValueError, match="state has 2 parts, expected 7"):
        policy.predict(OBS, state[:2])


# ---------------------------------------------------------------- files


def test_a_saved_policy_acts_alike(policy, tmp_path):
    policy.save(tmp_path / "policy.zip")
    loaded = MPCPolicy.load(tmp_path / "policy.zip", device="cpu")
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])
    assert vars(loaded.planner) == vars(policy.planner)


def test_the_normalization_is_asked_for_and_arguments_may_change(model, tmp_path):
    path, env = tmp_path / "policy.zip", VecNormalize(make_vec_env("Slider-v0"))
    MPCPolicy(model, **PLANNER, vec_normalize=env).save(path)
    with pytest.raises(ValueError, match=r"saved with \['vec_normalize'\]"):
        MPCPolicy.load(path)
    loaded = MPCPolicy.load(path, vec_normalize=env, replan_freq=2, discount=0.9)
    assert (loaded.vec_normalize, loaded.replan_freq, loaded.objective.discount) == (env, 2, 0.9)


def test_what_a_file_cannot_hold_is_asked_for(model, tmp_path):
    path = tmp_path / "policy.zip"
    functions = {"reward_fn": lambda obs, action, next_obs: obs[:, 0], "termination_fn": lambda obs, action, n: obs[:, 0] > 1}
    MPCPolicy(model, **PLANNER, **functions).save(path)
    with pytest.raises(ValueError, match=r"saved with \['reward_fn', 'termination_fn'\]"):
        MPCPolicy.load(path)
    assert MPCPolicy.load(path, **functions).objective.termination_fn is functions["termination_fn"]
    simulator = SimulatorModel("Pendulum-v1")
    MPCPolicy(simulator, **PLANNER).save(path)
    with pytest.raises(ValueError, match="pass model="):
        MPCPolicy.load(path)
    assert MPCPolicy.load(path, model=simulator).planner.horizon == 5


def test_a_damaged_or_foreign_file(policy, tmp_path):
    path = tmp_path / "policy.zip"
    policy.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged or was not written by"):
        MPCPolicy.load(path)
    PPO("MlpPolicy", "Slider-v0", n_steps=8, batch_size=8, device="cpu").save(path)
    with pytest.raises(ValueError, match="damaged or was not written by"):
        MPCPolicy.load(path)


def rewrite(path, change):
    """Change the configuration in a file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["policy.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "policy.json": json.dumps(config)}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", ["make_planner", "Planner", "ModelObjective", "partial", "os.system", "__builtins__"])
def test_a_file_names_nothing_but_planners(policy, tmp_path, name):
    path = tmp_path / "policy.zip"
    policy.save(path)
    rewrite(path, lambda config: config.update(planner=name, planner_kwargs={}))
    with pytest.raises(ValueError, match=f"saved with a {name} of yours"):
        MPCPolicy.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("arguments"),
        lambda config: config["arguments"].pop("seed"),
        lambda config: config["arguments"].update(actor="os.system"),
        lambda config: config["arguments"].update(discount="1"),
        lambda config: config.update(functions=["model"]),
        lambda config: config.update(planner=["CEM"]),
        lambda config: config["planner_kwargs"].update(surplus=1),
        lambda config: config.update(format="sb3_mbrl.MPCPolicy.0"),
    ],
)
def test_a_configuration_of_anything_else_is_refused(policy, tmp_path, change):
    path = tmp_path / "policy.zip"
    policy.save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match="is damaged"):
        MPCPolicy.load(path)


def test_a_flipped_bit_is_damage_or_changes_nothing(policy, tmp_path):
    path = tmp_path / "policy.zip"
    policy.save(path)
    content, action = path.read_bytes(), policy.predict(OBS, deterministic=True)[0]
    for byte in [*range(0, 60), *range(60, len(content), len(content) // 40), *range(len(content) - 150, len(content), 3)]:
        changed = bytearray(content)
        changed[byte] ^= 1 << byte % 8
        path.write_bytes(changed)
        try:
            loaded = MPCPolicy.load(path, device="cpu")
        except ValueError as error:
            assert "damaged" in str(error)
        else:  # the date of an entry, for instance
            np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], action)


# ---------------------------------------------------------------- acting, for all planners

CHEAP = {
    "random_shooting": {"population_size": 20},
    "cem": {"population_size": 20, "n_elites": 4, "n_iterations": 2},
    "icem": {"population_size": 10, "n_elites": 4, "n_iterations": 2},
    "mppi": {"population_size": 20, "n_iterations": 2},
    "pddm": {"population_size": 20},
    "gradient": {"n_starts": 3, "n_iterations": 2},
}


def cheap(model, planner, **kwargs):
    return MPCPolicy(model, planner, 4, CHEAP[planner], **kwargs)


def assert_close(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


# ---------------------------------------------------------------- what is planned in


def test_an_algorithm_lends_its_model(trained, policy):
    np.testing.assert_array_equal(
        MPCPolicy(trained, **PLANNER).predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0]
    )
    mbpo = MBPO("MlpPolicy", "Slider-v0", buffer_size=100, policy_kwargs={"net_arch": [8]}, device="cpu")
    assert MPCPolicy(mbpo).model is mbpo.dynamics


def test_observations_come_as_the_algorithm_sees_them(make_pets):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=4, seed=0))
    pets = make_pets(env).learn(60)
    obs = env.normalize_obs(OBS)
    planned, of_the_algorithm = (
        each.predict(obs, deterministic=True)[0] for each in (MPCPolicy(pets, pets.policy.planner), pets)
    )
    np.testing.assert_array_equal(planned, of_the_algorithm)
    raw, _ = MPCPolicy(pets.dynamics, pets.policy.planner).predict(OBS, deterministic=True)
    np.testing.assert_allclose(raw, planned, atol=1e-3)


def test_a_saved_policy_takes_an_algorithm_as_its_model(trained, tmp_path):
    MPCPolicy(SimulatorModel("Pendulum-v1"), **PLANNER).save(tmp_path / "policy.zip")
    assert MPCPolicy.load(tmp_path / "policy.zip", model=trained).model is trained.dynamics


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: SAC("MlpPolicy", "Pendulum-v1", buffer_size=10), "SAC has no learned dynamics .* MBPO, PETS and Dyna have"),
        (lambda: gym.make("Pendulum-v1"), r"A model of the dynamics is needed, got an object of type .*SimulatorModel\(env\)"),
        (lambda: ProbabilisticEnsemble, "got the class ProbabilisticEnsemble"),
        (lambda: None, "got an object of type NoneType"),
    ],
)
def test_what_is_no_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        MPCPolicy(model())


def test_a_model_that_was_not_fitted_is_refused_until_it_is():
    model = random_model(spaces.Box(-1, 1, (1,)), fitted=False)
    policy = MPCPolicy(model, **PLANNER)
    for act in (policy.predict, lambda obs: policy._predict(th.as_tensor(obs))):
        with pytest.raises(ValueError, match="has not been fitted to data: what it imagines is noise"):
            act(OBS)
    model.holdout_mse.zero_()
    assert policy.predict(OBS)[0].shape == (4, 1)


def test_an_end_can_be_swapped_as_a_reward_can(model):
    """Each step is paid 1, and ends the plan if it goes left: the way to many steps is to the right."""

    def ends_on_the_way_left(obs, action, next_obs):
        assert action.abs().max() <= 2  # in the environment's scale
        return action[:, 0] < 0

    def one(obs, action, next_obs):
        return th.ones(len(obs))

    many = {**PLANNER, "planner_kwargs": {"population_size": 500, "n_elites": 5, "n_iterations": 2}}
    swapped = MPCPolicy(model, **many, reward_fn=one, termination_fn=ends_on_the_way_left)
    swapped.predict(OBS, deterministic=True)
    assert (swapped.last_plan.value == 5).all()  # of 500 samples, 16 go right for five steps
    ended = MPCPolicy(model, **PLANNER, reward_fn=one, termination_fn=lambda obs, action, next_obs: obs[:, 0] < np.inf)
    ended.predict(OBS)
    assert (ended.last_plan.value == 1).all()


def test_an_end_that_is_no_bool_is_refused(model):
    with pytest.raises(ValueError, match="termination_fn must return a bool tensor"):
        MPCPolicy(model, **PLANNER, termination_fn=lambda obs, action, next_obs: obs[:, 0])


@pytest.mark.parametrize("planner", CHEAP)
def test_an_episode_of_any_planner_begins_as_the_first_one(model, planner):
    policy = cheap(model, planner, replan_freq=2)
    _, state = policy.predict(OBS, deterministic=True)
    again, new_state = policy.predict(OBS[::-1].copy(), state, np.ones(4, bool), deterministic=True)
    fresh, fresh_state = policy.predict(OBS[::-1].copy(), deterministic=True)
    np.testing.assert_array_equal(again, fresh)
    assert new_state[-2].tolist() == fresh_state[-2].tolist() == [1] * 4


@pytest.mark.parametrize("planner", CHEAP)
def test_a_batch_of_any_planner_is_a_loop(model, planner):
    policy = cheap(model, planner)
    actions, state = policy.predict(OBS, deterministic=True)
    for i in range(4):
        alone, own = policy.predict(OBS[i], deterministic=True)
        assert_close([alone, *(part[0] for part in own)], [actions[i], *(part[i] for part in state)])


@pytest.mark.parametrize("planner", ["random_shooting", "cem", "icem", "mppi"])
def test_a_batch_of_discrete_plans_is_a_loop(planner):
    policy = cheap(random_model(spaces.Discrete(3)), planner)
    actions, _ = policy.predict(OBS, deterministic=True)
    for i in range(4):
        alone, _ = policy.predict(OBS[i], deterministic=True)
        assert alone.shape == () and alone == actions[i]
        assert policy.action_space.contains(alone)


@pytest.mark.parametrize("propagation", ["ts1", "tsinf", "expectation"])
@pytest.mark.parametrize("value_mode", ["expected", "pessimistic"])
def test_deterministic_plans_of_a_random_model_are_pure(model, propagation, value_mode):
    if (propagation, value_mode) == ("expectation", "pessimistic"):
        with pytest.raises(ValueError, match="compares particles"):
            cheap(model, "cem", propagation=propagation, value_mode=value_mode)
        return
    actions = []
    for seed in (0, 1):
        th.manual_seed(seed)
        np.random.seed(seed)
        policy = cheap(model, "cem", propagation=propagation, value_mode=value_mode)
        policy.predict(OBS[: 1 + seed])
        actions.append(policy.predict(OBS, deterministic=True)[0])
    np.testing.assert_array_equal(*actions)


def test_the_two_kinds_of_plan_do_not_share_their_samples(model):
    policy = MPCPolicy(model, **PLANNER, seed=0)
    assert (policy.predict(OBS)[0] != policy.predict(OBS, deterministic=True)[0]).any()
    same, other = (MPCPolicy(model, **PLANNER, seed=0) for _ in range(2))
    other.predict(OBS, deterministic=True)  # takes nothing from the stream of the others
    np.testing.assert_array_equal(same.predict(OBS)[0], other.predict(OBS)[0])


def test_an_observation_that_is_not_a_number_gives_an_action_all_the_same(policy):
    action, _ = policy.predict(np.full((1, 2), np.nan, np.float32), deterministic=True)
    assert policy.action_space.contains(action[0])


def test_a_planner_or_its_name(model, policy):
    own = MPCPolicy(model, CEM(horizon=5, population_size=30, n_elites=5, n_iterations=2))
    np.testing.assert_array_equal(own.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_a_continuous_planner_is_refused_for_discrete_actions():
    with pytest.raises(ValueError, match="CEM does not plan discrete actions"):
        MPCPolicy(random_model(spaces.Discrete(3)), CEM())


def test_numpy_numbers_are_numbers(model, tmp_path):
    path = tmp_path / "policy.zip"
    policy = MPCPolicy(model, **PLANNER, seed=np.int64(3), replan_freq=np.int64(2), kappa=np.float32(0.5))
    policy.save(path)
    loaded = MPCPolicy.load(path, device="cpu")
    assert (loaded.seed, loaded.replan_freq, loaded.objective.kappa) == (3, 2, 0.5)
    np.testing.assert_array_equal(policy.predict(OBS)[0], MPCPolicy(model, **PLANNER, seed=3, replan_freq=2).predict(OBS)[0])


def test_proposals_count_against_the_time_of_a_plan(clock, model):
    def slow(obs):
        clock.now += 0.2
        return obs[:, :1]

    kwargs = {"n_iterations": 100, "min_variance": 0.0}
    policy = MPCPolicy(model, "cem", 1, kwargs, actor=slow, max_plan_seconds=0.15)
    policy.predict(OBS)
    assert policy.last_plan.n_iterations == 1


def test_the_time_of_a_plan_is_limited(model):
    policy = MPCPolicy(model, "cem", 4, {"n_iterations": 10_000, "min_variance": 0.0}, max_plan_seconds=0.05)
    policy.predict(OBS)
    assert 1 <= policy.last_plan.n_iterations < 100


# ---------------------------------------------------------------- in environments


@pytest.mark.parametrize("kwargs", [{}, {"replan_freq": 3, "action_repeat": 2}], ids=["mpc", "open loop"])
def test_episodes_side_by_side_are_those_of_each_alone(model, kwargs):
    def make(length):
        return lambda: gym.make("Slider-v0", max_episode_steps=length)

    def act(lengths):
        env = DummyVecEnv([make(length) for length in lengths])
        env.seed(0)
        policy, taken = cheap(model, "icem", **kwargs), []
        obs, state, starts = env.reset(), None, np.ones(len(lengths), bool)
        # The same start for all: a VecEnv seeds each environment otherwise
        for each in env.envs:
            each.unwrapped.state = np.array([0.5, 0.0])
            each.unwrapped.np_random = np.random.default_rng(0)
        obs[:] = [0.5, 0.0]
        for _ in range(14):
            action, state = policy.predict(obs, state, starts, deterministic=True)
            obs, _, starts, _ = env.step(action)
            taken.append(action)
        return np.stack(taken, axis=1)

    together = act([5, 8])
    assert_close(together, [act([5])[0], act([8])[0]])
    assert (together[0] != together[1]).any()


def test_evaluation_under_vec_normalize(model):
    raw = make_vec_env("Slider-v0", n_envs=2, seed=0)
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=2, seed=0), training=False, norm_reward=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    expected = evaluate_policy(cheap(model, "cem"), raw, n_eval_episodes=2)
    assert evaluate_policy(cheap(model, "cem", vec_normalize=env), env, n_eval_episodes=2) == pytest.approx(expected, abs=0.01)


def test_a_live_environment_is_planned_in_and_left_alone():
    env = make_vec_env("Slider-v0", n_envs=2, seed=0)
    policy, obs = cheap(SimulatorModel(env), "cem"), env.reset()
    before = [each.unwrapped.state.copy() for each in env.envs]
    first, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], first)
    np.testing.assert_array_equal([each.unwrapped.state for each in env.envs], before)
    # Towards the middle, from either side
    assert (np.sign(first[:, 0]) == -np.sign(obs[:, 0])).all()


def out_of_phase(model_of, n_envs=3, **kwargs):
    """What is done in live environments whose episodes end after 3, 4, ... steps, (9, n_envs)."""
    env = DummyVecEnv([lambda i=i: gym.make("Slider-v0", max_episode_steps=3 + i) for i in range(n_envs)])
    env.seed(0)
    policy, obs, state, starts = cheap(model_of(env), "cem", seed=0, **kwargs), env.reset(), None, np.ones(n_envs, bool)
    taken = []
    for _ in range(9):
        action, state = policy.predict(obs, state, starts, deterministic=True)
        taken.append(action[:, 0])
        obs, _, starts, _ = env.step(action)
    return np.array(taken)


def state_vectors(env):
    return SimulatorModel(
        env, get_state=lambda env: env.state.copy(), set_state=lambda env, state: vars(env).update(state=state)
    )


@pytest.mark.parametrize("model_of", [SimulatorModel, state_vectors], ids=["copies", "state vectors"])
@pytest.mark.parametrize("actor", [None, lambda obs: -obs[:, :1].clamp(-1, 1)], ids=["samples", "actor"])
def test_live_environments_may_be_out_of_phase(model_of, actor):
    together = out_of_phase(model_of, replan_freq=2, actor=actor)
    # The first environment is seeded alike, and its plans are its own
    assert_close(together[:, 0], out_of_phase(model_of, n_envs=1, replan_freq=2, actor=actor)[:, 0])


@pytest.mark.parametrize("model_of", [SimulatorModel, state_vectors], ids=["copies", "state vectors"])
def test_a_plan_starts_once(model_of):
    env = make_vec_env("Slider-v0", n_envs=2, seed=0)
    model, starts = model_of(env), []
    plain = model.simulator.start
    model.simulator.start = lambda obs: (starts.append(len(obs)), plain(obs))[1]
    policy = cheap(model, "cem", actor=lambda obs: -obs[:, :1].clamp(-1, 1))
    action, _ = policy.predict(env.reset(), deterministic=True)
    assert starts == [2]
    assert all(policy.action_space.contains(each) for each in action)


# ---------------------------------------------------------------- what actors and critics are worth


def small(algorithm, env, **kwargs):
    return algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **kwargs)


def stretched(env_id):
    env = VecNormalize(make_vec_env(env_id, seed=0), norm_reward=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.5, -0.5]), np.array([4.0, 0.25])
    return env


@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC, CrossQ])
def test_the_value_is_the_lowest_critics_at_the_actors_action(algorithm):
    agent = small(algorithm, stretched("Slider-v0"), **OFF)
    value = value_function(agent)(th.as_tensor(OBS))
    obs = agent.env.normalize_obs(OBS)
    action = agent.policy.scale_action(agent.predict(obs, deterministic=True)[0])
    with th.no_grad():
        critics = agent.critic(th.as_tensor(obs), th.as_tensor(action))
    expected = critics.mean(dim=(1, 2)) if algorithm is TQC else th.cat(critics, dim=1).min(dim=1).values
    np.testing.assert_allclose(value.detach(), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_value_is_the_value_heads(algorithm):
    agent = small(algorithm, stretched("Slider-v0"))
    obs = agent.env.normalize_obs(OBS)
    expected = agent.policy.predict_values(th.as_tensor(obs)).detach()[:, 0]
    np.testing.assert_allclose(value_function(agent)(th.as_tensor(OBS)).detach(), expected, atol=1e-5)


def test_the_value_is_the_highest_q_value():
    agent = small(DQN, stretched("DiscreteSlider-v0"), **OFF)
    obs = agent.env.normalize_obs(OBS)
    expected = agent.q_net(th.as_tensor(obs)).detach().max(dim=1).values
    np.testing.assert_allclose(value_function(agent)(th.as_tensor(OBS)).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", [SAC, CrossQ])
def test_an_agent_fresh_from_training_is_not_trained_by_planning(algorithm):
    agent = small(algorithm, "Slider-v0", learning_starts=10, buffer_size=100).learn(30)
    agent.policy.set_training_mode(True)  # as the last update of learn() may leave it
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    obs = th.as_tensor(OBS)
    for function in (actor_function(agent), value_function(agent)):
        np.testing.assert_allclose(function(obs)[:1].detach(), function(obs[:1]).detach(), atol=1e-5)
    assert all(th.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize(
    ("algorithm", "env_id", "kwargs"),
    [(SAC, "Slider-v0", OFF), (TQC, "Slider-v0", OFF), (PPO, "Slider-v0", {}), (PPO, "DiscreteSlider-v0", {})],
)
def test_a_state_that_diverged_is_worth_nothing_and_disturbs_no_other(algorithm, env_id, kwargs, bad):
    agent, obs = small(algorithm, env_id, **kwargs), th.as_tensor(OBS).clone()
    expected, actions = value_function(agent)(obs).detach(), actor_function(agent)(obs).detach()
    obs[1, 0] = bad
    values = value_function(agent)(obs).detach()
    assert th.isnan(values).tolist() == [False, True, False, False]
    others = [0, 2, 3]
    np.testing.assert_allclose(values[others], expected[others], atol=1e-6)
    np.testing.assert_allclose(actor_function(agent)(obs).detach()[others], actions[others], atol=1e-6)
    assert th.isfinite(actor_function(agent)(obs)).all()


def test_plans_that_diverge_lose_against_those_that_do_not():
    simulator, agent = SimulatorModel("Pendulum-v1"), small(SAC, "Pendulum-v1", **OFF)
    step = simulator.simulator.step

    def breaks_when_pushed_right(rows, action):
        next_rows, reward, terminated = step(rows, action)
        return np.where(action > 0.5, np.nan, next_rows), reward, terminated

    simulator.simulator.step = breaks_when_pushed_right
    policy = cheap(simulator, "random_shooting", terminal_value=agent, actor=agent)
    action, _ = policy.predict(np.array([[-1.0, 0.0, 0.5]], np.float32), deterministic=True)
    assert action[0, 0] <= 0.5 and th.isfinite(policy.last_plan.value).all()


def test_a_good_actor_lends_its_plan(model):
    def push_right(obs, action, next_obs):
        return action[:, 0]

    kwargs = {"planner": "random_shooting", "horizon": 4, "planner_kwargs": {"population_size": 2}, "reward_fn": push_right}
    plain = MPCPolicy(model, **kwargs)
    helped = MPCPolicy(model, **kwargs, actor=lambda obs: th.ones(len(obs), 1), n_proposals=1)
    np.testing.assert_allclose(helped.predict(OBS, deterministic=True)[0], 2.0)
    assert (plain.predict(OBS, deterministic=True)[0] < 2.0).all()


def test_a_terminal_value_is_worked_towards(model):
    kwargs = {**PLANNER, "reward_fn": lambda obs, action, next_obs: 0.0 * obs[:, 0]}
    actions = [
        MPCPolicy(model, **kwargs, terminal_value=lambda obs, sign=sign: sign * obs[:, 1]).predict(OBS, deterministic=True)[0]
        for sign in (-1, 1)
    ]
    assert (actions[0] != actions[1]).any(axis=1).all()


@pytest.mark.parametrize("function_of", [actor_function, value_function])
def test_an_agent_is_asked_where_it_lives(function_of, monkeypatch):
    agent, seen = small(PPO, "Slider-v0"), []

    def answer(obs, deterministic=True):
        seen.append(obs.device.type)
        return th.zeros(len(obs), 1)  # from "meta" nothing comes back

    agent.policy.to("meta")
    monkeypatch.setattr(agent.policy, "_predict", answer)
    monkeypatch.setattr(agent.policy, "predict_values", answer)
    assert function_of(agent)(th.as_tensor(OBS)).device.type == "cpu"
    assert seen == ["meta"]


@pytest.mark.parametrize("name", ["actor", "terminal_value"])
def test_an_agent_of_another_task_is_refused(model, name):
    with pytest.raises(ValueError, match=rf"{name} was trained on Box.*\(3,\).*the model's observations are Box.*\(2,\)"):
        MPCPolicy(model, **{name: small(SAC, "Pendulum-v1", **OFF)})


@pytest.mark.parametrize("actor", [lambda obs: obs, lambda obs: obs[:, 0]], ids=["two", "none"])
def test_an_actor_of_other_actions_is_refused(model, actor):
    with pytest.raises(ValueError, match=r"actor must return a tensor of shape \(2, 1\).* got torch.float32 of shape \(2"):
        cheap(model, "cem", actor=actor)


def test_an_actor_may_be_more_precise_than_the_model(model):
    actor = cheap(model, "cem", actor=lambda obs: obs[:, :1])
    precise = cheap(model, "cem", actor=lambda obs: obs[:, :1].double())
    np.testing.assert_array_equal(precise.predict(OBS, deterministic=True)[0], actor.predict(OBS, deterministic=True)[0])


def test_agents_without_a_known_critic_are_refused():
    with pytest.raises(ValueError, match="ARSPolicy has no critic that is known here.*Pass a function"):
        value_function(ARS("MlpPolicy", "Slider-v0", device="cpu"))
    agent = RecurrentPPO("MlpLstmPolicy", "Slider-v0", n_steps=8, device="cpu")
    with pytest.raises(ValueError, match="no function of the observation alone"):
        value_function(agent)


# ---------------------------------------------------------------- more on files


class Own(CEM):
    """Its argument is stored nowhere, and no JSON could hold it."""

    def __init__(self, function):
        super().__init__(horizon=function(4), population_size=20, n_elites=4)


class ICEM(CEM):
    """Not the one of the library."""


@pytest.mark.parametrize("planner", [Own(lambda x: x + 1), ICEM(horizon=5)], ids=lambda planner: type(planner).__name__)
def test_a_planner_of_yours_is_asked_for(model, tmp_path, planner):
    policy, path = MPCPolicy(model, planner), tmp_path / "policy.zip"
    policy.save(path)
    with pytest.raises(ValueError, match=f"saved with a {type(planner).__name__} of yours: pass planner="):
        MPCPolicy.load(path)
    loaded = MPCPolicy.load(path, device="cpu", planner=planner)
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


@pytest.mark.parametrize("planner", CHEAP)
def test_every_argument_survives(model, tmp_path, planner):
    kwargs = {
        **{"action_repeat": 2, "replan_freq": 3, "discount": 0.9, "n_particles": 3, "propagation": "ts1", "kappa": 0.5},
        **{"value_mode": "optimistic", "uncertainty_penalty": 0.1, "n_proposals": 2, "proposal_noise": 0.3, "seed": 4},
    }
    policy = cheap(model, planner, **kwargs)
    policy.save(tmp_path / "policy.zip")
    loaded = MPCPolicy.load(tmp_path / "policy.zip", device="cpu")
    assert type(loaded.planner) is type(policy.planner) and vars(loaded.planner) == vars(policy.planner)
    for name, value in kwargs.items():
        assert getattr(loaded if hasattr(loaded, name) else loaded.objective, name) == value
    for deterministic in (True, False):
        np.testing.assert_array_equal(
            loaded.predict(OBS, deterministic=deterministic)[0],
            MPCPolicy(model, policy.planner, **kwargs).predict(OBS, deterministic=deterministic)[0],
        )


def test_a_model_with_functions_asks_for_them(tmp_path):
    functions = {"reward_fn": lambda o, a, n: n[:, 0], "termination_fn": lambda o, a, n: n[:, 0] > 1}
    policy, path = cheap(random_model(spaces.Discrete(3), **functions), "cem"), tmp_path / "policy.zip"
    policy.save(path)
    given = {f"model_{name}": function for name, function in functions.items()}
    for name in given:  # the message names the arguments of this load, not those of the ensemble's
        with pytest.raises(ValueError, match=rf"{path} was saved with \['{name}'\].*pass them again to load"):
            MPCPolicy.load(path, **{**given, name: None})
    assert MPCPolicy.load(path, model=policy.model).model is policy.model
    loaded = MPCPolicy.load(path, device="cpu", **given)
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_an_error_while_writing_leaves_the_old_file(policy, tmp_path, monkeypatch):
    path = tmp_path / "policy.zip"
    policy.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_no_policy_at_all(tmp_path, content):
    path = tmp_path / "policy.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or was not written by MPCPolicy.save"):
        MPCPolicy.load(path)
    with pytest.raises(FileNotFoundError):
        MPCPolicy.load(tmp_path / "nowhere.zip")
