"""Planning in latent space: MPPI and the objective, as modified by TD-MPC."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.common.random import Generators, rand, randn
from sb3_mbrl.planning import MPPI, ModelObjective
from sb3_mbrl.planning.planner import Plan, PlannerState, Score, Search, take
from sb3_mbrl.tdmpc.latent_model import LatentModel


@dataclass
class LatentSearch(Search):
    """
    The state of a search that also keeps the candidates of the last mean.

    :param candidates: candidates whose weighted mean is the last mean, (B, K, H, A)
    :param weights: weights of these candidates, (B, K)
    """

    candidates: th.Tensor
    weights: th.Tensor


class LatentMPPI(MPPI):
    """
    The planner of TD-MPC. It executes the weighted mean. If it explores, it executes an elite instead, drawn in proportion to
    its weight, plus noise of the last standard deviation. The new last action of a shifted plan is 0.

    A planner is never modified: :meth:`limited` and :meth:`exploring` return a new one.

    :param kwargs: arguments of :class:`~sb3_mbrl.planning.MPPI`
    """

    explores = False
    n_planned: int
    """Number of actions that are planned. Further ones, up to the horizon, have no effect and are 0 in the mean."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.n_planned = self.horizon

    def limited(self, n_planned: int, std_bounds: tuple[float, float]) -> "LatentMPPI":
        """
        :param n_planned: number of actions that are planned, at most the horizon
        :param std_bounds: lowest and highest standard deviation
        :return: a planner with these settings; both planners accept each other's states
        """
        return self._with(n_planned=n_planned, std_bounds=std_bounds)

    def exploring(self) -> "LatentMPPI":
        """
        :return: a planner with the same settings that explores
        """
        return self._with(explores=True)

    def _with(self, **settings: Any) -> "LatentMPPI":
        other = copy(self)
        vars(other).update(settings)
        return other

    def plan(
        self,
        score: Score,
        state: PlannerState,
        generator: Generators = None,
        proposals: th.Tensor | None = None,
        max_seconds: float | None = None,
    ) -> Plan:
        return super().plan(lambda actions: score(actions[:, :, : self.n_planned]), state, generator, proposals, max_seconds)

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
        # If all candidates of an environment diverged, the mean is executed
        elite = th.where(shares[:, -1, None, None] > 0, take(search.candidates, index).squeeze(1), search.mean)
        return (elite + search.std * randn(elite.shape, generator, elite.device)).clamp(-1, 1)

    def _filling(self, mean: th.Tensor, n: int) -> th.Tensor:
        return th.zeros_like(mean[:, :n])


class LatentObjective(ModelObjective):
    """
    The return of action sequences in a latent model: discounted rewards, then the value of following the policy prior. Both
    stop where the model expects the task to have ended.

    :param model: the model to plan in
    :param discount: discount of rewards
    """

    model: LatentModel

    def __init__(self, model: LatentModel, discount: float):
        super().__init__(model, discount, n_particles=1, propagation="expectation")

    def _step_of_a_plan(self) -> Callable[..., ModelStep]:
        return partial(self.model.step, may_end=bool(self.model.terminates))

    def _states_at_once(self, n: int) -> int:
        # A megabyte of activations stays in the CPU's cache; a GPU needs far more to be busy
        states = (2**18 if self.model.device.type == "cpu" else 2**26) // self.model.width
        # The candidates of an environment are not split, because each piece would draw other critics
        return max(states, n)

    def _terminal_values(self, states: th.Tensor, generator: Generators) -> th.Tensor:
        return self.model.value(states, generator)


@th.no_grad()
def prior_proposals(
    model: LatentModel, starts: th.Tensor, n: int, horizon: int, generators: Sequence[th.Generator]
) -> th.Tensor:
    """
    Roll the policy prior out in the model and return its actions.

    :param model: the model
    :param starts: latent states, (B, Z)
    :param n: number of sequences for each state
    :param horizon: H, actions in a sequence
    :param generators: one for each state
    :return: action sequences, (B, n, H, A)
    """
    z = starts.repeat_interleave(n, dim=0)
    actions: list[th.Tensor] = []
    for step in range(horizon):
        if step > 0:
            z = model.next(z, model.executed(actions[-1]))
        actions.append(model.act(z, generators))
    # A rollout that diverges gives NaN; the planner scores every proposal anyway
    return th.stack(actions, dim=1).unflatten(0, (len(starts), n)).nan_to_num(0.0)
