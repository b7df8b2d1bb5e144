"""How far a learned model can be trusted to imagine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch as th

from sb3_mbrl.common.arguments import check_arguments, integer, number
from sb3_mbrl.common.schedules import LONGEST_ROLLOUT, RolloutSchedule
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.diagnostics import open_loop_error, over_outputs
from sb3_mbrl.dynamics.model import SteppableModel

N_STARTS = 500
"""Largest number of predictions that are measured."""

LEAST_STARTS = 0.1
"""Part of all transitions: a single long episode among short ones does not speak for them."""


@dataclass(frozen=True)
class AdaptiveRolloutLength:
    """
    Length of imagined rollouts from the measured error of the model, instead of a schedule: as many steps as it predicts
    the latest transitions within ``tolerance``, before it is fitted to them. Rollouts are short while the model is poor, or
    after the policy has gone where it does not know its way.

    :param max_length: imagined steps at most (paper: schedules end at 15 on Hopper, 25 on Ant)
    :param tolerance: error of a predicted state and reward that is accepted, root mean square over outputs, each in standard
        deviations of all data so far
    :raises ValueError: a number is out of its range
    """

    max_length: int = 15
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_arguments(vars(self), {"max_length": integer(1, LONGEST_ROLLOUT), "tolerance": number(0, above=True)})

    def errors(
        self,
        dynamics: SteppableModel,
        trajectories: Sequence[Transitions],
        generator: th.Generator | None = None,
        scale: th.Tensor | None = None,
    ) -> np.ndarray:
        """
        :param dynamics: the model; it predicts as imagination does, an elite and noise drawn at each step
        :param trajectories: unbroken pieces of real transitions, best ones that the model was not fitted to
        :param generator: source of starts, members and noise
        :param scale: standard deviations of next observations and reward, (O + 1,); None: those of ``trajectories``
        :return: error after 1, 2, ... steps, (H,). H is ``max_length``, or as many steps as a tenth of the transitions are
            followed by in their pieces
        :raises ValueError: there are no transitions
        """
        lengths = np.array([len(piece) for piece in trajectories])
        n_starts = np.array([np.maximum(lengths - steps, 0).sum() for steps in range(self.max_length)])
        horizon = int((n_starts >= max(1, LEAST_STARTS * lengths.sum())).sum())
        result = open_loop_error(dynamics, trajectories, horizon, N_STARTS, generator, n_samples=1, scale=scale)
        return over_outputs(result.fan).numpy()

    def choose(self, errors: np.ndarray) -> int:
        """
        :param errors: after 1, 2, ... steps
        :return: steps until the tolerance is passed for the first time, at least 1
        """
        beyond = np.flatnonzero(~(errors <= self.tolerance))
        return max(1, int(beyond[0]) if len(beyond) > 0 else len(errors))


def make_schedule(given: Any) -> RolloutSchedule | AdaptiveRolloutLength:
    """
    :param given: an ``AdaptiveRolloutLength``, its arguments as a mapping (as YAML has them), or what
        :class:`~sb3_mbrl.common.schedules.RolloutSchedule` takes
    :return: what sets the length of imagined rollouts
    :raises ValueError: it is none of these
    """
    if isinstance(given, AdaptiveRolloutLength):
        return given
    if not isinstance(given, Mapping):
        return RolloutSchedule(given)
    accepted = [field.name for field in fields(AdaptiveRolloutLength)]
    if not set(given) <= set(accepted):
        raise ValueError(
            f"rollout_schedule as a mapping has the arguments {accepted} of AdaptiveRolloutLength, got {dict(given)}."
        )
    return AdaptiveRolloutLength(**given)
