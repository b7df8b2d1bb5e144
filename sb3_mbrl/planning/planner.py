"""The base classes of planners: warm start, the loop of sampling, scoring and updating, ranking, and time budget."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch as th

from sb3_mbrl.common.arguments import check_arguments, integer, number
from sb3_mbrl.common.random import Generators

LONGEST_PLAN = 10**4
MOST_PLANS = 10**6
"""Largest number of plans scored together for one environment."""

Score = Callable[[th.Tensor], th.Tensor]
"""``f(actions (B, N, H, A)) -> returns (B, N)``: N candidate sequences of H actions for each of B environments. A return that
is not finite, because a prediction has diverged, ranks worst."""


class PlannerState(NamedTuple):
    """
    The state of a planner between two steps of an environment.

    :param mean: mean of the next search distribution, (B, H, A); probabilities for discrete actions
    :param elites: best sequences kept, best first, (B, K, H, A); K = 0 for planners that keep none
    :param previous: the action executed last, (B, A)
    :param started: False at the start of an episode, where there is no earlier plan, (B,) bool
    """

    mean: th.Tensor
    elites: th.Tensor
    previous: th.Tensor
    started: th.Tensor


class Plan(NamedTuple):
    """
    :param actions: the sequence to execute, (B, H, A) in [-1, 1]; one-hot for discrete actions
    :param value: return of the best candidate seen, (B,)
    :param std: standard deviation of the last search distribution, (B, H, A); zero for planners without one
    :param n_iterations: number of iterations made, fewer than the planner's if time ran out or the search converged
    :param state: the state to pass to :meth:`Planner.shift`, and then to the next call
    """

    actions: th.Tensor
    value: th.Tensor
    std: th.Tensor
    n_iterations: int
    state: PlannerState


class Planner(ABC):
    """
    Optimises sequences of ``horizon`` actions in [-1, 1] for B environments at once. A planner does not know the model: it
    gets a function that scores sequences. It stores nothing between calls: a state is an argument of each call and part of its
    result.

    :param horizon: H, actions in a plan
    :param n_iterations: rounds of improvement
    :raises ValueError: a number is out of its range
    """

    n_kept_elites = 0
    categorical = False
    """Whether it plans discrete actions, one-hot."""

    def __init__(self, horizon: int, n_iterations: int):
        check_arguments(locals(), {"horizon": integer(1, LONGEST_PLAN), "n_iterations": integer(1, 10**6)})
        self.horizon = horizon
        self.n_iterations = n_iterations

    @abstractmethod
    def plan(
        self,
        score: Score,
        state: PlannerState,
        generator: Generators = None,
        proposals: th.Tensor | None = None,
        max_seconds: float | None = None,
    ) -> Plan:
        """
        :param score: the function that is maximised
        :param state: the state from :meth:`initial_state`, or that of the last plan from :meth:`shift`
        :param generator: one generator, or one for each of the B environments, with which the plan of an environment does not
            depend on the others
        :param proposals: further sequences to consider, for instance those of a policy, (B, M, H, A)
        :param max_seconds: time limit: an iteration that would probably end later is not begun. The first iteration is always
            made
        :return: the plan
        """

    def initial_state(self, n_envs: int, action_dim: int, device: th.device | str = "cpu") -> PlannerState:
        """
        :param n_envs: B
        :param action_dim: A, or the number of discrete actions
        :param device: device of the plans
        :return: the state at the start of an episode
        """
        return PlannerState(
            mean=self._uninformed_mean(n_envs, action_dim, device),
            elites=th.zeros(n_envs, self.n_kept_elites, self.horizon, action_dim, device=device),
            previous=th.zeros(n_envs, action_dim, device=device),
            started=th.zeros(n_envs, dtype=th.bool, device=device),
        )

    def reset(self, state: PlannerState, begins: th.Tensor) -> PlannerState:
        """
        :param state: the state of B environments, which is not modified
        :param begins: where an episode begins, (B,) bool
        :return: the state, replaced by the initial one where an episode begins
        """
        initial = self.initial_state(len(state.mean), state.mean.shape[2], state.mean.device)
        return PlannerState(*(th.where(_like(begins, old), new, old) for old, new in zip(state, initial, strict=True)))

    def shift(self, state: PlannerState, executed: th.Tensor) -> PlannerState:
        """
        :param state: the state of the last plan
        :param executed: the actions that were executed since, (B, n, A)
        :return: the warm start of the next plan: the rest of the last plan, with its end filled up
        """
        n = min(executed.shape[1], self.horizon)
        rest = state.mean[:, n:]
        return PlannerState(
            mean=th.cat([rest, self._filling(state.mean, n)], dim=1),
            elites=th.cat([state.elites[:, :, n:], state.elites[:, :, -1:].expand(-1, -1, n, -1)], dim=2),
            previous=executed[:, -1],
            started=state.started,
        )

    def _uninformed_mean(self, n_envs: int, action_dim: int, device: th.device | str) -> th.Tensor:
        return th.zeros(n_envs, self.horizon, action_dim, device=device)

    def _filling(self, mean: th.Tensor, n: int) -> th.Tensor:
        """The end of a shifted plan, (B, n, A): the last action is repeated."""
        return mean[:, -1:].expand(-1, n, -1)


@dataclass
class Search:
    """
    The state of a search for B environments.

    :param mean: (B, H, A)
    :param std: (B, H, A)
    :param elites: best sequences of the last iteration, best first, (B, K, H, A)
    :param best: best sequence so far, (B, H, A)
    :param best_value: return of the best sequence so far, (B,)
    :param start: the planner's state when the search began
    """

    mean: th.Tensor
    std: th.Tensor
    elites: th.Tensor
    best: th.Tensor
    best_value: th.Tensor
    start: PlannerState


class SamplingPlanner(Planner):
    """
    Base class of planners that sample candidates around a mean, score them, and move the mean.

    :param horizon: H, actions in a plan
    :param n_iterations: rounds of sampling, scoring and updating
    :param population_size: N, candidates sampled in a round
    :param init_std: standard deviation of the samples in the first round, in the unit of actions in [-1, 1]
    :param smoothing: strength of a low-pass filter in [0, 1), PDDM's 1 - beta. An action of a candidate is
        ``(1 - smoothing) * sample + smoothing * previous action``, clipped to the bounds. For the first action, the previous
        one is the action that was executed last, or 0 at the start of an episode
    :raises ValueError: a number is out of its range
    """

    def __init__(self, horizon: int, n_iterations: int, population_size: int, init_std: float, smoothing: float):
        super().__init__(horizon, n_iterations)
        accepted = {
            "population_size": integer(1, MOST_PLANS),
            "init_std": number(0, above=True),
            "smoothing": number(0, 1, below=True),
        }
        check_arguments(locals(), accepted)
        if self.categorical and smoothing > 0:
            raise ValueError(f"Discrete actions cannot be smoothed: smoothing must be 0, got {smoothing}.")
        self.population_size = population_size
        self.init_std = init_std
        self.smoothing = smoothing

    @th.no_grad()
    def plan(
        self,
        score: Score,
        state: PlannerState,
        generator: Generators = None,
        proposals: th.Tensor | None = None,
        max_seconds: float | None = None,
    ) -> Plan:
        clock = Clock(max_seconds)
        search = self._begin(state)
        n_iterations = 0
        while n_iterations < self.n_iterations and clock.allows_another(n_iterations) and not self._has_converged(search):
            candidates = self._sample(search, n_iterations, generator)
            if proposals is not None:
                candidates = th.cat([candidates, proposals], dim=1)
            values = worst_if_not_finite(score(candidates))
            self._remember_best(search, candidates, values)
            self._update(search, candidates, values)
            n_iterations += 1
        actions = self._output(search, generator)
        new_state = PlannerState(search.mean, search.elites, state.previous, th.ones_like(state.started))
        return Plan(actions, search.best_value, search.std, n_iterations, new_state)

    def _begin(self, state: PlannerState) -> Search:
        worst = th.full(state.started.shape, th.finfo(state.mean.dtype).min, device=state.mean.device)
        std = th.full_like(state.mean, self.init_std)
        return Search(state.mean, std, state.elites, self._as_actions(state.mean), worst, state)

    def _sample(self, search: Search, iteration: int, generator: Generators) -> th.Tensor:
        """Candidates of an iteration, (B, N, H, A)."""
        return self._smooth_samples(search, self.population_size, generator)

    def _smooth_samples(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        """Samples of the search distribution, filtered over time, then clipped to the bounds, (B, n, H, A)."""
        return self._smooth(self._draw(search, n, generator), search.start).clamp(-1, 1)

    @abstractmethod
    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        """Samples of the search distribution, (B, n, H, A); they may lie beyond the bounds."""

    @abstractmethod
    def _update(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        """Move the search distribution towards candidates with high values."""

    def _output(self, search: Search, generator: Generators) -> th.Tensor:
        """The sequence to execute, (B, H, A)."""
        return self._as_actions(search.mean)

    def _has_converged(self, search: Search) -> bool:
        """Whether further iterations would change nothing."""
        return False

    def _as_actions(self, mean: th.Tensor) -> th.Tensor:
        """The actions that a mean stands for."""
        return mean

    def _smooth(self, samples: th.Tensor, start: PlannerState) -> th.Tensor:
        if self.smoothing == 0:
            return samples
        # At the start of an episode the filter begins with 0, since the last action belongs to the episode before
        before = th.where(_like(start.started, start.previous), start.previous, 0.0).unsqueeze(1)
        actions = []
        for sample in samples.unbind(dim=2):
            before = (1 - self.smoothing) * sample + self.smoothing * before
            actions.append(before)
        return th.stack(actions, dim=2)

    def _remember_best(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        # Ties go to the later candidate: in tasks where every plan survives, all returns are equal, but later plans are
        # smoother
        value, index = values.max(dim=1)
        better = (value >= search.best_value) & (value > th.finfo(value.dtype).min)
        search.best = th.where(_like(better, search.best), take(candidates, index.unsqueeze(1)).squeeze(1), search.best)
        search.best_value = th.where(better, value, search.best_value)


class Clock:
    """
    Decides whether there is time for another iteration, which is expected to take as long as the slowest one so far.

    :param max_seconds: time from now on; None: no limit
    """

    def __init__(self, max_seconds: float | None):
        check_arguments(locals(), {"max_seconds": number(0, above=True) | None})
        self.max_seconds = max_seconds
        self.begin = self.last = time.perf_counter()
        self.slowest = 0.0

    def allows_another(self, n_made: int) -> bool:
        """
        :param n_made: number of iterations made so far
        :return: whether another iteration is likely to end in time
        """
        if self.max_seconds is None:
            return True
        now = time.perf_counter()
        self.slowest, self.last = max(self.slowest, now - self.last), now
        return n_made == 0 or now - self.begin + self.slowest <= self.max_seconds


def worst_if_not_finite(values: th.Tensor) -> th.Tensor:
    """
    :param values: returns
    :return: the same, with the lowest finite number in place of NaN and of infinities of either sign
    """
    return th.where(th.isfinite(values), values, th.finfo(values.dtype).min)


def take(sequences: th.Tensor, index: th.Tensor) -> th.Tensor:
    """
    :param sequences: (B, N, H, A)
    :param index: (B, K) long
    :return: the sequences at these indices, (B, K, H, A)
    """
    return sequences.gather(1, index[:, :, None, None].expand(-1, -1, *sequences.shape[2:]))


def elites_of(candidates: th.Tensor, values: th.Tensor, n: int) -> tuple[th.Tensor, th.Tensor]:
    """
    :param candidates: (B, N, H, A)
    :param values: returns of the candidates, the lowest finite number where a prediction diverged, (B, N)
    :param n: K, number of elites
    :return: the K best candidates, best first, (B, K, H, A), and their returns (B, K)
    """
    best = values.topk(n, dim=1)
    return take(candidates, best.indices), best.values


def moments(sequences: th.Tensor, weights: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param sequences: in [-1, 1], (B, K, H, A)
    :param weights: not negative, (B, K)
    :return: weighted mean and variance, (B, H, A) each; zero where all weights are zero
    """
    weights = (weights / weights.sum(dim=1, keepdim=True).clamp(min=th.finfo(weights.dtype).tiny))[:, :, None, None]
    mean = (weights * sequences).sum(dim=1).clamp(-1, 1)  # rounding errors may exceed the bounds
    return mean, (weights * (sequences - mean.unsqueeze(1)) ** 2).sum(dim=1)


def _like(mask: th.Tensor, tensor: th.Tensor) -> th.Tensor:
    """A (B,) mask with as many dimensions as a (B, ...) tensor."""
    return mask.reshape(-1, *(1,) * (tensor.ndim - 1))
