"""A planner as an SB3 policy."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MPCPolicy
from sb3_mbrl.common.policies import actor_function, value_function
from sb3_mbrl.dynamics import ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.planning import CEM, CategoricalCEM

PLANNER = {"planner": "cem", "horizon": 5, "planner_kwargs": {"population_size": 30, "n_elites": 5, "n_iterations": 2}}
OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def model(trained):
    return trained.dynamics


@pytest.fixture
def policy(model):
    return MPCPolicy(model, **PLANNER)


def calls(policy, name="score"):
    """How often the policy has planned since."""
    counted, plain = [], policy.objective.score

    def score(*args):
        counted.append(len(args[0]))
        return plain(*args)

    policy.objective.score = score
    return counted


def random_model(action_space):
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return ProbabilisticEnsemble(
        space, action_space, 2, 2, [8], generator=th.Generator().manual_seed(0), device="cpu", normalize_targets=False
    )


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
        ({"n_proposals": 0}, "n_proposals must be at least 1"),
        ({"max_plan_seconds": 0}, "max_plan_seconds must be positive"),
        ({"value_mode": "brave"}, "value_mode must be one of"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MPCPolicy(model, **kwargs)


# ---------------------------------------------------------------- files


def test_a_saved_policy_acts_alike(policy, tmp_path):
    policy.save(tmp_path / "policy.zip")
    loaded = MPCPolicy.load(tmp_path / "policy.zip", device="cpu")
    np.testing.assert_array_equal(loaded.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])
    assert vars(loaded.planner) == vars(policy.planner)


def test_what_a_file_cannot_hold_is_asked_for(model, tmp_path):
    path = tmp_path / "policy.zip"
    MPCPolicy(model, **PLANNER, reward_fn=lambda obs, action, next_obs: obs[:, 0]).save(path)
    with pytest.raises(ValueError, match=r"saved with \['reward_fn'\]"):
        MPCPolicy.load(path)
    MPCPolicy.load(path, reward_fn=lambda obs, action, next_obs: obs[:, 0])
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
