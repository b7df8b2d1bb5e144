"""Model predictive path integral control: the mean of plans, weighted by their returns."""

from collections.abc import Sequence

import torch as th

from sb3_mbrl.common.arguments import check_arguments, list_of, number
from sb3_mbrl.common.random import Generators, randn
from sb3_mbrl.planning.cem import MOMENTUM, check_elites
from sb3_mbrl.planning.planner import SamplingPlanner, Search, elites_of, moments


class MPPI(SamplingPlanner):
    """
    Weights every sample by ``exp((R - max R) / temperature)`` and executes the weighted mean (Williams et al. 2017). Its
    settings cover three published forms:

    - all samples and a fixed standard deviation: MPPI, the default;
    - ``n_elites=64, std_bounds=(0.05, 2), n_iterations=6, temperature=2``: TD-MPC
      (https://arxiv.org/abs/2203.04955; its "temperature" of 0.5 is a factor, the inverse of ours);
    - ``n_iterations=1, smoothing=1 - beta, temperature=1 / kappa``: PDDM's filtered, reward-weighted planner
      (https://arxiv.org/abs/1909.11652), available under the name ``"pddm"``.

    :param horizon: H, actions in a plan
    :param population_size: N, candidates in an iteration
    :param n_iterations: number of iterations
    :param temperature: temperature, in the unit of the return; the smaller it is, the more weight the best samples have
    :param n_elites: number of best samples that are weighted; None: all
    :param momentum: share of the old mean that is kept (TD-MPC: 0.1)
    :param init_std: standard deviation at the start of each plan
    :param std_bounds: bounds within which the standard deviation is fitted to the weighted samples, (lowest, highest); None:
        it is not fitted
    :param smoothing: see :class:`~sb3_mbrl.planning.planner.SamplingPlanner`
    :raises ValueError: a number is out of its range
    """

    def __init__(
        self,
        horizon: int = 20,
        population_size: int = 500,
        n_iterations: int = 3,
        temperature: float = 0.1,
        n_elites: int | None = None,
        momentum: float = 0.0,
        init_std: float = 0.5,
        std_bounds: Sequence[float] | None = None,
        smoothing: float = 0.0,
    ):
        super().__init__(horizon, n_iterations, population_size, init_std, smoothing)
        check_elites(population_size if n_elites is None else n_elites, population_size)
        accepted = {
            "momentum": MOMENTUM,
            "temperature": number(0, above=True),
            "std_bounds": list_of(number(0, above=True), 2, 2) | None,
        }
        check_arguments(locals(), accepted)
        if std_bounds is not None and std_bounds[0] > std_bounds[1]:
            raise ValueError(f"std_bounds must be None or (lowest, highest) with 0 < lowest <= highest, got {std_bounds}.")
        self.temperature = temperature
        self.n_elites = n_elites
        self.momentum = momentum
        self.std_bounds = std_bounds

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        n_envs, horizon, action_dim = search.mean.shape
        noise = randn((n_envs, n, horizon, action_dim), generator, search.mean.device)
        return search.mean.unsqueeze(1) + search.std.unsqueeze(1) * noise

    def _update(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        if self.n_elites is not None:
            candidates, values = elites_of(candidates, values, self.n_elites)
        weights = th.exp((values - values.amax(dim=1, keepdim=True)) / self.temperature)
        self._move(search, candidates, weights * (values > th.finfo(values.dtype).min))

    def _move(self, search: Search, candidates: th.Tensor, weights: th.Tensor) -> None:
        """Set the new mean and standard deviation; where all weights are 0, the old ones stay."""
        mean, variance = moments(candidates, weights)
        any_finite = (weights.sum(dim=1) > 0)[:, None, None]
        mean = self.momentum * search.mean + (1 - self.momentum) * mean
        search.mean = th.where(any_finite, mean, search.mean)
        if self.std_bounds is not None:
            search.std = th.where(any_finite, variance.sqrt().clamp(*self.std_bounds), search.std)
