"""A linear model of a linear environment, for which the result of each check is known."""

import numpy as np
import torch as th

from sb3_mbrl.common.model import ModelStep
from sb3_mbrl.common.types import Transitions


class LinearModel:
    """
    ``next_obs = gain * obs + action + bias + noise``, reward the sum of ``obs``, ends above ``limit``.

    :param bias: error of the model
    :param noise: standard deviation of the model's samples
    :param claimed: the aleatoric standard deviation that it claims; None: ``noise``
    :param epistemic: the epistemic one
    """

    def __init__(self, gain=0.9, bias=0.0, noise=0.0, claimed=None, epistemic=0.0, limit=np.inf):
        self.gain, self.bias, self.noise, self.limit = gain, bias, noise, limit
        self.claimed, self.epistemic = noise if claimed is None else claimed, epistemic

    def step(self, obs, action, generator=None, members="random", deterministic=False, uncertainty=False):
        next_obs = self.gain * obs + action + self.bias
        if members == "random" and self.noise > 0:
            next_obs = next_obs + self.noise * th.randn(obs.shape, generator=generator)
        stds = (None, None)
        if uncertainty:
            stds = (th.full((len(obs), obs.shape[1] + 1), std) for std in (self.epistemic, self.claimed))
        return ModelStep(next_obs, obs.sum(dim=1), next_obs[:, 0] > self.limit, *stds)


def linear_world(n_steps, noise=0.0, n_dims=2, seed=0, limit=np.inf):
    """A trajectory of the environment that ``LinearModel`` models; the reward is as noisy as the observation."""
    generator = th.Generator().manual_seed(seed)
    actions = 2 * th.rand(n_steps, n_dims, generator=generator) - 1
    disturbance = noise * th.randn(n_steps, n_dims + 1, generator=generator)
    states = [th.zeros(n_dims)]
    for action, push in zip(actions, disturbance[:, :-1], strict=True):
        states.append(0.9 * states[-1] + action + push)
    obs, next_obs = th.stack(states[:-1]), th.stack(states[1:])
    return Transitions(obs, actions, next_obs, obs.sum(dim=1) + disturbance[:, -1], next_obs[:, 0] > limit)
