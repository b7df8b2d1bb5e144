import dataclasses

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import rollouts
from sb3_mbrl.dynamics.ensemble import ModelStep, ProbabilisticEnsemble
from sb3_mbrl.dynamics.rollouts import RolloutStats, branched_rollouts


class Counting:
    """A model whose first observation entry counts the steps, and whose second is the number of the branch."""

    def __init__(self, ends_at=10**6, diverges_at=10**6, bad_reward_at=10**6):
        self.ends_at, self.diverges_at, self.bad_reward_at = ends_at, diverges_at, bad_reward_at
        self.members = []

    def sample_members(self, n, generator):
        return th.arange(n) % 5

    def step(self, obs, action, generator, members, deterministic):
        self.members.append(members)
        next_obs = obs + action
        next_obs[next_obs[:, 0] == self.diverges_at] = float("inf")
        reward = th.where(next_obs[:, 0] == self.bad_reward_at, float("nan"), obs[:, 0])
        return ModelStep(next_obs, reward, next_obs[:, 0] >= self.ends_at)


def one_up(obs):
    return th.tensor([[1.0, 0.0]]).expand(len(obs), -1)


def starts(*counts):
    return th.tensor([[float(count), float(branch)] for branch, count in enumerate(counts)])


def roll(model, start_obs, length, policy=one_up, **kwargs):
    added = []
    stats = branched_rollouts(model, policy, start_obs, length, added.append, **kwargs)
    return stats, Transitions(*(th.cat([getattr(rows, name) for rows in added]) for name in vars(added[0]))), added


def test_every_branch_continues_for_the_given_length_from_its_start():
    stats, rows, added = roll(Counting(), starts(0, 10), length=3)
    assert rows.observations.tolist() == [[0, 0], [10, 1], [1, 0], [11, 1], [2, 0], [12, 1]]
    assert th.equal(rows.next_observations, rows.observations + rows.actions)
    assert rows.rewards.tolist() == [0, 10, 1, 11, 2, 12]
    assert not rows.terminated.any()
    assert len(added) == 3
    assert dataclasses.replace(stats, reward_sum=0.0) == RolloutStats(n_branches=2, n_transitions=6)


def test_a_branch_stops_at_its_termination_and_the_terminal_transition_is_kept():
    stats, rows, _ = roll(Counting(ends_at=12), starts(0, 10), length=4)
    of_second = rows[rows.observations[:, 1] == 1]
    assert of_second.observations[:, 0].tolist() == [10, 11]
    assert of_second.terminated.tolist() == [False, True]
    assert rows.observations[rows.observations[:, 1] == 0, 0].tolist() == [0, 1, 2, 3]
    assert dataclasses.replace(stats, reward_sum=0.0) == RolloutStats(n_branches=2, n_transitions=6, n_terminated=1)


def test_when_all_branches_have_ended_nothing_more_is_imagined():
    stats, _, added = roll(Counting(ends_at=2), starts(0, 1), length=100)
    assert [len(rows) for rows in added] == [2, 1]
    assert dataclasses.replace(stats, reward_sum=0.0) == RolloutStats(n_branches=2, n_transitions=3, n_terminated=2)


@pytest.mark.parametrize("kind", ["diverges_at", "bad_reward_at"])
def test_a_prediction_that_is_not_finite_is_dropped_and_ends_its_branch(kind):
    stats, rows, _ = roll(Counting(**{kind: 12}), starts(0, 10), length=4)
    assert rows.observations[rows.observations[:, 1] == 1, 0].tolist() == [10]
    assert rows.observations[rows.observations[:, 1] == 0, 0].tolist() == [0, 1, 2, 3]
    assert all(th.isfinite(tensor).all() for tensor in vars(rows).values())
    assert dataclasses.replace(stats, reward_sum=0.0) == RolloutStats(n_branches=2, n_transitions=5, n_diverged=1)


def test_a_diverged_prediction_does_not_count_as_a_termination():
    stats, rows, _ = roll(Counting(diverges_at=12, ends_at=12), starts(10), length=4)
    assert not rows.terminated.any()
    assert dataclasses.replace(stats, reward_sum=0.0) == RolloutStats(n_branches=1, n_transitions=1, n_diverged=1)


