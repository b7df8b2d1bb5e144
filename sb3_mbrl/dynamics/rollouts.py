"""Branched rollouts: short imagined trajectories from given states."""

from collections.abc import Callable
from dataclasses import dataclass

import torch as th

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble

PolicyFn = Callable[[th.Tensor], th.Tensor]
"""``f(raw observations (B, O)) -> actions (B, A)`` in [-1, 1]."""

CHUNK = 16_384
"""Branches rolled out at a time on the CPU, whose cache holds the activations of a chunk."""

ACCELERATOR_CHUNK = 65_536
"""Branches rolled out at a time on an accelerator: enough to keep it busy, at a few hundred megabytes of activations."""


@dataclass
class RolloutStats:
    """
    :param n_branches: branches started
    :param n_transitions: transitions kept
    :param n_terminated: branches that ended in a termination
    :param n_diverged: branches cut because the model's prediction was not finite
    :param reward_sum: sum of the rewards of the transitions kept
    """

    n_branches: int = 0
    n_transitions: int = 0
    n_terminated: int = 0
    n_diverged: int = 0
    reward_sum: float = 0.0


@th.no_grad()
def branched_rollouts(
    dynamics: ProbabilisticEnsemble,
    policy: PolicyFn,
    start_obs: th.Tensor,
    length: int,
    add: Callable[[Transitions], None],
    generator: th.Generator | None = None,
    deterministic: bool = False,
    one_member_per_branch: bool = False,
) -> RolloutStats:
    """
    Roll the policy out in the model (Janner et al. 2019, algorithm 2). A branch stops when it terminates, and this last
    transition is kept; it also stops at a prediction that is not finite, which is dropped.

    :param dynamics: the model
    :param policy: chooses the actions
    :param start_obs: raw observations to branch from, (N, O)
    :param length: largest number of imagined steps per branch
    :param add: called with each batch of transitions
    :param generator: source of members and noise
    :param deterministic: predict means instead of samples
    :param one_member_per_branch: use one elite for a whole branch (TS-infinity) instead of drawing an elite at each step
        (TS1)
    :return: counts of branches and transitions, and the sum of rewards
    """
    stats, rewards = RolloutStats(n_branches=len(start_obs)), []
    for obs in start_obs.split(CHUNK if start_obs.device.type == "cpu" else ACCELERATOR_CHUNK):
        members = dynamics.sample_members(len(obs), generator) if one_member_per_branch else None
        for _ in range(length):
            action = policy(obs)
            step = dynamics.step(obs, action, generator, "random" if members is None else members, deterministic)
            finite = th.isfinite(step.next_obs).all(dim=1) & th.isfinite(step.reward)
            continues = finite & ~step.terminated
            # Both counts are read together, because each read waits until an accelerator has finished all its work
            n_finite, n_continuing = th.stack([finite.sum(), continues.sum()]).tolist()
            imagined = Transitions(obs, action, step.next_obs, step.reward, step.terminated)
            imagined = imagined if n_finite == len(obs) else imagined[finite]
            add(imagined)

            rewards.append(imagined.rewards.sum())
            stats.n_transitions += n_finite
            stats.n_terminated += n_finite - n_continuing
            stats.n_diverged += len(obs) - n_finite
            if n_continuing == 0:
                break
            if n_continuing < len(obs) and members is not None:
                members = members[continues]
            obs = step.next_obs if n_continuing == len(obs) else step.next_obs[continues]
    stats.reward_sum = sum(th.stack(rewards).tolist()) if rewards else 0.0
    return stats
