"""Returns of plans, compared with plain loops over a linear model."""

import math
from itertools import product

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.planning import objective
from sb3_mbrl.planning.objective import ModelObjective
from sb3_mbrl.tasks.termination_rules import Bound, TerminatesOutside

OBS_SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION_SPACE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32))


class Line:
    """
    x and y follow linear dynamics, in which each member has its own drift. States carry a clock that is not observed.

    :param elites: best first
    :param wall: the task ends beyond this x
    :param ends_at: the task ends in this step, counted from 0
    :param spoil: ``(step, member, field, value)``: states whose first action is positive get this value there
    """

    observation_space, action_space, action_dim = OBS_SPACE, ACTION_SPACE, 2
    device = th.device("cpu")

    def __init__(self, elites=(2, 0, 1), wall=math.inf, ends_at=None, spoil=None):
        self.elites = th.tensor(elites)
        self.wall, self.ends_at, self.spoil = wall, ends_at, spoil
        self.calls = []

    def start(self, obs):
        return F.pad(obs, (0, 1))

    def observe(self, states):
        return states[:, :2]

    def unscale_action(self, action):
        return th.tensor([-2.0, 0.0]) + 0.5 * (action + 1) * th.tensor([8.0, 1.0])

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        self.calls.append({"states": len(obs), "members": members, "deterministic": deterministic, "uncertainty": uncertainty})
        (x, y, clock), (a, b) = obs.unbind(1), action.unbind(1)
        drift = 0.3 * members if isinstance(members, th.Tensor) else 0.0
        fields = {
            "next_obs": th.stack([0.9 * x + a + drift, x - 0.5 * y + b, clock + 1], dim=1),
            "reward": x + 2 * y - a + 3 * b,
        }
        if self.spoil is not None:
            step, member, field, value = self.spoil
            hit = (clock == step) & (members == member) & (a > 0)
            fields[field][hit] = value
        terminated = (fields["next_obs"][:, 0] > self.wall) | (clock == (-1 if self.ends_at is None else self.ends_at))
        std = th.stack([x.abs(), y.abs(), th.full_like(x, 1000.0)], dim=1) if uncertainty else None
        return ModelStep(fields["next_obs"], fields["reward"], terminated, std, std)


def ensemble(probabilistic=True, **kwargs):
    """Four random members; the three elites are not the first three."""
    small = {"ensemble_size": 4, "n_elites": 3, "net_arch": (8, 8), "device": "cpu", "generator": seeded()}
    model = ProbabilisticEnsemble(OBS_SPACE, ACTION_SPACE, **small, probabilistic=probabilistic, **kwargs)
    model.holdout_mse.copy_(th.tensor([0.3, 0.9, 0.1, 0.2]))
    return model


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


def generators(n):
    return [seeded(10 + env) for env in range(n)]


def observations(n_envs, seed=1):
    return th.randn(n_envs, 2, generator=seeded(seed))


def plans(n_envs, n, horizon, seed=2):
    return 2 * th.rand(n_envs, n, horizon, 2, generator=seeded(seed)) - 1


def x_plus_one(obs):
    return obs[:, 0] + 1


# ---------------------------------------------------------------- against a plain loop


def expected_return(model, obs, plan, member, discount, action_repeat, uncertainty_penalty, terminal):
    """Computes one particle of one sequence step by step."""
    (x, y), total, t = obs, 0.0, 0
    for a, b in plan:
        for _ in range(action_repeat):
            reward = x + 2 * y - a + 3 * b - uncertainty_penalty * math.hypot(x, y)
            x, y = 0.9 * x + a + 0.3 * member, x - 0.5 * y + b
            total += discount**t * reward
            t += 1
            if x > model.wall:
                return total
    return total + discount**t * (x + 1) * terminal


