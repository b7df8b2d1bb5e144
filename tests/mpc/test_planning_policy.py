"""How planning policies act, and what their state contains."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_mbrl import LearnedModelEnv, LearnedModelVecEnv, MPCPolicy
from sb3_mbrl.dynamics import SimulatorModel
from tests.mpc.cheap import CHEAP, OBS, PLANNER, assert_close, cheap, random_model


def calls(policy):
    """Counts how often the policy plans from now on."""
    counted, plain = [], policy.objective.score_states

    def score(*args):
        counted.append(len(args[0]))
        return plain(*args)

    policy.objective.score_states = score
    return counted


def test_actions_are_in_the_scale_of_the_environment(policy):
    actions, state = policy.predict(OBS)
    assert actions.shape == (4, 1) and actions.dtype == np.float32
    assert all(policy.action_space.contains(action) for action in actions)
    action, _ = policy.predict(OBS[0])
    assert action.shape == (1,)
    assert all(isinstance(part, np.ndarray) and len(part) == 4 for part in state)
    assert pickle.loads(pickle.dumps(state))[0].shape == state[0].shape


def test_discrete_actions_are_those_of_the_environment():
    policy = MPCPolicy(random_model(spaces.Discrete(3, start=5)), **PLANNER)
    actions, _ = policy.predict(OBS)
    assert actions.shape == (4,)
    assert all(policy.action_space.contains(action) for action in actions)


def test_discrete_actions_in_imagined_environments_count_as_real_ones_or_are_refused():
    model = random_model(spaces.Discrete(3, start=5))
    policy = MPCPolicy(model, **PLANNER)
    env = LearnedModelEnv("DiscreteSlider-v0", model, max_episode_steps=3)
    assert np.isfinite(evaluate_policy(policy, env, 1, warn=False)[0])
    with pytest.raises(ValueError, match="counts them from 0 to 2"):
        evaluate_policy(policy, LearnedModelVecEnv(model, 2, OBS, max_episode_steps=3), 1, warn=False)


def test_a_deterministic_action_depends_only_on_model_observation_and_state(model, policy):
    first, state = policy.predict(OBS, deterministic=True)
    policy.predict(OBS[::-1].copy())
    th.manual_seed(5)
    again, _ = MPCPolicy(model, **PLANNER).predict(OBS, deterministic=True)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(
        policy.predict(OBS, state, deterministic=True)[0], policy.predict(OBS, state, deterministic=True)[0]
    )


def test_equal_seeds_equal_actions(model):
    def act(seed):
        policy = MPCPolicy(model, **PLANNER, seed=seed)
        return np.stack([policy.predict(OBS)[0] for _ in range(2)])

    np.testing.assert_array_equal(act(1), act(1))
    assert (act(1) != act(2)).any()
    assert (act(1)[0] != act(1)[1]).any()


def test_the_two_kinds_of_plan_do_not_share_their_samples(model):
    policy = MPCPolicy(model, **PLANNER, seed=0)
    assert (policy.predict(OBS)[0] != policy.predict(OBS, deterministic=True)[0]).any()
    same, other = (MPCPolicy(model, **PLANNER, seed=0) for _ in range(2))
    other.predict(OBS, deterministic=True)  # takes nothing from the stream of the others
    np.testing.assert_array_equal(same.predict(OBS)[0], other.predict(OBS)[0])


def test_global_streams_are_not_used(policy):
    before = th.get_rng_state(), np.random.get_state()[1].copy()
    policy.predict(OBS)
    policy.predict(OBS, deterministic=True)
    assert th.get_rng_state().equal(before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_the_start_of_an_episode_resets_only_its_own_row(policy):
    _, state = policy.predict(OBS, deterministic=True)
    starts = np.array([False, True, False, False])
    actions, new_state = policy.predict(OBS, state, starts, deterministic=True)
    fresh, _ = policy.predict(OBS[1:2], deterministic=True)
    np.testing.assert_allclose(actions[1], fresh[0], atol=1e-4)
    on, _ = policy.predict(OBS, state, deterministic=True)
    np.testing.assert_allclose(actions[[0, 2, 3]], on[[0, 2, 3]], atol=1e-4)
    assert new_state[-1].tolist() == [2, 1, 2, 2]


@pytest.mark.parametrize("planner", CHEAP)
def test_an_episode_of_any_planner_begins_as_the_first_one(model, planner):
    policy = cheap(model, planner, replan_freq=2)
    _, state = policy.predict(OBS, deterministic=True)
    again, new_state = policy.predict(OBS[::-1].copy(), state, np.ones(4, bool), deterministic=True)
    fresh, fresh_state = policy.predict(OBS[::-1].copy(), deterministic=True)
    np.testing.assert_array_equal(again, fresh)
    assert new_state[-2].tolist() == fresh_state[-2].tolist() == [1] * 4


@pytest.mark.parametrize("planner", CHEAP)
def test_a_batch_of_any_planner_equals_a_loop(model, planner):
    policy = cheap(model, planner)
    _, state = policy.predict(OBS, deterministic=True)
    actions, state = policy.predict(OBS + 0.1, state, deterministic=True)
    for i in range(4):
        _, own = policy.predict(OBS[i], deterministic=True)
        alone, own = policy.predict(OBS[i] + 0.1, own, deterministic=True)
        assert_close([alone, *(part[0] for part in own)], [actions[i], *(part[i] for part in state)])


@pytest.mark.parametrize("planner", ["random_shooting", "cem", "icem", "mppi"])
def test_a_batch_of_discrete_plans_equals_a_loop(planner):
    policy = cheap(random_model(spaces.Discrete(3)), planner)
    actions, _ = policy.predict(OBS, deterministic=True)
    for i in range(4):
        alone, _ = policy.predict(OBS[i], deterministic=True)
        assert alone.shape == () and alone == actions[i]
        assert policy.action_space.contains(alone)


@pytest.mark.parametrize(
    ("propagation", "value_mode"),
    [
        ("ts1", "expected"),
        ("ts1", "pessimistic"),
        ("tsinf", "expected"),
        ("tsinf", "pessimistic"),
        ("expectation", "expected"),
    ],
)
def test_deterministic_plans_of_a_random_model_are_pure(model, propagation, value_mode):
    actions = []
    for seed in (0, 1):
        th.manual_seed(seed)
        np.random.seed(seed)
        policy = cheap(model, "cem", propagation=propagation, value_mode=value_mode)
        policy.predict(OBS[: 1 + seed])
        actions.append(policy.predict(OBS, deterministic=True)[0])
    np.testing.assert_array_equal(*actions)


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


def test_proposals_count_against_the_time_of_a_plan(clock, model):
    def slow(obs):
        clock.now += 0.2
        return obs[:, :1]

    kwargs = {"n_iterations": 100, "min_variance": 0.0}
    policy = MPCPolicy(model, "cem", 1, kwargs, actor=slow, max_plan_seconds=0.15)
    policy.predict(OBS)
    assert policy.last_plan.n_iterations == 1


def test_the_time_of_a_plan_is_limited(clock, model):
    def slow(obs, action, next_obs):
        clock.now += 0.1
        return obs[:, 0]

    kwargs = {"n_iterations": 100, "min_variance": 0.0}
    policy = MPCPolicy(model, "cem", 1, kwargs, reward_fn=slow, max_plan_seconds=0.35)
    policy.predict(OBS)
    assert policy.last_plan.n_iterations == 3


def test_an_observation_of_nan_still_gives_an_action(policy):
    action, _ = policy.predict(np.full((1, 2), np.nan, np.float32), deterministic=True)
    assert policy.action_space.contains(action[0])


def test_observations_that_do_not_fit(policy):
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.predict(np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="got a tuple"):
        policy.predict((OBS, {}))
    _, state = policy.predict(OBS)
    with pytest.raises(ValueError, match="state is of 4 environments, but the observation is of 2"):
        policy.predict(OBS[:2], state)
    with pytest.raises(ValueError, match="episode_start has entries for 3 environments"):
        policy.predict(OBS, state, np.zeros(3, bool))


@pytest.mark.parametrize("changes", [{"horizon": 6}, {"horizon": 4, "replan_freq": 2}, {"planner": "icem"}], ids=str)
def test_the_state_of_another_policy_is_refused(model, policy, changes):
    _, state = MPCPolicy(model, **{**PLANNER, **changes}).predict(OBS)
    with pytest.raises(
        ValueError, match=r"shape \(4, .*expected \(4, .*another horizon, planner or action space.*None to plan from scratch"
    ):
        policy.predict(OBS, state)


def test_the_state_of_other_actions_or_of_no_planner_is_refused(model, policy):
    _, state = MPCPolicy(random_model(spaces.Box(-1, 1, (3,))), **PLANNER).predict(OBS)
    with pytest.raises(ValueError, match=r"The state's mean has shape \(4, 5, 3\), expected \(4, 5, 1\)"):
        policy.predict(OBS, state)
    with pytest.raises(ValueError, match="state has 2 parts, expected 7"):
        policy.predict(OBS, state[:2])


def test_a_model_that_was_not_fitted_is_refused_until_it_is():
    model = random_model(spaces.Box(-1, 1, (1,)), fitted=False)
    policy = MPCPolicy(model, **PLANNER)
    for act in (policy.predict, lambda obs: policy._predict(th.as_tensor(obs))):
        with pytest.raises(ValueError, match="has not been fitted to data, so its predictions are noise"):
            act(OBS)
    model.holdout_mse.zero_()
    assert policy.predict(OBS)[0].shape == (4, 1)


@pytest.mark.parametrize("kwargs", [{}, {"replan_freq": 3, "action_repeat": 2}], ids=["mpc", "open loop"])
def test_parallel_episodes_equal_single_ones(model, kwargs):
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


def test_evaluation_of_several_environments(policy):
    mean, _ = evaluate_policy(policy, make_vec_env("Slider-v0", n_envs=3, seed=0), n_eval_episodes=3)
    assert np.isfinite(mean)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "InvertedPendulum-v5"])
def test_plans_in_a_simulator(env_id):
    env = gym.make(env_id, max_episode_steps=20)
    policy = MPCPolicy(SimulatorModel(env_id), **{**PLANNER, "horizon": 15})
    episode_rewards, lengths = evaluate_policy(policy, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)
    assert lengths == [20, 20]
    assert np.isfinite(episode_rewards).all()


def test_planning_in_a_live_environment_does_not_change_it():
    env = make_vec_env("Slider-v0", n_envs=2, seed=0)
    policy, obs = cheap(SimulatorModel(env), "cem"), env.reset()
    before = [each.unwrapped.state.copy() for each in env.envs]
    first, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], first)
    np.testing.assert_array_equal([each.unwrapped.state for each in env.envs], before)
    # Towards the middle, from either side
    assert (np.sign(first[:, 0]) == -np.sign(obs[:, 0])).all()


def out_of_phase(model_of, n_envs=3, **kwargs):
    """The actions in live environments whose episodes end after 3, 4, ... steps, (9, n_envs)."""
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
def test_all_environments_start_once_per_plan(model_of):
    env = make_vec_env("Slider-v0", n_envs=2, seed=0)
    model, starts = model_of(env), []
    plain = model.simulator.start
    model.simulator.start = lambda obs: (starts.append(len(obs)), plain(obs))[1]
    policy = cheap(model, "cem", actor=lambda obs: -obs[:, :1].clamp(-1, 1))
    action, _ = policy.predict(env.reset(), deterministic=True)
    assert starts == [2]
    assert all(policy.action_space.contains(each) for each in action)
