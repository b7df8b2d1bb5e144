"""Planners on functions whose best plan is known."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_mbrl.planning import CATEGORICAL_PLANNERS, CEM, ICEM, MPPI, PLANNERS, GradientPlanner, RandomShooting, make_planner

HORIZON, ACTION_DIM = 5, 2
CONTINUOUS = sorted(PLANNERS)
DISCRETE = sorted(CATEGORICAL_PLANNERS)
SAMPLING = [name for name in CONTINUOUS if name != "gradient"]


def planner_of(name, discrete=False, **kwargs):
    return make_planner(name, discrete, **{"horizon": HORIZON, **kwargs})


def generators(*seeds):
    return [th.Generator().manual_seed(seed) for seed in seeds]


def near(target):
    """Minus the squared distance to a plan: (B, N, H, A) -> (B, N)."""
    return lambda actions: -((actions - target.unsqueeze(1)) ** 2).sum(dim=(2, 3))


def targets(n_envs, seed=0):
    return 1.6 * th.rand(n_envs, HORIZON, ACTION_DIM, generator=th.Generator().manual_seed(seed)) - 0.8


def plan_repeatedly(planner, score, n_envs, n_plans=6, action_dim=ACTION_DIM, seed=0):
    """Makes several plans of a static task, so the warm start is not shifted."""
    state = planner.initial_state(n_envs, action_dim)
    gens = generators(*range(seed, seed + n_envs))
    for _ in range(n_plans):
        plan = planner.plan(score, state, gens)
        state = plan.state
    return plan


@pytest.mark.parametrize(
    ("name", "tolerance"), [("cem", 0.05), ("icem", 0.35), ("mppi", 0.25), ("pddm", 0.5), ("gradient", 0.05)]
)
def test_finds_the_best_plan(name, tolerance):
    target = targets(3)
    kwargs = {"pddm": {"smoothing": 0.0}, "gradient": {"n_iterations": 60}, "icem": {"population_size": 200}}.get(name, {})
    plan = plan_repeatedly(planner_of(name, **kwargs), near(target), 3)
    assert (plan.actions - target).abs().max() < tolerance


def test_random_shooting_finds_a_good_plan_and_gets_no_worse():
    target = targets(2)
    planner, score = planner_of("random_shooting"), near(target)
    state, values = planner.initial_state(2, ACTION_DIM), []
    for seed in range(5):
        plan = planner.plan(score, state, generators(seed, seed + 100))
        state = plan.state
        values.append(plan.value)
    values = th.stack(values)
    assert (values[1:] >= values[:-1]).all()
    assert (values[-1] > near(target)(th.zeros(2, 1, HORIZON, ACTION_DIM))[:, 0]).all()


@pytest.mark.parametrize("name", DISCRETE)
def test_finds_the_best_discrete_plan(name):
    best = th.tensor([[0, 2, 1, 1, 0], [2, 2, 0, 1, 2]])
    target = th.nn.functional.one_hot(best, 3).float()
    plan = plan_repeatedly(planner_of(name, discrete=True), near(target), 2, action_dim=3)
    assert plan.actions.argmax(dim=-1).tolist() == best.tolist()
    assert set(plan.actions.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_plan_of_an_environment_does_not_depend_on_the_others(name):
    target = targets(4)
    planner = planner_of(name)
    together = plan_repeatedly(planner, near(target), 4, n_plans=3)
    for env in range(4):
        alone = plan_repeatedly(planner, near(target[env : env + 1]), 1, n_plans=3, seed=env)
        th.testing.assert_close(together.actions[env : env + 1], alone.actions)
        th.testing.assert_close(together.state.mean[env : env + 1], alone.state.mean)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_discrete_plan_of_an_environment_does_not_depend_on_the_others(name):
    target = th.rand(3, HORIZON, 4, generator=th.Generator().manual_seed(0))
    planner = planner_of(name, discrete=True)
    together = plan_repeatedly(planner, near(target), 3, n_plans=3, action_dim=4)
    for env in range(3):
        alone = plan_repeatedly(planner, near(target[env : env + 1]), 1, n_plans=3, action_dim=4, seed=env)
        assert together.actions[env].equal(alone.actions[0])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_equal_seeds_equal_plans(name):
    target = targets(2)
    first, second, other = (plan_repeatedly(planner_of(name), near(target), 2, n_plans=1, seed=seed) for seed in (3, 3, 4))
    assert first.actions.equal(second.actions)
    assert not first.actions.equal(other.actions)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_global_stream_is_not_used(name):
    before = th.get_rng_state()
    plan_repeatedly(planner_of(name), near(targets(2)), 2, n_plans=2)
    assert th.get_rng_state().equal(before)


# ---------------------------------------------------------------- diverged candidates


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_that_diverged_never_wins(name, bad):
    """Returns are negative, so an evaluation that counts NaN as 0 would prefer the diverged half of the plans."""

    def score(actions):
        values = -10 - (actions[:, :, 0, 0] + 0.5) ** 2
        return th.where(actions[:, :, 0, 0] > 0.05, bad, values)

    plan = plan_repeatedly(planner_of(name), score, 2)
    assert (plan.actions[:, 0, 0] <= 0.05).all()
    assert (plan.value < -9).all() and (plan.value > -11).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_if_all_candidates_diverge_the_old_plan_is_kept(name):
    planner = planner_of(name)
    state = plan_repeatedly(planner, near(targets(2)), 2).state
    plan = planner.plan(lambda actions: actions.sum(dim=(2, 3)) * math.nan, state, generators(0, 1))
    assert th.isfinite(plan.actions).all()
    th.testing.assert_close(plan.actions, state.mean, atol=0.04 if name == "gradient" else 1e-6, rtol=0)


def test_a_diverged_environment_does_not_disturb_another():
    target = targets(2)

    def score(actions):
        return near(target)(actions) * th.tensor([[math.nan], [1.0]])

    together = plan_repeatedly(planner_of("cem"), score, 2)
    alone = plan_repeatedly(planner_of("cem"), near(target[1:]), 1, seed=1)
    th.testing.assert_close(together.actions[1:], alone.actions)


# ---------------------------------------------------------------- bounds and distributions


@given(
    mean=st.floats(-1, 1),
    std=st.floats(0.01, 3),
    name=st.sampled_from(["cem", "icem", "mppi", "random_shooting", "pddm"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_candidates_are_actions(mean, std, name, seed):
    seen = []

    def score(actions):
        seen.append(actions)
        return actions.sum(dim=(2, 3))

    planner = planner_of(name, population_size=50, **({"n_elites": 5} if name in ("cem", "icem") else {}))
    planner.init_std = std
    state = planner.initial_state(1, ACTION_DIM)
    plan = planner.plan(score, state._replace(mean=th.full_like(state.mean, mean)), generators(seed))
    assert all((actions.abs() <= 1).all() for actions in seen)
    assert (plan.actions.abs() <= 1).all()


def test_cem_is_the_published_update():
    """Compares with a plain loop: the mean and variance of the elites, plus a tenth of the old ones."""
    target = targets(1)
    seen = []

    def score(actions):
        seen.append(actions)
        return near(target)(actions)

    planner = CEM(HORIZON, population_size=50, n_elites=5, n_iterations=1, momentum=0.1, init_std=0.5)
    plan = planner.plan(score, planner.initial_state(1, ACTION_DIM), generators(0))
    order = sorted(range(50), key=lambda i: -float(near(target)(seen[0])[0, i]))[:5]
    elites = seen[0][0, order]
    th.testing.assert_close(plan.actions[0], 0.9 * elites.mean(dim=0))
    th.testing.assert_close(plan.std[0] ** 2, 0.1 * 0.25 + 0.9 * elites.var(dim=0, correction=0))


def test_cem_stops_where_the_variance_is_small():
    target = targets(1)
    plan = plan_repeatedly(CEM(HORIZON, n_iterations=50), near(target), 1, n_plans=1)
    assert plan.n_iterations < 20
    assert (plan.std**2).max() <= 1e-3


@pytest.mark.parametrize("n_elites", [None, 7])
def test_mppi_is_the_weighted_mean(n_elites):
    target = targets(1)
    seen = []

    def score(actions):
        seen.append(actions)
        return near(target)(actions)

    planner = MPPI(HORIZON, 40, 1, temperature=0.7, n_elites=n_elites, momentum=0.2, std_bounds=(0.05, 2.0))
    plan = planner.plan(score, planner.initial_state(1, ACTION_DIM), generators(0))
    returns = near(target)(seen[0])[0]
    chosen = returns.argsort(descending=True)[: n_elites or 40]
    weights = th.softmax(returns[chosen] / 0.7, dim=0)[:, None, None]
    mean = (weights * seen[0][0, chosen]).sum(dim=0)
    std = ((weights * (seen[0][0, chosen] - mean) ** 2).sum(dim=0)).sqrt().clamp(0.05, 2.0)
    th.testing.assert_close(plan.actions[0], 0.8 * mean)
    th.testing.assert_close(plan.std[0], std)


def test_mppi_does_not_overflow():
    plan = plan_repeatedly(planner_of("mppi", temperature=1e-8), lambda actions: 1e30 * near(targets(1))(actions), 1)
    assert th.isfinite(plan.actions).all()


def test_the_standard_deviation_of_mppi_matters():
    def spread(std):
        seen = []

        def score(actions):
            seen.append(actions)
            return actions.sum(dim=(2, 3))

        plan_repeatedly(planner_of("mppi", init_std=std, n_iterations=1), score, 1, n_plans=1)
        return seen[0].std().item()

    assert spread(0.1) == pytest.approx(0.1, rel=0.05)
    assert spread(0.3) == pytest.approx(0.3, rel=0.05)


def test_icem_keeps_its_elites_and_shrinks():
    sizes, kept = [], []

    def score(actions):
        sizes.append(actions.shape[1])
        kept.append(actions[:, 40:43] if len(sizes) == 1 else None)
        return near(targets(1))(actions)

    planner = ICEM(HORIZON, population_size=40, n_elites=10, n_iterations=3)
    state = planner.initial_state(1, ACTION_DIM)
    plan = planner.plan(score, state, generators(0))
    # The population, three kept elites, and the mean in the last iteration
    assert sizes == [43, 35, 29]
    assert plan.state.elites.shape == (1, 3, HORIZON, ACTION_DIM)
    assert plan.actions.equal(plan.state.elites[:, 0])
    shifted = planner.shift(plan.state, plan.actions[:, :1])
    sizes.clear()
    planner.plan(score, shifted, generators(1))
    th.testing.assert_close(kept[-3][:, :, :-1], plan.state.elites[:, :, 1:])
    assert not kept[-3][:, :, -1].equal(plan.state.elites[:, :, -1])


def test_gradient_planner_uses_the_gradient():
    """The optimum is hard to find by sampling, but the gradient points to it."""
    target = targets(1)
    sampled = plan_repeatedly(planner_of("random_shooting", population_size=50), near(target), 1, n_plans=1)
    climbed = plan_repeatedly(GradientPlanner(HORIZON, n_iterations=50, n_starts=2), near(target), 1, n_plans=1)
    assert climbed.value > -0.05 > sampled.value


# ---------------------------------------------------------------- warm start


@pytest.mark.parametrize("name", CONTINUOUS)
def test_shifting(name):
    planner = planner_of(name)
    state = plan_repeatedly(planner, near(targets(2)), 2).state
    executed = th.full((2, 2, ACTION_DIM), 0.3)
    shifted = planner.shift(state, executed)
    th.testing.assert_close(shifted.mean[:, :-2], state.mean[:, 2:])
    filling = th.zeros(2, 2, ACTION_DIM) if name == "cem" else state.mean[:, -1:].expand(-1, 2, -1)
    th.testing.assert_close(shifted.mean[:, -2:], filling)
    assert shifted.previous.equal(executed[:, -1])
    assert shifted.started.all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_reset_forgets_one_environment(name):
    planner = planner_of(name)
    state = plan_repeatedly(planner, near(targets(3)), 3).state
    reset = planner.reset(state, th.tensor([False, True, False]))
    fresh = planner.initial_state(1, ACTION_DIM)
    for new, old, initial in zip(reset, state, fresh, strict=True):
        assert new[[0, 2]].equal(old[[0, 2]])
        assert new[1:2].equal(initial)
    target = targets(1)
    th.testing.assert_close(
        planner.plan(near(target), planner.reset(state, th.ones(3, dtype=th.bool))._replace(), generators(5, 6, 7)).actions[
            :1
        ],
        planner.plan(near(target), fresh, generators(5)).actions,
    )


def test_a_warm_start_helps():
    target = targets(1)
    planner = planner_of("icem")
    state = plan_repeatedly(planner, near(target), 1).state
    cold = planner.plan(near(target), planner.initial_state(1, ACTION_DIM), generators(9))
    assert planner.plan(near(target), state, generators(9)).value > cold.value


@pytest.mark.parametrize("name", SAMPLING)
def test_a_proposal_is_considered(name):
    """The best plan is a narrow spike at the corners of the box, which no sample comes near."""
    spike = th.ones(1, HORIZON, ACTION_DIM)

    def score(actions):
        return (((actions - spike.unsqueeze(1)) ** 2).sum(dim=(2, 3)) < 0.1).float()

    planner = planner_of(name)
    state = planner.initial_state(1, ACTION_DIM)
    assert planner.plan(score, state, generators(0)).value == 0
    assert planner.plan(score, state, generators(0), proposals=0.99 * spike.unsqueeze(1)).value == 1


def test_a_proposal_is_improved_by_the_gradient():
    """The objective has two hills; every start except the proposal climbs the lower one."""

    def score(actions):
        distance = ((actions - 0.9) ** 2).sum(dim=(2, 3))
        return 5 * th.exp(-5 * distance) - ((actions + 0.5) ** 2).sum(dim=(2, 3)) / 100

    planner = GradientPlanner(HORIZON, n_starts=1)
    state = planner.initial_state(1, ACTION_DIM)
    proposal = th.full((1, 1, HORIZON, ACTION_DIM), 0.8)
    assert planner.plan(score, state).value < 0
    assert planner.plan(score, state, proposals=proposal).value > score(proposal).item() + 1


def test_gradient_planner_refuses_an_objective_without_gradient():
    planner = GradientPlanner(HORIZON)
    with pytest.raises(ValueError, match="GradientPlanner needs a model through which gradients flow"):
        planner.plan(lambda actions: (actions > 0).float().sum(dim=(2, 3)), planner.initial_state(1, ACTION_DIM))


# ---------------------------------------------------------------- smoothing, time


@pytest.mark.parametrize("name", SAMPLING)
def test_smoothing_follows_the_recursion(name):
    """A planner with smoothing has the candidates of one without, filtered over time from the last action on."""
    # The noise is so small that nothing is clipped, which would happen after the filter
    small = {} if name == "random_shooting" else {"init_std": 0.15}

    def first_candidates(smoothing, started):
        seen = []

        def score(actions):
            seen.append(actions)
            return actions.sum(dim=(2, 3))

        planner = planner_of(name, smoothing=smoothing, n_iterations=2, **small)
        state = planner.initial_state(1, ACTION_DIM)
        state = state._replace(previous=th.full_like(state.previous, 0.5), started=th.tensor([started]))
        planner.plan(score, state, generators(0))
        return seen[0][0, :40]

    rough, smooth = first_candidates(0.0, True), first_candidates(0.4, True)
    before = th.full((40, ACTION_DIM), 0.5)
    for t in range(HORIZON):
        before = 0.6 * rough[:, t] + 0.4 * before
        th.testing.assert_close(smooth[:, t], before)
    # Nothing was executed before an episode: it begins with 0, whatever was executed in another one
    th.testing.assert_close(first_candidates(0.4, False)[:, 0], 0.6 * rough[:, 0])


def pddm_in_numpy(mean, noise, values, previous, beta, sigma, kappa):
    """PDDM's plan, (H, A), of N candidates with noise (N, H, A): filtered, clipped, and weighted by their values."""
    candidates = np.empty_like(noise)
    for t in range(len(mean)):
        before = previous if t == 0 else candidates[:, t - 1]
        candidates[:, t] = beta * (mean[t] + sigma * noise[:, t]) + (1 - beta) * before
    candidates = candidates.clip(-1, 1)
    weights = np.exp(kappa * (values(candidates) - values(candidates).max()))
    return candidates, (weights[:, None, None] * candidates).sum(axis=0) / weights.sum()


