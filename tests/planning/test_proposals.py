"""Proposals of a policy in a linear model."""

import numpy as np
import pytest
import torch as th
import torch.nn.functional as F
from gymnasium import spaces

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.planning.proposals import policy_proposals

BOX, DISCRETE = spaces.Box(-4.0, 4.0, (2,), np.float32), spaces.Discrete(3, start=5)
OBS = th.tensor([[0.5, -0.3], [0.1, 0.9], [-1.0, 0.2]])


class Line:
    """
    Linear dynamics. States carry a clock that is not observed.

    :param action_space: Box or Discrete
    :param noise: standard deviation of a step, drawn from the generator
    :param diverges_at: from this step on states are NaN
    """

    device, elites = th.device("cpu"), th.zeros(1, dtype=th.long)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space=BOX, noise=0.0, diverges_at=None):
        self.action_space, self.noise, self.diverges_at = action_space, noise, diverges_at
        self.action_dim = 2 if action_space is BOX else 3
        self.taken = []

    def start(self, obs):
        return F.pad(obs, (0, 1))

    def observe(self, states):
        assert states.shape[1] == 3
        return states[:, :2]

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        self.taken.append(action)
        push = action[:, :2] - action.mean(dim=1, keepdim=True)
        if self.noise > 0:
            sources = generator if isinstance(generator, list) else [generator]
            push = push + self.noise * th.cat([th.randn(len(obs) // len(sources), 2, generator=g) for g in sources])
        states = th.cat([0.9 * obs[:, :2] + 0.5 * push, obs[:, 2:] + 1], dim=1)
        if self.diverges_at is not None:
            states = states.masked_fill(states[:, 2:] > self.diverges_at, th.nan)
        return ModelStep(states, states[:, 0], th.zeros(len(states), dtype=th.bool))


def actor(obs):
    return th.tanh(th.stack([obs[:, 1], -2 * obs[:, 0]], dim=1))


def discrete_actor(obs):
    return F.one_hot((obs[:, 0] > 0).long() + (obs[:, 1] > 0).long(), 3).float()


def actor_for(space):
    return actor if space is BOX else discrete_actor


def generators(n, seed=0):
    return [th.Generator().manual_seed(seed + i) for i in range(n)]


def propose(model, n=4, horizon=5, noise=0.3, action_repeat=1, obs=OBS, generator=None):
    generator = generators(len(obs)) if generator is None else generator
    starts = model.start(obs)
    return policy_proposals(actor_for(model.action_space), model, starts, n, horizon, noise, action_repeat, generator)


@pytest.mark.parametrize("action_repeat", [1, 3])
@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_the_first_proposal_follows_the_actor_in_the_model(space, action_repeat):
    plans, model = propose(Line(space), action_repeat=action_repeat), Line(space)
    states = model.start(OBS)
    for t in range(5):
        action = actor_for(space)(model.observe(states))
        assert th.equal(plans[:, 0, t], action)
        for _ in range(action_repeat):
            states = model.step(states, action).next_obs


def test_proposals_are_the_actions_taken_in_the_model():
    model = Line()
    plans = propose(model, action_repeat=2)
    done = th.stack(model.taken, dim=1).reshape(3, 4, 5, 2, 2)
    assert th.equal(done[:, :, :, 0], done[:, :, :, 1])
    assert th.equal(done[:, :, :, 0], plans)


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize(("n", "horizon"), [(1, 1), (1, 4), (6, 1), (3, 7)])
def test_shapes(space, n, horizon):
    plans = propose(Line(space), n, horizon)
    assert plans.shape == (3, n, horizon, Line(space).action_dim)
    assert plans.dtype == th.float32 and not plans.requires_grad


def test_without_noise_all_proposals_are_equal():
    plans = propose(Line(), noise=0.0)
    assert th.equal(plans, plans[:, :1].expand_as(plans))


def test_noise_has_the_given_standard_deviation():
    obs = 0.3 * OBS  # far from the bounds
    plans = propose(Line(), n=4_000, horizon=1, noise=0.05, obs=obs)
    deviation = plans[:, 1:, 0] - actor(obs).unsqueeze(1)
    assert deviation.std(dim=1) == pytest.approx(0.05 * np.ones((3, 2)), rel=0.1)
    assert deviation.mean(dim=1) == pytest.approx(np.zeros((3, 2)), abs=0.005)


def test_actions_stay_within_the_bounds():
    plans = propose(Line(), n=50, noise=10.0)
    assert plans.abs().max() == 1.0


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_a_discrete_action_is_random_with_this_probability(noise):
    plans = propose(Line(DISCRETE), n=4_000, horizon=1, noise=noise)
    assert th.equal(plans.sum(dim=-1), th.ones(3, 4_000, 1)) and set(plans.unique().tolist()) == {0.0, 1.0}
    other = 1 - (plans[:, 1:, 0] * discrete_actor(OBS).unsqueeze(1)).sum(dim=-1).mean(dim=1)
    # One of three random actions is the actor's own
    assert other == pytest.approx(np.full(3, noise * 2 / 3), abs=0.03)


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_a_batch_equals_a_loop(space):
    together = propose(Line(space, noise=0.1))
    for i, own in enumerate(generators(3)):
        alone = propose(Line(space, noise=0.1), obs=OBS[i : i + 1], generator=[own])
        assert th.allclose(alone[0], together[i], atol=1e-6)


def test_equal_seeds_equal_proposals():
    first, same = (propose(Line(noise=0.1), generator=th.Generator().manual_seed(1)) for _ in range(2))
    other = propose(Line(noise=0.1), generator=th.Generator().manual_seed(2))
    assert th.equal(first, same) and not th.equal(first, other)


def test_the_global_stream_is_not_used():
    before = th.get_rng_state()
    for space in (BOX, DISCRETE):
        propose(Line(space, noise=0.1))
    assert th.equal(th.get_rng_state(), before)


def test_a_rollout_that_diverges_gives_finite_proposals():
    plans = propose(Line(diverges_at=2), n=3)
    assert th.isfinite(plans).all() and plans.abs().max() <= 1
    assert th.equal(plans[:, :, :3], propose(Line(), n=3)[:, :, :3])  # up to there they are as they were
    assert (plans[:, :, 3:] == 0).all()


def test_a_discrete_rollout_that_diverges_stays_one_hot():
    plans = propose(Line(DISCRETE, diverges_at=2), n=3)
    assert th.equal(plans.sum(dim=-1), th.ones(3, 3, 5))
