import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_mbrl import MBPO
from sb3_mbrl.dynamics import ProbabilisticEnsemble, SimulatorModel
from sb3_mbrl.envs import Imagination, ImaginationRules, LearnedModelEnv, LearnedModelVecEnv

START = np.zeros((1, 2), np.float32)


def imagine(model, n=4, max_episode_steps=10, start_states=START, observation_bounds=None, **rules):
    branches = Imagination(
        model, n, start_states, ImaginationRules(max_episode_steps, **{"stagger": False, **rules}), observation_bounds
    )
    branches.generator.manual_seed(0)
    branches.reset()
    return branches


def push(n, size=1.0):
    return th.full((n, 1), size)


# -- Stepping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagation", ["ts1", "tsinf", "expectation"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_batch_equals_the_model_stepped_by_hand(drift_model, propagation, deterministic):
    starts = th.rand(8, 2, generator=th.Generator().manual_seed(1)) - 0.5
    branches = imagine(
        drift_model, 8, 10, lambda n, generator: starts[:n], propagation=propagation, deterministic=deterministic
    )
    members = {"ts1": "random", "expectation": "expectation"}.get(propagation, branches.members.clone())
    generator = th.Generator()
    generator.set_state(branches.generator.get_state())
    obs = starts
    for _ in range(3):
        imagined = branches.step(push(8, 0.1))
        with th.no_grad():
            step = drift_model.step(obs, push(8, 0.1), generator, members, deterministic)
        obs = step.next_obs.clamp(-1, 1)
        assert th.equal(imagined.obs, obs)
        assert th.equal(imagined.reward, step.reward)
        assert th.equal(imagined.terminated, step.terminated)


def test_the_true_simulator_gives_the_real_trajectory():
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    branches = imagine(SimulatorModel(env), 1, 200, obs[None])
    for t in range(200):
        action = np.array([np.sin(0.1 * t)], np.float32)
        real_obs, real_reward, _, real_truncated, _ = env.step(2 * action)
        step = branches.step(th.as_tensor(action)[None])
        np.testing.assert_allclose(step.obs[0], real_obs, atol=1e-4)
        assert step.reward.item() == pytest.approx(real_reward, abs=1e-4)
        assert step.truncated.item() == real_truncated


def test_ts1_draws_and_expectation_averages(scripted):
    for propagation, members in (("ts1", "random"), ("expectation", "expectation")):
        model = scripted()
        imagine(model, propagation=propagation).step(push(4))
        assert model.seen_members == [members]


def test_a_branch_keeps_its_elite_until_it_is_reset(scripted):
    model = scripted()
    branches = imagine(model, 64, propagation="tsinf")
    branches.step(push(64, 0.1))
    branches.step(push(64, 0.1))
    first, second = model.seen_members
    assert th.equal(first, second)
    assert set(first.tolist()) == set(model.elites.tolist())

    branches.reset(th.arange(32))
    branches.step(push(64, 0.1))
    third = model.seen_members[-1]
    assert th.equal(third[32:], first[32:])
    assert not th.equal(third[:32], first[:32])


def test_each_branch_is_truncated_by_its_own_clock(scripted):
    branches = imagine(scripted(), 2, max_episode_steps=3)
    branches.step(push(2, 0.1))
    branches.reset(th.tensor([1]))
    assert branches.step(push(2, 0.1)).truncated.tolist() == [False, False]
    assert branches.step(push(2, 0.1)).truncated.tolist() == [True, False]


def test_staggered_branches_end_one_after_the_other(scripted):
    branches = imagine(scripted(), 5, max_episode_steps=5, stagger=True)
    ends = []
    for _ in range(10):
        step = branches.step(push(5, 0.1))
        ends.append(step.truncated.nonzero().flatten().tolist())
        branches.reset(step.truncated.nonzero().flatten())
    assert ends == [[4], [3], [2], [1], [0]] * 2


def test_nothing_is_drawn_from_the_global_stream(drift_model):
    state = th.get_rng_state()
    branches = imagine(drift_model, 4, propagation="tsinf", start_states=np.zeros((3, 2)))
    branches.step(push(4))
    branches.reset(th.tensor([0]))
    assert th.equal(state, th.get_rng_state())


# -- Uncertainty -------------------------------------------------------------------------------------------------------


def rewards_of(model, **rules):
    starts = th.linspace(-0.5, 0.5, 8).unsqueeze(1).expand(-1, 2)
    branches = imagine(model, 8, 10, lambda n, generator: starts[:n], deterministic=True, propagation="expectation", **rules)
    return branches.step(push(8)).reward


def test_pessimistic_expected_optimistic(drift_model):
    pessimistic, expected, optimistic = (
        rewards_of(drift_model, value_mode=mode, reward_kappa=2.0) for mode in ("pessimistic", "expected", "optimistic")
    )
    assert (pessimistic < expected).all() and (expected < optimistic).all()


def test_value_mode_adds_standard_deviations_of_the_reward(scripted):
    model = scripted(reward_std=0.3)
    assert imagine(model, value_mode="pessimistic", reward_kappa=2.0).step(push(4)).reward.tolist() == pytest.approx([0.4] * 4)


def test_the_penalty_is_the_norm_of_the_disagreement(scripted):
    reward = imagine(scripted(disagreement=0.2), uncertainty_penalty=3.0).step(push(4)).reward
    assert reward.tolist() == pytest.approx([0.4] * 4)