@pytest.mark.parametrize(("started", "previous"), [(False, 0.0), (True, 0.9)])
def test_pddm_is_the_published_planner(started, previous):
    """Compares with plain NumPy: samples are filtered before they are clipped, from the last executed action or 0."""
    seen, target = [], targets(1)

    def score(actions):
        seen.append(actions)
        return near(target)(actions)

    planner = planner_of("pddm")
    state = planner.initial_state(1, ACTION_DIM)
    state = state._replace(mean=0.5 * target, previous=th.full_like(state.previous, 0.9), started=th.tensor([started]))
    plan = planner.plan(score, state, generators(0))
    noise = th.randn(700, HORIZON, ACTION_DIM, generator=generators(0)[0]).double().numpy()
    candidates, mean = pddm_in_numpy(
        (0.5 * target[0]).double().numpy(),
        noise,
        lambda plans: -((plans - target[0].double().numpy()) ** 2).sum(axis=(1, 2)),
        previous,
        beta=0.7,
        sigma=0.9,
        kappa=10,
    )
    np.testing.assert_allclose(seen[0][0], candidates, atol=1e-5)
    np.testing.assert_allclose(plan.actions[0], mean, atol=1e-5)


def test_many_actions_of_pddm_lie_on_the_bounds():
    """The share equals that of the published code at the start of an episode; clipping before filtering would give 5.8 %."""
    seen = []
    planner = make_planner("pddm")
    planner.plan(lambda plans: (seen.append(plans), plans.sum(dim=(2, 3)))[1], planner.initial_state(1, 24), generators(0))
    assert (seen[0].abs() > 0.95).float().mean().item() == pytest.approx(0.148, abs=0.005)


