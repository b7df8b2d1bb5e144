"""What the tests of planning policies share: small planners, a model with random weights, observations."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl import MPCPolicy
from sb3_mbrl.dynamics import ProbabilisticEnsemble

PLANNER = {"planner": "cem", "horizon": 5, "planner_kwargs": {"population_size": 30, "n_elites": 5, "n_iterations": 2}}

CHEAP = {
    "random_shooting": {"population_size": 20},
    "cem": {"population_size": 20, "n_elites": 4, "n_iterations": 2},
    "icem": {"population_size": 10, "n_elites": 4, "n_iterations": 2},
    "mppi": {"population_size": 20, "n_iterations": 2},
    "pddm": {"population_size": 20},
    "gradient": {"n_starts": 3, "n_iterations": 2},
}
"""Arguments of each planner with which a plan takes milliseconds."""

OBS = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


def random_model(action_space, fitted=True, **functions):
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    generator = th.Generator().manual_seed(0)
    model = ProbabilisticEnsemble(
        space, action_space, 2, 2, [8], generator=generator, device="cpu", normalize_targets=False, **functions
    )
    if fitted:
        model.holdout_mse.copy_(th.arange(2.0))
    return model


def cheap(model, planner, **kwargs):
    return MPCPolicy(model, planner, 4, CHEAP[planner], **kwargs)


def assert_close(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