def test_a_branch_halts_where_the_model_is_uncertain(scripted):
    unknown = imagine(scripted(disagreement=0.2), max_disagreement=0.1, halt_reward=-7.0).step(push(4))
    assert unknown.terminated.all() and (unknown.reward == -7.0).all()
    known = imagine(scripted(disagreement=0.2), max_disagreement=0.3, halt_reward=-7.0).step(push(4))
    assert not known.terminated.any() and (known.reward == 1.0).all()


def test_all_members_are_evaluated_only_where_uncertainty_is_asked_for(scripted, monkeypatch):
    asked = []
    step = scripted.step
    monkeypatch.setattr(scripted, "step", lambda self, *args: asked.append(args[-1]) or step(self, *args))
    imagine(scripted()).step(push(4))
    imagine(scripted(), uncertainty_penalty=0.1).step(push(4))
    assert asked == [False, True]


# -- What must not win -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_ends_the_branch_in_its_last_state(scripted, broken):
    branches = imagine(scripted(broken_above=1.5, broken=broken), 2)
    branches.step(push(2))
    step = branches.step(th.tensor([[1.0], [0.0]]))
    assert step.truncated.tolist() == [True, False]
    assert step.terminated.tolist() == [False, False]
    assert step.reward.tolist() == [0.0, 1.0]
    assert step.obs[0].tolist() == [1.0, 0.0]
    assert branches.step(push(2, 0.1)).obs.isfinite().all()


def test_disagreement_that_is_not_finite_ends_the_branch(scripted):
    step = imagine(scripted(disagreement=np.nan), uncertainty_penalty=1.0).step(push(4))
    assert step.truncated.all() and (step.reward == 0).all()


def test_predictions_are_clipped_and_continue_from_the_clipped_state(scripted):
    branches = imagine(scripted(), 2, observation_bounds=([-20.0, -20.0], [1.5, 20.0]))
    for _ in range(3):
        step = branches.step(push(2))
    assert step.obs[:, 0].tolist() == [1.5, 1.5]
    assert branches.step(push(2, -1.0)).obs[:, 0].tolist() == [0.5, 0.5]
    assert branches.low.tolist() == [-10.0, -10.0]  # of the space


def test_bounds_of_float64_hold_after_rounding(scripted):
    model = scripted()
    model.observation_space = space = gym.spaces.Box(-0.1, 0.1, (2,), np.float64)
    for size in (1.0, -1.0):
        obs = imagine(model, 1).step(push(1, size)).obs
        assert space.contains(obs[0].numpy().astype(np.float64))


# -- Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules, message",
    [
        ({"propagation": "ts2"}, "propagation must be one of"),
        ({"value_mode": "hopeful"}, "value_mode must be one of"),
        ({"uncertainty_penalty": -1.0}, "uncertainty_penalty must be a number of at least 0"),
        ({"max_disagreement": 1.0}, "max_disagreement and halt_reward belong together"),
        ({"halt_reward": 1.0}, "max_disagreement and halt_reward belong together"),
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        ImaginationRules(**{"max_episode_steps": 5, **rules})


@pytest.mark.parametrize(
    "start_states, message",
    [
        (np.zeros((3, 5)), "shape"),
        (np.zeros(2), "shape"),
        (np.zeros((0, 2)), "shape"),
        (np.full((1, 2), np.nan), "finite"),
        (np.array([[0.0, 0.0], [0.0, 11.0]]), r"start_states\[1, 1\] = 11 .*bounded by \[-10, 10\]"),
        (lambda n, generator: th.zeros(n + 1, 2), r"shape \(2, 2\)"),
    ],
)
def test_bad_start_states_are_named(scripted, start_states, message):
    with pytest.raises(ValueError, match=message):
        imagine(scripted(), start_states=start_states)


@pytest.mark.parametrize("bounds", [([0.0], [1.0]), ([1.0, 1.0], [0.0, 0.0]), ([np.nan, 0.0], [1.0, 1.0])])
def test_bad_bounds_are_named(scripted, bounds):
    with pytest.raises(ValueError, match="observation_bounds"):
        imagine(scripted(), observation_bounds=bounds)


def test_a_model_that_is_not_fitted_is_refused(drift_model):
    model = ProbabilisticEnsemble(drift_model.observation_space, drift_model.action_space, device="cpu")
    with pytest.raises(ValueError, match="not been fitted"):
        imagine(model)


def test_imagined_environments_can_use_the_model_of_an_algorithm():
    model = MBPO("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs={"net_arch": [8]}, device="cpu")
    starts = np.array([[1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="not been fitted"):
        LearnedModelVecEnv(model, 2, starts, 5)
    model.dynamics.holdout_mse.zero_()
    env, venv = LearnedModelEnv("Pendulum-v1", model, starts), LearnedModelVecEnv(model, 2, starts, 5)
    assert env.imagination.dynamics is venv.imagination.dynamics is model.dynamics
    with pytest.raises(ValueError, match="A model of the dynamics is needed"):
        LearnedModelVecEnv(gym.make("Pendulum-v1"), 2, starts, 5)


def test_pessimism_about_a_known_reward_is_refused(scripted):
    model = scripted()
    model.reward_fn = lambda obs, action, next_obs: obs[:, 0]
    with pytest.raises(ValueError, match="uncertainty_penalty"):
        imagine(model, value_mode="pessimistic")


def test_a_simulator_that_starts_from_live_environments_is_refused(drift):
    env = drift()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="cannot start from arbitrary observations"):
        imagine(SimulatorModel(env))


def test_a_step_needs_a_reset(scripted):
    branches = Imagination(scripted(), 2, START, ImaginationRules(5))
    with pytest.raises(gym.error.ResetNeeded):
        branches.step(push(2))
