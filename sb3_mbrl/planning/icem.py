"""iCEM: a sample-efficient cross-entropy method (Pinneri et al. 2020, https://arxiv.org/abs/2008.06389)."""

import torch as th

from sb3_mbrl.common.arguments import SHARE, check_arguments, number
from sb3_mbrl.common.random import Generators
from sb3_mbrl.planning.cem import MOMENTUM, check_elites
from sb3_mbrl.planning.noise import colored_noise
from sb3_mbrl.planning.planner import SamplingPlanner, Search, elites_of, moments


class ICEM(SamplingPlanner):
    """
    CEM with noise that is correlated over time, a shrinking population, elites that are kept from one iteration and one step
    to the next, and the best sample as the plan. It needs an order of magnitude fewer samples than CEM.

    :param horizon: H, actions in a plan (iCEM: 30)
    :param population_size: N, candidates in the first iteration (iCEM: 40)
    :param n_elites: the best samples, to which the distribution is fitted (iCEM: 10)
    :param n_iterations: number of iterations (iCEM: 3)
    :param momentum: share of the old mean and standard deviation that is kept (iCEM: 0.1)
    :param init_std: standard deviation at the start of each plan (iCEM: 0.5)
    :param noise_beta: exponent of the noise's power spectrum 1 / f^beta, in [0, 10]: 0 is white, larger is smoother (iCEM:
        0.25 for HalfCheetah, 2 for HumanoidStandup, 2.5 to 3.5 for robot hands and arms; with learned models 0.25 to 2.5)
    :param population_decay: the number of candidates is divided by this number after each iteration, but stays at least twice
        ``n_elites`` (iCEM: 1.25)
    :param elite_reuse: share of the elites kept for the next iteration, and shifted for the next step (iCEM: 0.3)
    :param smoothing: see :class:`~sb3_mbrl.planning.planner.SamplingPlanner`
    :raises ValueError: a number is out of its range
    """

    def __init__(
        self,
        horizon: int = 30,
        population_size: int = 40,
        n_elites: int = 10,
        n_iterations: int = 3,
        momentum: float = 0.1,
        init_std: float = 0.5,
        noise_beta: float = 2.0,
        population_decay: float = 1.25,
        elite_reuse: float = 0.3,
        smoothing: float = 0.0,
    ):
        super().__init__(horizon, n_iterations, population_size, init_std, smoothing)
        check_elites(n_elites, population_size)
        accepted = {
            "momentum": MOMENTUM,
            "noise_beta": number(0, 10),
            "population_decay": number(1),
            "elite_reuse": SHARE,
        }
        check_arguments(locals(), accepted)
        self.n_elites = n_elites
        self.momentum = momentum
        self.noise_beta = noise_beta
        self.population_decay = population_decay
        self.elite_reuse = elite_reuse
        self.n_kept_elites = int(elite_reuse * n_elites)

    def _sample(self, search: Search, iteration: int, generator: Generators) -> th.Tensor:
        n = max(int(self.population_size / self.population_decay**iteration), 2 * self.n_elites)
        samples = self._smooth_samples(search, n + self.n_kept_elites, generator)
        samples, spare = samples[:, :n], samples[:, n:]
        if iteration == 0:  # the last step's elites, shifted, with a new last action; samples at the start of an episode
            shifted = th.cat([search.elites[:, :, :-1], spare[:, :, -1:]], dim=2)
            kept = th.where(search.start.started[:, None, None, None], shifted, spare)
        else:
            kept = search.elites
        candidates = [samples, kept]
        if iteration == self.n_iterations - 1:  # the mean comes first, so that it wins ties
            candidates.insert(0, self._as_actions(search.mean).unsqueeze(1))
        return th.cat(candidates, dim=1)

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        n_envs, horizon, action_dim = search.mean.shape
        noise = colored_noise((n_envs, n, horizon, action_dim), self.noise_beta, generator, search.mean.device)
        return search.mean.unsqueeze(1) + search.std.unsqueeze(1) * noise

    def _update(self, search: Search, candidates: th.Tensor, values: th.Tensor) -> None:
        elites, elite_values = elites_of(candidates, values, self.n_elites)
        finite = (elite_values > th.finfo(values.dtype).min).float()
        mean, variance = moments(elites, finite)
        any_finite = (finite.sum(dim=1) > 0)[:, None, None]
        mean = self.momentum * search.mean + (1 - self.momentum) * mean
        std = self.momentum * search.std + (1 - self.momentum) * variance.sqrt()
        search.mean = th.where(any_finite, mean, search.mean)
        search.std = th.where(any_finite, std, search.std)
        search.elites = elites[:, : self.n_kept_elites]

    def _output(self, search: Search, generator: Generators) -> th.Tensor:
        return search.best