def test_the_policy_sees_only_branches_that_continue():
    seen = []

    def policy(obs):
        seen.append(obs[:, 1].tolist())
        return one_up(obs)

    roll(Counting(ends_at=12), starts(11, 0, 10), length=3, policy=policy)
    assert seen == [[0, 1, 2], [1, 2], [1]]


def test_no_starts_give_no_transitions():
    stats = branched_rollouts(Counting(), one_up, th.zeros(0, 2), 3, lambda rows: None)
    assert stats == RolloutStats()


def test_a_member_is_kept_with_its_branch_when_others_end():
    model = Counting(ends_at=12)
    roll(model, starts(11, 0, 10, 0), length=3, one_member_per_branch=True)
    assert [members.tolist() for members in model.members] == [[0, 1, 2, 3], [1, 2, 3], [1, 3]]


def test_by_default_each_step_draws_its_members():
    model = Counting()
    roll(model, starts(0, 0), length=2)
    assert model.members == ["random", "random"]


def ensemble(**kwargs):
    model = ProbabilisticEnsemble(
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(-1, 1, (2,)),
        ensemble_size=3,
        net_arch=(8,),
        generator=th.Generator().manual_seed(0),
        device="cpu",
        **{"n_elites": 3, **kwargs},
    )
    with th.no_grad():
        for member, bias in enumerate(model.biases[-1]):
            bias[..., :3] = member  # means that tell the members apart
    model.holdout_mse.copy_(th.tensor([1.0, 2.0, 3.0]))
    return model


def generator(seed=1):
    return th.Generator().manual_seed(seed)


START = th.randn(40, 2, generator=th.Generator().manual_seed(2))


def as_rows(rows):
    return th.cat([rows.observations, rows.actions, rows.next_observations, rows.rewards[:, None]], 1)


@pytest.mark.parametrize("one_member_per_branch", [True, False])
def test_ts_infinity_keeps_one_elite_over_a_branch_and_ts1_does_not(one_member_per_branch):
    _, rows, _ = roll(
        ensemble(), START, 5, generator=generator(), deterministic=True, one_member_per_branch=one_member_per_branch
    )
    members = rows.rewards.round().reshape(5, 40)  # the reward is about the number of the member
    assert set(members.unique().tolist()) == {0.0, 1.0, 2.0}
    assert (members == members[0]).all() == one_member_per_branch


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_rolling_out_in_chunks_gives_the_same_rows(monkeypatch, chunk):
    options = {"generator": generator(), "deterministic": True}
    model = ensemble(n_elites=1, termination_fn=lambda obs, action, next_obs: next_obs[:, 0] > 0.5)
    whole_stats, whole, _ = roll(model, START, 3, **options)
    monkeypatch.setattr(rollouts, "CHUNK", chunk)
    stats, rows, _ = roll(model, START, 3, **options)
    assert stats.reward_sum == pytest.approx(whole_stats.reward_sum, rel=1e-5)
    assert dataclasses.replace(stats, reward_sum=0.0) == dataclasses.replace(whole_stats, reward_sum=0.0)
    assert 0 < stats.n_terminated < 40
    order, whole_order = as_rows(rows)[:, 0].argsort(stable=True), as_rows(whole)[:, 0].argsort(stable=True)
    th.testing.assert_close(as_rows(rows)[order], as_rows(whole)[whole_order])


def test_equal_generators_imagine_the_same_and_the_global_stream_is_not_used():
    state = th.get_rng_state()
    first, second, other = (as_rows(roll(ensemble(), START, 3, generator=generator(seed))[1]) for seed in (1, 1, 2))
    assert th.equal(first, second)
    assert not th.equal(first, other)
    assert th.equal(th.get_rng_state(), state)


def test_imagined_rows_carry_no_gradient():
    policy = th.nn.Linear(2, 2)
    _, rows, _ = roll(ensemble(), START, 2, policy=policy, generator=generator())
    assert not any(tensor.requires_grad for tensor in vars(rows).values())