def test_where_all_plans_are_equal_icem_keeps_its_mean():
    """Any sample has the same value, but is less smooth than the mean."""
    planner = planner_of("icem")
    state = plan_repeatedly(planner, near(targets(2)), 2).state
    plan = planner.plan(lambda actions: actions.sum(dim=(2, 3)) * 0, state, generators(0, 1))
    single = planner_of("icem", n_iterations=1).plan(lambda actions: actions.sum(dim=(2, 3)) * 0, state, generators(0, 1))
    th.testing.assert_close(single.actions, state.mean)
    assert (plan.actions - state.mean).abs().mean() < 0.5 * planner.init_std


@pytest.mark.parametrize("name", [*CONTINUOUS])
def test_the_time_limit_is_kept(clock, name):
    def score(actions):
        clock.now += 0.02
        return near(targets(1))(actions)

    planner = planner_of(name, n_iterations=1000)
    state = planner.initial_state(1, ACTION_DIM)
    plan = planner.plan(score, state, generators(0), max_seconds=0.2)
    assert 1 < plan.n_iterations < 10 and clock.now < 0.21
    assert planner.plan(score, state, generators(0), max_seconds=1e-6).n_iterations == 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEM(horizon=0), "horizon must be an integer from 1"),
        (lambda: CEM(population_size=10, n_elites=11), "n_elites must lie between 1 and population_size=10"),
        (lambda: CEM(momentum=1.0), "momentum must be a number in [0, 1)"),
        (lambda: ICEM(noise_beta=100), "noise_beta must be a number in [0, 10]"),
        (lambda: make_planner("icem", discrete=True, noise_beta=-1), "noise_beta must be a number in [0, 10]"),
        (lambda: MPPI(temperature=0), "temperature must be a number above 0"),
        (lambda: MPPI(std_bounds=(2, 1)), "std_bounds must be None or"),
        (lambda: RandomShooting(population_size=0), "population_size must be an integer from 1"),
        (lambda: GradientPlanner(n_starts=0), "n_starts must be an integer from 1"),
        (lambda: make_planner("cma-es"), "planner must be one of"),
        (lambda: make_planner("gradient", discrete=True), "for discrete actions"),
        (lambda: make_planner("cem", elites=3), "planner 'cem' does not accept"),
        (lambda: make_planner("mppi", discrete=True, smoothing=0.5), "Discrete actions cannot be smoothed"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=r"(?s)" + message.replace("[", r"\[").replace(")", r"\)").replace("(", r"\(")):
        make()


def test_a_time_limit_of_zero():
    planner = CEM(HORIZON)
    with pytest.raises(ValueError, match="max_seconds must be a number above 0, or None"):
        planner.plan(near(targets(1)), planner.initial_state(1, ACTION_DIM), max_seconds=0)
