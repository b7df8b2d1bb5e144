"""Random shooting: the best of many random plans (Nagabandi et al. 2018, https://arxiv.org/abs/1708.02596)."""

import torch as th

from sb3_mbrl.common.random import Generators, rand
from sb3_mbrl.planning.planner import SamplingPlanner, Search


class RandomShooting(SamplingPlanner):
    """
    Samples plans uniformly and returns the best one. The rest of the last plan competes with the samples.

    :param horizon: H, actions in a plan (Nagabandi et al.: 5 to 20)
    :param population_size: N, candidates in a round (Nagabandi et al.: 300 to 5000)
    :param n_iterations: number of rounds; the time budget is checked between them
    :param smoothing: see :class:`~sb3_mbrl.planning.planner.SamplingPlanner`
    """

    def __init__(self, horizon: int = 20, population_size: int = 1000, n_iterations: int = 1, smoothing: float = 0.0):
        super().__init__(horizon, n_iterations, population_size, init_std=1.0, smoothing=smoothing)

    def _sample(self, search: Search, iteration: int, generator: Generators) -> th.Tensor:
        return th.cat([super()._sample(search, iteration, generator), self._as_actions(search.mean).unsqueeze(1)], dim=1)

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        n_envs, horizon, action_dim = search.mean.shape
        return 2 * rand((n_envs, n, horizon, action_dim), generator, search.mean.device) - 1

    def _update(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        search.mean = search.best
