"""The cross-entropy method in the form of PETS (Chua et al. 2018, https://arxiv.org/abs/1805.12114)."""

import torch as th

from sb3_mbrl.common.arguments import check_arguments, integer, number
from sb3_mbrl.common.random import Generators
from sb3_mbrl.planning.noise import truncated_normal
from sb3_mbrl.planning.planner import SamplingPlanner, Search, elites_of, moments

MOMENTUM = number(0, 1, below=True)
"""Rule for arguments called ``momentum``."""


class CEM(SamplingPlanner):
    """
    Repeatedly fits a Gaussian to the best samples, and executes its mean. Numbers and details follow the official code of
    PETS.

    :param horizon: H, actions in a plan (PETS: 25; 30 for HalfCheetah)
    :param population_size: N, candidates in an iteration (PETS: 400 or 500)
    :param n_elites: the best samples, to which the distribution is fitted (PETS: 40 or 50)
    :param n_iterations: largest number of iterations; fewer are made if the search converges (PETS: 5)
    :param momentum: share of the old mean and variance that is kept (PETS: 0.1)
    :param init_std: standard deviation at the start of each plan (PETS: a quarter of the range of actions, 0.5)
    :param min_variance: the search for an environment has converged when no variance of its plan is larger (PETS: 1e-3)
    :param smoothing: see :class:`~sb3_mbrl.planning.planner.SamplingPlanner`
    :raises ValueError: a number is out of its range
    """

    def __init__(
        self,
        horizon: int = 25,
        population_size: int = 400,
        n_elites: int = 40,
        n_iterations: int = 5,
        momentum: float = 0.1,
        init_std: float = 0.5,
        min_variance: float = 1e-3,
        smoothing: float = 0.0,
    ):
        super().__init__(horizon, n_iterations, population_size, init_std, smoothing)
        check_elites(n_elites, population_size)
        check_arguments(locals(), {"momentum": MOMENTUM, "min_variance": number(0)})
        self.n_elites = n_elites
        self.momentum = momentum
        self.min_variance = min_variance

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        # Samples are truncated at two standard deviations, so these must not reach beyond the bounds
        std = th.minimum(search.std, (1 - search.mean.abs()) / 2)
        n_envs, horizon, action_dim = search.mean.shape
        noise = truncated_normal((n_envs, n, horizon, action_dim), generator, search.mean.device)
        return search.mean.unsqueeze(1) + std.unsqueeze(1) * noise

    def _update(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        elites, elite_values = elites_of(candidates, values, self.n_elites)
        finite = (elite_values > th.finfo(values.dtype).min).float()
        mean, variance = moments(elites, finite)
        moves = (~self._converged(search) & (finite.sum(dim=1) > 0))[:, None, None]
        mean = self.momentum * search.mean + (1 - self.momentum) * mean
        variance = self.momentum * search.std**2 + (1 - self.momentum) * variance
        search.mean = th.where(moves, mean, search.mean)
        search.std = th.where(moves, variance.sqrt(), search.std)

    def _converged(self, search: Search) -> th.Tensor:
        """Environments whose search has converged, (B,) bool."""
        return (search.std**2).amax(dim=(1, 2)) <= self.min_variance

    def _has_converged(self, search: Search) -> bool:
        return bool(self._converged(search).all())

    def _filling(self, mean: th.Tensor, n: int) -> th.Tensor:
        return self._uninformed_mean(len(mean), mean.shape[2], mean.device)[:, :n]


def check_elites(n_elites: int, population_size: int) -> None:
    """:raises ValueError: there are no elites, or more elites than candidates"""
    check_arguments(locals(), {"n_elites": integer(1)})
    if n_elites > population_size:
        raise ValueError(f"n_elites must lie between 1 and population_size={population_size}, got {n_elites}.")
