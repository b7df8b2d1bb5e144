"""A small ensemble, data for it, and a discrete task."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble

OBS_DIM, ACTION_DIM = 3, 2
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
ACTION_SPACE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([6.0, 1.0], np.float32))


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


def ensemble(seed=0, obs_space=OBS_SPACE, action_space=ACTION_SPACE, **kwargs):
    small = {"ensemble_size": 3, "n_elites": 2, "net_arch": (16, 12), "generator": seeded(seed), "device": "cpu"}
    return ProbabilisticEnsemble(obs_space, action_space, **{**small, **kwargs})


def shaken(**kwargs):
    """An ensemble whose biases, bounds, statistics and errors all differ from their initial values."""
    model, generator = ensemble(**kwargs), seeded(9)
    with th.no_grad():
        for bias in model.biases:
            bias.normal_(0, 0.3, generator=generator)
        model.max_logvar.uniform_(-0.5, 0.5, generator=generator)
        model.min_logvar.uniform_(-2.5, -1.5, generator=generator)
        for normalizer in (model.input_normalizer, model.target_normalizer):
            normalizer.mean.normal_(0, 1, generator=generator)
            normalizer.std.uniform_(0.5, 2, generator=generator)
        model.holdout_mse.copy_(th.rand(model.ensemble_size, generator=generator))
    return model


def inputs(n=5, seed=1):
    generator = seeded(seed)
    return th.randn(n, OBS_DIM, generator=generator), th.rand(n, ACTION_DIM, generator=generator) * 2 - 1


def transitions(n=200, seed=0, terminated=None):
    obs, action = inputs(n, seed)
    next_obs = obs + 0.1 * th.sin(3 * obs) + 0.2 * action.sum(1, keepdim=True)
    return Transitions(obs, action, next_obs, obs[:, 0], th.zeros(n, dtype=th.bool) if terminated is None else terminated)


def assert_equal_states(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert th.equal(tensor, right[name]), name


DISCRETE = spaces.Discrete(3, start=2)


def discrete_transitions(n=300, seed=0):
    """The action chooses the direction (left, none, right), and the reward is the direction."""
    generator = seeded(seed)
    obs, choice = th.randn(n, OBS_DIM, generator=generator), th.randint(3, (n,), generator=generator)
    direction = choice.float() - 1
    next_obs = obs + direction.unsqueeze(1) * th.tensor([1.0, 0.0, -2.0])
    return Transitions(obs, th.eye(3)[choice], next_obs, direction, th.zeros(n, dtype=th.bool))


def reference_member(model, member, x):
    """The network of PETS for one member: mean and softly bounded log-variance of normalised targets."""
    hidden = x
    for layer, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        hidden = hidden @ weight[member].detach().double().numpy() + bias[member, 0].detach().double().numpy()
        if layer < len(model.weights) - 1:
            hidden = hidden / (1 + np.exp(-hidden))
    mean, logvar = np.split(hidden, 2, axis=-1)
    upper, lower = (bound.detach().double().numpy() for bound in (model.max_logvar, model.min_logvar))
    logvar = upper - np.log1p(np.exp(upper - logvar))
    return mean, lower + np.log1p(np.exp(logvar - lower))
