"""Planning in latent space: the project's MPPI and objective, with what TD-MPC does otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.common.random import Generators, rand, randn
from sb3_mbrl.planning import MPPI, ModelObjective
from sb3_mbrl.planning.planner import PlannerState, Score, Search, take
from sb3_mbrl.tdmpc.latent_model import LatentModel


@dataclass
class LatentSearch(Search):
    """
    :param candidates: those that made the last mean, (B, K, H, A)
    :param weights: theirs, (B, K)
    """

    candidates: th.Tensor
    weights: th.Tensor


class LatentMPPI(MPPI):
    """
    While it explores, the planner of TD-MPC executes an elite, drawn by its weight, with noise of the last standard deviation;
    otherwise the weighted mean. Where a plan goes on beyond the last one, it begins with 0.

    :param kwargs: of :class:`~sb3_mbrl.planning.MPPI`
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.explores = True
        self.n_planned = self.horizon
        """Actions beyond are of no effect, and 0 in the mean: TD-MPC begins with short plans."""

    def _begin(self, state: PlannerState) -> Search:
        search = super()._begin(state)
        weights = th.ones_like(search.best_value).unsqueeze(1)
        return LatentSearch(**vars(search), candidates=search.mean.unsqueeze(1), weights=weights)

    def _move(self, search: Search, candidates: th.Tensor, weights: th.Tensor) -> None:
        super()._move(search, candidates, weights)
        assert isinstance(search, LatentSearch)
        search.candidates, search.weights = candidates, weights
        search.mean[:, self.n_planned :] = 0

    def _output(self, search: Search, generator: Generators) -> th.Tensor:
        if not self.explores:
            return search.mean
        assert isinstance(search, LatentSearch)
        shares = search.weights.cumsum(dim=1)
        drawn = rand((len(shares), 1), generator, shares.device) * shares[:, -1:]
        index = th.searchsorted(shares, drawn).clamp(max=shares.shape[1] - 1)
        # Where all candidates diverged, there is nothing but the mean
        elite = th.where(shares[:, -1, None, None] > 0, take(search.candidates, index).squeeze(1), search.mean)
        return (elite + search.std * randn(elite.shape, generator, elite.device)).clamp(-1, 1)

    def _filling(self, mean: th.Tensor, n: int) -> th.Tensor:
        return th.zeros_like(mean[:, :n])


class LatentObjective(ModelObjective):
    """
    The return of action sequences in a latent model: discounted rewards, then the value of following the policy prior. Both
    stop where the model expects the task to have ended.

    :param model: to plan in
    :param discount: of rewards
    """

    model: LatentModel

    def __init__(self, model: LatentModel, discount: float):
        super().__init__(model, discount, n_particles=1, propagation="expectation")
        self.horizon: int | None = None
        """Actions beyond are of no effect: TD-MPC begins with short plans. None: all count."""

    def score_states(self, starts: th.Tensor, generator: Generators = None) -> Score:
        returns = super().score_states(starts, generator)

        def score(actions: th.Tensor) -> th.Tensor:
            return returns(actions[:, :, : self.horizon])

        return score

    def _step_of_a_plan(self) -> Callable[..., ModelStep]:
        return partial(self.model.step, may_end=bool(self.model.terminates))

    def _states_at_once(self, n: int) -> int:
        # A megabyte of activations stays in a processor's cache; a GPU is only busy with more
        states = (2**18 if self.model.device.type == "cpu" else 2**26) // self.model.width
        # The plans of an environment stay together, since two pieces would draw different critics
        return max(states, n)

    def _value_of_the_end(self, states: th.Tensor, generator: Generators) -> th.Tensor:
        return self.model.value(states, generator)


@th.no_grad()
def prior_proposals(
    model: LatentModel, starts: th.Tensor, n: int, horizon: int, generators: Sequence[th.Generator]
) -> th.Tensor:
    """
    What the policy prior would do.

    :param model: to step
    :param starts: latent states, (B, Z)
    :param n: sequences for each of them
    :param horizon: H
    :param generators: one for each of them
    :return: (B, n, H, A)
    """
    z = starts.repeat_interleave(n, dim=0)
    actions: list[th.Tensor] = []
    for step in range(horizon):
        if step > 0:
            z = model.next(z, model.executed(actions[-1]))
        actions.append(model.act(z, generators))
    # NaN comes from a rollout that diverged; the planner scores the plan again
    return th.stack(actions, dim=1).unflatten(0, (len(starts), n)).nan_to_num(0.0)
