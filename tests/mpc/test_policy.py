"""MPCPolicy with different models, planners, functions and agents."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl import MBPO, MPCPolicy
from sb3_mbrl.dynamics import ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.planning import CEM, CategoricalCEM
from tests.mpc.cheap import OBS, PLANNER, cheap, random_model


def test_the_model_of_an_algorithm_is_used(trained, policy):
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


def test_normalized_observations_give_the_same_plans(model, policy):
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=4, seed=0))
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    normalized = MPCPolicy(model, **PLANNER, vec_normalize=env)
    np.testing.assert_allclose(
        normalized.predict(env.normalize_obs(OBS), deterministic=True)[0],
        policy.predict(OBS, deterministic=True)[0],
        atol=1e-3,
    )


def test_evaluation_under_vec_normalize(model):
    raw = make_vec_env("Slider-v0", n_envs=2, seed=0)
    env = VecNormalize(make_vec_env("Slider-v0", n_envs=2, seed=0), training=False, norm_reward=False)
    env.obs_rms.mean, env.obs_rms.var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    expected = evaluate_policy(cheap(model, "cem"), raw, n_eval_episodes=2)
    assert evaluate_policy(cheap(model, "cem", vec_normalize=env), env, n_eval_episodes=2) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: SAC("MlpPolicy", "Pendulum-v1", buffer_size=10), "SAC has no learned dynamics .* MBPO, PETS and Dyna have"),
        (lambda: gym.make("Pendulum-v1"), r"A model of the dynamics is needed, got an object of type .*SimulatorModel\(env\)"),
        (lambda: ProbabilisticEnsemble, "got the class ProbabilisticEnsemble"),
        (lambda: None, "got an object of type NoneType"),
    ],
)
def test_anything_that_is_not_a_model_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        MPCPolicy(model())


def test_a_planner_or_its_name(model, policy):
    own = MPCPolicy(model, CEM(horizon=5, population_size=30, n_elites=5, n_iterations=2))
    np.testing.assert_array_equal(own.predict(OBS, deterministic=True)[0], policy.predict(OBS, deterministic=True)[0])


def test_a_continuous_planner_is_refused_for_discrete_actions():
    with pytest.raises(ValueError, match="CEM does not plan discrete actions"):
        MPCPolicy(random_model(spaces.Discrete(3)), CEM())


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


def test_a_reward_can_be_swapped():
    def turn_left(obs, action, next_obs):
        return next_obs[:, 2]

    def turn_right(obs, action, next_obs):
        return -next_obs[:, 2]

    hanging, simulator = np.array([[-1.0, 0.0, 0.0]], np.float32), SimulatorModel("Pendulum-v1")
    left = MPCPolicy(simulator, **PLANNER, reward_fn=turn_left).predict(hanging, deterministic=True)[0]
    right = MPCPolicy(simulator, **PLANNER, reward_fn=turn_right).predict(hanging, deterministic=True)[0]
    assert left > 1 and right < -1


def test_a_termination_can_be_swapped(model):
    """Each step has reward 1, and going left terminates, so the best plan goes right."""

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


def test_a_termination_that_is_not_boolean_is_refused(model):
    with pytest.raises(ValueError, match="termination_fn must return a bool tensor"):
        MPCPolicy(model, **PLANNER, termination_fn=lambda obs, action, next_obs: obs[:, 0])


def test_the_proposal_of_a_good_actor_is_used(model):
    def push_right(obs, action, next_obs):
        return action[:, 0]

    kwargs = {"planner": "random_shooting", "horizon": 4, "planner_kwargs": {"population_size": 2}, "reward_fn": push_right}
    plain = MPCPolicy(model, **kwargs)
    helped = MPCPolicy(model, **kwargs, actor=lambda obs: th.ones(len(obs), 1), n_proposals=1)
    np.testing.assert_allclose(helped.predict(OBS, deterministic=True)[0], 2.0)
    assert (plain.predict(OBS, deterministic=True)[0] < 2.0).all()


def test_plans_maximise_the_terminal_value(model):
    kwargs = {**PLANNER, "reward_fn": lambda obs, action, next_obs: 0.0 * obs[:, 0]}
    actions = [
        MPCPolicy(model, **kwargs, terminal_value=lambda obs, sign=sign: sign * obs[:, 1]).predict(OBS, deterministic=True)[0]
        for sign in (-1, 1)
    ]
    assert (actions[0] != actions[1]).any(axis=1).all()


@pytest.mark.parametrize("actor", [lambda obs: obs, lambda obs: obs[:, 0]], ids=["two", "none"])
def test_an_actor_of_other_actions_is_refused(model, actor):
    with pytest.raises(ValueError, match=r"actor must return a tensor of shape \(2, 1\).* got torch.float32 of shape \(2"):
        cheap(model, "cem", actor=actor)


def test_an_actor_may_be_more_precise_than_the_model(model):
    actor = cheap(model, "cem", actor=lambda obs: obs[:, :1])
    precise = cheap(model, "cem", actor=lambda obs: obs[:, :1].double())
    np.testing.assert_array_equal(precise.predict(OBS, deterministic=True)[0], actor.predict(OBS, deterministic=True)[0])
