"""The planners for discrete actions: one-hot sequences, drawn from probabilities of the actions at each step."""

import torch as th
import torch.nn.functional as F

from sb3_mbrl.common.random import Generators, rand
from sb3_mbrl.planning.cem import CEM
from sb3_mbrl.planning.icem import ICEM
from sb3_mbrl.planning.mppi import MPPI
from sb3_mbrl.planning.planner import PlannerState, SamplingPlanner, Search
from sb3_mbrl.planning.random_shooting import RandomShooting

EXPLORATION = 0.5
"""Share of the uniform distribution in the first iteration of a plan. It lets a search leave probabilities of 0 and 1 in the
last plan, like the standard deviation, to which continuous planners return at the start of each plan."""


class Categorical(SamplingPlanner):
    """
    Mixin: list it before a planner. The planner's mean becomes a table of probabilities, (B, H, A), and its samples are
    one-hot. The mean of one-hot elites is such a table again, so that the updates of the planner need no change.
    """

    categorical = True

    def _begin(self, state: PlannerState) -> Search:
        uniform = th.full_like(state.mean, 1 / state.mean.shape[-1])
        return super()._begin(state._replace(mean=(1 - EXPLORATION) * state.mean + EXPLORATION * uniform))

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        return draw_one_hot(search.mean, n, generator)

    def _as_actions(self, mean: th.Tensor) -> th.Tensor:
        return F.one_hot(mean.argmax(dim=-1), mean.shape[-1]).to(mean.dtype)

    def _uninformed_mean(self, n_envs: int, action_dim: int, device: th.device | str) -> th.Tensor:
        return th.full((n_envs, self.horizon, action_dim), 1 / action_dim, device=device)


class CategoricalRandomShooting(Categorical, RandomShooting):
    """:class:`RandomShooting` for discrete actions."""

    def _draw(self, search: Search, n: int, generator: Generators) -> th.Tensor:
        return draw_one_hot(th.full_like(search.mean, 1 / search.mean.shape[-1]), n, generator)


class CategoricalCEM(Categorical, CEM):
    """:class:`CEM` for discrete actions."""


class CategoricalICEM(Categorical, ICEM):
    """:class:`ICEM` for discrete actions; ``noise_beta`` has no effect."""


class CategoricalMPPI(Categorical, MPPI):
    """:class:`MPPI` for discrete actions; the standard deviations have no effect."""


def draw_one_hot(probabilities: th.Tensor, n: int, generator: Generators) -> th.Tensor:
    """
    :param probabilities: (B, H, A)
    :param n: number of samples
    :param generator: source of the samples
    :return: one-hot samples, (B, n, H, A)
    """
    n_envs, horizon, action_dim = probabilities.shape
    uniform = rand((n_envs, n, horizon, 1), generator, probabilities.device)
    # The last boundary is left out, because rounding errors may put it below 1
    index = (uniform >= probabilities.cumsum(dim=-1)[:, None, :, :-1]).sum(dim=-1)
    return F.one_hot(index, action_dim).to(probabilities.dtype)