@given(
    n_envs=st.integers(1, 3),
    n=st.integers(1, 4),
    horizon=st.integers(1, 4),
    n_particles=st.integers(1, 5),
    action_repeat=st.integers(1, 3),
    discount=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    wall=st.sampled_from([math.inf, 1.0]),
    uncertainty_penalty=st.sampled_from([0.0, 2.0, -0.5]),
    terminal=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_returns_equal_those_of_a_plain_loop(
    n_envs, n, horizon, n_particles, action_repeat, discount, wall, uncertainty_penalty, terminal, seed
):
    model, obs, actions = Line(wall=wall), observations(n_envs, seed), plans(n_envs, n, horizon, seed)
    scored = ModelObjective(
        model,
        discount,
        n_particles,
        action_repeat=action_repeat,
        uncertainty_penalty=uncertainty_penalty,
        terminal_value=x_plus_one if terminal else None,
    ).score(obs)(actions)
    assert scored.shape == (n_envs, n)
    for env, sequence in product(range(n_envs), range(n)):
        plan = actions[env, sequence].tolist()
        settings_ = (discount, action_repeat, uncertainty_penalty, terminal)
        returns = [expected_return(model, obs[env].tolist(), plan, (2, 0, 1)[p % 3], *settings_) for p in range(n_particles)]
        assert scored[env, sequence].item() == pytest.approx(np.mean(returns), rel=1e-5, abs=1e-5)


@given(kappa=st.sampled_from([0.0, 1.0, 2.5]), n_particles=st.integers(2, 6))
def test_pessimism_and_optimism_move_the_mean_by_kappa_standard_deviations(kappa, n_particles):
    model, obs, actions = Line(), observations(2), plans(2, 3, 4)
    scored = {
        mode: ModelObjective(model, 0.9, n_particles, value_mode=mode, kappa=kappa).score(obs)(actions)
        for mode in ("expected", "pessimistic", "optimistic")
    }
    for env, sequence in product(range(2), range(3)):
        start, plan = obs[env].tolist(), actions[env, sequence].tolist()
        returns = [expected_return(model, start, plan, (2, 0, 1)[p % 3], 0.9, 1, 0.0, False) for p in range(n_particles)]
        for mode, sign in (("expected", 0), ("pessimistic", -1), ("optimistic", 1)):
            expected = np.mean(returns) + sign * kappa * np.std(returns)
            assert scored[mode][env, sequence].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_model_is_stepped_once_for_each_step_of_all_sequences_and_particles():
    model = Line()
    ModelObjective(model, n_particles=5, action_repeat=2).score(observations(2))(plans(2, 3, 4))
    assert [call["states"] for call in model.calls] == [2 * 3 * 5] * (4 * 2)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_means_and_uncertainty_are_computed_only_if_needed(deterministic, penalty):
    model = Line()
    ModelObjective(model, deterministic=deterministic, uncertainty_penalty=penalty).score(observations(1))(plans(1, 2, 3))
    assert {call["deterministic"] for call in model.calls} == {deterministic}
    assert {call["uncertainty"] for call in model.calls} == {penalty != 0}


# ---------------------------------------------------------------- rewards and the terminal value


def test_rewards_and_the_terminal_value_stop_at_termination():
    obs, actions = observations(2), plans(2, 3, 5)
    ended = ModelObjective(Line(ends_at=1), 0.9, terminal_value=x_plus_one).score(obs)(actions)
    th.testing.assert_close(ended, ModelObjective(Line(), 0.9).score(obs)(actions[:, :, :2]))


@pytest.mark.parametrize(("discount", "horizon", "action_repeat"), [(0.9, 4, 1), (0.9, 3, 2), (1.0, 5, 1), (0.0, 1, 1)])
def test_the_terminal_value_is_discounted_by_every_model_step(discount, horizon, action_repeat):
    def nothing(obs, action, next_obs):
        return th.zeros(len(obs))

    scored = ModelObjective(
        Line(),
        discount,
        reward_fn=nothing,
        terminal_value=lambda obs: th.full((len(obs),), 10.0),
        action_repeat=action_repeat,
    ).score(observations(1))(plans(1, 2, horizon))
    th.testing.assert_close(scored, th.full((1, 2), 10 * discount ** (horizon * action_repeat)))


def test_the_terminal_value_is_given_what_the_environment_would_observe():
    seen = []

    def value(obs):
        seen.append(obs)
        return obs[:, 0]

    obs, actions = observations(1), plans(1, 1, 1)
    ModelObjective(Line(elites=(0,)), terminal_value=value).score(obs)(actions)
    after = obs @ th.tensor([[0.9, 1.0], [0.0, -0.5]]) + actions[0, 0]
    th.testing.assert_close(seen[-1], after)


def test_a_reward_function_takes_the_place_of_the_models_and_is_given_actions_in_the_environments_scale():
    seen = []

    def reward(obs, action, next_obs):
        seen.append((obs, action, next_obs))
        return action[:, 0] + 100 * obs[:, 1] + 1000 * next_obs[:, 0]

    model, obs, actions = Line(elites=(0,)), observations(2), plans(2, 3, 1)
    scored = ModelObjective(model, reward_fn=reward).score(obs)(actions)
    before, action, after = seen[-1]
    th.testing.assert_close(before, obs.repeat_interleave(3, dim=0))
    th.testing.assert_close(action, -2 + th.tensor([8.0, 1.0]) * (actions.reshape(6, 2) + 1) / 2 + th.tensor([0.0, 2.0]))
    th.testing.assert_close(after[:, 0], 0.9 * before[:, 0] + actions[:, :, 0, 0].flatten())
    th.testing.assert_close(scored.flatten(), action[:, 0] + 100 * before[:, 1] + 1000 * after[:, 0])


def test_the_penalty_is_the_norm_of_the_elites_disagreement_about_the_next_observation():
    model, obs, action = ensemble(), observations(3), plans(3, 1, 1)
    score = {
        penalty: ModelObjective(model, deterministic=True, uncertainty_penalty=penalty).score(obs)(action)[:, 0]
        for penalty in (0.0, 2.0)
    }
    means = model.predict(obs, action[:, 0, 0]).mean[:, :, :-1]
    disagreement = means.std(dim=0, correction=0).norm(dim=1)
    th.testing.assert_close(score[2.0], score[0.0] - 2 * disagreement)


def test_a_penalty_needs_a_model_that_tells_its_uncertainty():
    model = Line()
    step = model.step
    model.step = lambda *args, **kwargs: step(*args, **kwargs)._replace(epistemic_std=None)
    with pytest.raises(ValueError, match="returns no uncertainty.*uncertainty_penalty at 0"):
        ModelObjective(model, uncertainty_penalty=1.0).score(observations(1))(plans(1, 2, 3))


# ---------------------------------------------------------------- divergence


def spoiled(spoil, **kwargs):
    """Returns of a sequence with the spoiled value and of one without."""
    actions = th.full((1, 2, 4, 2), 0.5)
    actions[:, 1] = -0.5
    model = Line(spoil=spoil, **kwargs)
    return ModelObjective(model, n_particles=3, terminal_value=x_plus_one).score(th.zeros(1, 2))(actions)[0]


@pytest.mark.parametrize("field", ["next_obs", "reward"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_particle_that_diverges_makes_its_sequence_nan(field, value, step):
    hit, spared = spoiled((step, 1, field, value))
    assert hit.isnan()
    assert spared.equal(spoiled(None)[1])


@pytest.mark.parametrize("field", ["next_obs", "reward"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_diverges_and_thereby_ends_is_still_nan(field, value):
    assert spoiled((1, 1, field, value), ends_at=1)[0].isnan()


@pytest.mark.parametrize("field", ["next_obs", "reward"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [2, 3])
def test_predictions_after_a_termination_may_diverge(field, value, step):
    assert spoiled((step, 1, field, value), ends_at=1).equal(spoiled(None, ends_at=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_terminal_value_that_is_not_finite_counts_only_for_unterminated_sequences(bad):
    def value(obs):
        return th.where(obs.abs().amax(dim=1) < 4, bad, 0.0)  # a function that is bad everywhere would be refused

    obs, actions = th.zeros(1, 2), plans(1, 2, 3)
    assert ModelObjective(Line(), terminal_value=value).score(obs)(actions).isnan().all()
    assert ModelObjective(Line(ends_at=2), terminal_value=value).score(obs)(actions).isfinite().all()


def test_a_learned_model_that_diverges_is_nan_although_divergence_ends_the_task():
    model = ensemble()
    with th.no_grad():
        model.biases[-1].fill_(3e38)
        model.target_normalizer.std.fill_(10.0)
    assert ModelObjective(model).score(observations(1))(plans(1, 2, 2)).isnan().all()


# ---------------------------------------------------------------- propagation


@pytest.mark.parametrize("n_particles", [1, 2, 5])
def test_with_ts_infinity_a_particle_keeps_its_elite(n_particles):
    model = Line(elites=(2, 0, 1))
    ModelObjective(model, n_particles=n_particles, propagation="tsinf").score(observations(2))(plans(2, 3, 4))
    for call in model.calls:
        of_an_environment = [member for member in sorted([2, 0, 1, 2, 0][:n_particles]) for _ in range(3)]
        assert call["members"].tolist() == of_an_environment * 2


@pytest.mark.parametrize(("propagation", "members"), [("ts1", "random"), ("expectation", "expectation")])
def test_by_default_the_model_propagates_its_members(propagation, members):
    model = Line()
    ModelObjective(model, propagation=propagation).score(observations(2))(plans(2, 3, 4))
    assert [call["members"] for call in model.calls] == [members] * 4


def test_elites_that_a_fit_chose_anew_are_used():
    model = Line(elites=(2, 0))
    score = ModelObjective(model, n_particles=2).score(observations(1))
    model.elites = th.tensor([1, 2])
    score(plans(1, 1, 1))
    assert model.calls[0]["members"].tolist() == [1, 2]


# ---------------------------------------------------------------- batches, randomness

PROPAGATION = [("ts1", 4), ("tsinf", 4), ("expectation", 1)]


@pytest.mark.parametrize(("propagation", "n_particles"), PROPAGATION)
# of 64 states at once: all, two environments, or 16 of 40 candidates
@pytest.mark.parametrize(("at_once", "n"), [(16_384, 6), (64, 6), (64, 40), (64, 80)])
def test_a_batch_of_environments_equals_a_loop_over_them(monkeypatch, propagation, n_particles, at_once, n):
    monkeypatch.setattr(objective, "STATES_AT_ONCE", at_once)
    model = ensemble(termination_fn=TerminatesOutside((Bound(0, 1, -2.0, 2.0),)))
    score = ModelObjective(model, 0.9, n_particles, propagation, terminal_value=x_plus_one).score
    obs, actions = observations(5), plans(5, n, 3)
    together = score(obs, generators(5))(actions)
    for env, generator in enumerate(generators(5)):
        alone = score(obs[env : env + 1], [generator])(actions[env : env + 1])
        th.testing.assert_close(together[env : env + 1], alone)
    # The one generator of an only environment may come alone
    th.testing.assert_close(together[:1], score(obs[:1], generators(1)[0])(actions[:1]))


@pytest.mark.parametrize("n", [1, 6, 40])
def test_splitting_bounds_the_number_of_states_and_changes_no_return(monkeypatch, n):
    model, obs, actions = Line(wall=1.0), observations(5), plans(5, n, 3)
    score = ModelObjective(model, 0.9, 4, terminal_value=x_plus_one).score(obs)
    whole = score(actions)
    model.calls.clear()
    monkeypatch.setattr(objective, "STATES_AT_ONCE", 64)
    assert score(actions).equal(whole)
    assert max(call["states"] for call in model.calls) <= 64
    assert sum(call["states"] for call in model.calls) == 3 * 5 * n * 4


def test_pieces_of_whole_environments_draw_the_noise_of_one_batch(monkeypatch):
    score = ModelObjective(ensemble(), 0.9, 4, "ts1").score
    whole = score(observations(5), generators(5))(plans(5, 6, 3))
    monkeypatch.setattr(objective, "STATES_AT_ONCE", 64)
    th.testing.assert_close(score(observations(5), generators(5))(plans(5, 6, 3)), whole)


def test_more_particles_than_states_at_once_are_split(monkeypatch):
    score = ModelObjective(Line(), n_particles=10).score(observations(2))
    whole = score(plans(2, 3, 2))
    monkeypatch.setattr(objective, "STATES_AT_ONCE", 4)
    th.testing.assert_close(score(plans(2, 3, 2)), whole)


@pytest.mark.parametrize(("propagation", "n_particles"), PROPAGATION)
def test_equal_seeds_give_equal_scores(propagation, n_particles):
    score = ModelObjective(ensemble(), 0.9, n_particles, propagation).score
    first, second, other = (score(observations(2), seeded(seed))(plans(2, 3, 4)) for seed in (3, 3, 4))
    assert first.equal(second)
    assert first.equal(other) == (propagation == "expectation")


def test_means_need_no_randomness():
    score = ModelObjective(ensemble(), 0.9, 3, deterministic=True).score
    assert score(observations(2), seeded(3))(plans(2, 3, 4)).equal(score(observations(2), seeded(4))(plans(2, 3, 4)))


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_the_global_stream_is_used_only_without_generators(propagation):
    score = ModelObjective(ensemble(), 0.9, 3, propagation).score
    before = th.get_rng_state()
    score(observations(2), generators(2))(plans(2, 3, 4))
    assert th.get_rng_state().equal(before)
    score(observations(2))(plans(2, 3, 4))
    assert not th.get_rng_state().equal(before)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(("propagation", "n_particles"), PROPAGATION)
@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_the_gradient_of_a_score_matches_finite_differences(propagation, n_particles, penalty):
    score = ModelObjective(
        ensemble(), 0.9, n_particles, propagation, uncertainty_penalty=penalty, terminal_value=x_plus_one
    ).score
    actions, direction = plans(2, 3, 4).requires_grad_(), th.randn(2, 3, 4, 2, generator=seeded(5))

    def at(distance):
        return score(observations(2), generators(2))(actions + distance * direction)

    (gradient,) = th.autograd.grad(at(0).sum(), actions)
    assert (gradient != 0).all()
    slope = (at(1e-2) - at(-1e-2)) / 2e-2
    th.testing.assert_close((gradient * direction).sum(dim=(2, 3)), slope, rtol=0.02, atol=2e-3)


def test_actions_after_a_termination_have_no_gradient():
    actions = plans(2, 3, 4).requires_grad_()
    score = ModelObjective(Line(ends_at=1), 0.9, terminal_value=x_plus_one).score(observations(2))
    (gradient,) = th.autograd.grad(score(actions).sum(), actions)
    assert (gradient[:, :, :2] != 0).all()
    assert (gradient[:, :, 2:] == 0).all()


def test_values_after_a_termination_do_not_affect_the_gradient():
    model = ensemble(termination_fn=TerminatesOutside((Bound(0, 1, -2.0, 2.0),)))
    with th.no_grad():
        for weight in model.weights:
            weight.mul_(10)
    actions = plans(1, 4, 30).requires_grad_()
    score = ModelObjective(model).score(observations(1), seeded())(actions)
    assert score.isfinite().all()
    (gradient,) = th.autograd.grad(score.sum(), actions)
    assert gradient.isfinite().all()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"propagation": "ts2"}, "propagation must be one of .*'tsinf'.*, got 'ts2'"),
        ({"value_mode": "hopeful"}, "value_mode must be one of .*'pessimistic'.*, got 'hopeful'"),
        ({"discount": 1.01}, r"discount must be a number in \[0, 1\]"),
        ({"propagation": "expectation", "n_particles": 2}, "has no noise: n_particles must be 1, got 2"),
        ({"value_mode": "pessimistic"}, "'pessimistic' needs .* n_particles must be at least 2"),
        ({"value_mode": "optimistic", "propagation": "expectation"}, "'optimistic' needs .* n_particles must be at least 2"),
    ],
)
def test_invalid_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ModelObjective(Line(), **kwargs)


@pytest.mark.parametrize("name", ["reward_fn", "terminal_value"])
def test_a_column_of_values_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must return a float tensor of shape \(2,\).* of shape \(2, 1\)"):
        ModelObjective(ensemble(), **{name: lambda obs, *_: obs[:, :1]})
    objective = ModelObjective(ensemble(), **{name: lambda obs, *_: obs[:, :1] if len(obs) == 6 else obs[:, 0]})
    with pytest.raises(ValueError, match=rf"{name} must return a float tensor of shape \(6,\)"):
        objective.score(th.zeros(2, 2))(th.zeros(2, 3, 4, 2))


def test_the_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="one for each of the 2 environments; got 3"):
        ModelObjective(ensemble()).score(th.zeros(2, 2), [th.Generator()] * 3)
