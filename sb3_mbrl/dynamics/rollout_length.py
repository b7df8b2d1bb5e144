"""The length of imagined rollouts: from a schedule, or from the measured error of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
import torch as th

from sb3_mbrl.common.arguments import MOST_STEPS, check_arguments, integer, number
from sb3_mbrl.common.model import SteppableModel
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.open_loop import open_loop_error
from sb3_mbrl.diagnostics.statistics import over_outputs

LONGEST_ROLLOUT = 10**4
"""Largest number of imagined steps in a branch."""


class RolloutSchedule:
    """
    Length of imagined rollouts: ``min_length`` until ``start`` environment steps, then linear, then ``max_length``
    from ``end`` on; truncated to an integer (Janner et al. 2019, table 2, whose epochs do not count the warm-up steps, while
    these steps do).

    :param schedule: a constant length, or ``(start, end, min_length, max_length)``
    :raises ValueError: it has another form
    """

    def __init__(self, schedule: int | Sequence[int]):
        accepted = "an integer of at least 1, (start_step, end_step, min_length, max_length) or an AdaptiveRolloutLength"
        values: Any = (0, 0, schedule, schedule) if isinstance(schedule, Real) else schedule
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 4:
            raise ValueError(f"rollout_schedule must be {accepted}, got {schedule!r}.")
        if not all(integer(-MOST_STEPS, whole_floats=True).accepts(value) for value in values):
            raise ValueError(f"rollout_schedule must hold integers, {accepted}; got {schedule!r}.")
        self.start, self.end, self.min_length, self.max_length = (int(value) for value in values)
        if not 0 <= self.start <= self.end:
            raise ValueError(f"rollout_schedule must start before it ends, at 0 or later: {accepted}; got {schedule!r}.")
        if not (1 <= self.min_length <= LONGEST_ROLLOUT and 1 <= self.max_length <= LONGEST_ROLLOUT):
            raise ValueError(
                f"Rollouts are at least one step and at most {LONGEST_ROLLOUT:_} steps long: rollout_schedule is {accepted}; "
                f"got {schedule!r}."
            )

    def __call__(self, num_timesteps: int) -> int:
        """
        :param num_timesteps: environment steps so far
        :return: imagined steps per branch
        """
        if num_timesteps <= self.start or self.end == self.start:
            return self.min_length if num_timesteps <= self.start else self.max_length
        progress = min((num_timesteps - self.start) / (self.end - self.start), 1.0)
        return int(self.min_length + progress * (self.max_length - self.min_length))


N_STARTS = 500
"""Largest number of open-loop predictions that are measured."""

LEAST_STARTS = 0.1
"""A length is measured only if predictions of this length can start at this share of all transitions: a single long episode
among short ones is not enough."""


@dataclass(frozen=True)
class AdaptiveRolloutLength:
    """
    Length of imagined rollouts from the measured error of the model, instead of a schedule: as many steps as the model
    predicts the latest transitions within ``tolerance``, before it is fitted to them. Rollouts are short while the model is
    poor, and after the policy has moved to states that the model has not seen.

    :param max_length: imagined steps at most (paper: schedules end at 15 on Hopper, 25 on Ant)
    :param tolerance: largest accepted error of a predicted state and reward: the root mean square over outputs, each in
        standard deviations of all data so far
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
        :param dynamics: the model; as in imagination, an elite and noise are drawn at each step
        :param trajectories: unbroken pieces of real transitions, preferably ones that the model was not fitted to
        :param generator: source of starts, members and noise
        :param scale: standard deviations of next observations and reward, (O + 1,); None takes those of ``trajectories``
        :return: error after 1, 2, ... steps, (H,). H is ``max_length``, or less: at least a tenth of the transitions must be
            followed by H - 1 others in their piece
        :raises ValueError: there are no transitions
        """
        lengths = np.array([len(piece) for piece in trajectories])
        n_starts = np.array([np.maximum(lengths - steps, 0).sum() for steps in range(self.max_length)])
        n_steps = int((n_starts >= max(1, LEAST_STARTS * lengths.sum())).sum())
        result = open_loop_error(dynamics, trajectories, n_steps, N_STARTS, generator, n_samples=1, scale=scale)
        return over_outputs(result.fan).numpy()

    def choose(self, errors: np.ndarray) -> int:
        """
        :param errors: errors after 1, 2, ... steps, (H,)
        :return: number of steps before the error first exceeds the tolerance, at least 1
        """
        beyond = np.flatnonzero(~(errors <= self.tolerance))
        return max(1, int(beyond[0]) if len(beyond) > 0 else len(errors))


def make_schedule(given: Any) -> RolloutSchedule | AdaptiveRolloutLength:
    """
    :param given: an ``AdaptiveRolloutLength``, its arguments as a mapping (from a YAML file), or the argument of
        :class:`~sb3_mbrl.dynamics.rollout_length.RolloutSchedule`
    :return: an object that gives the length of imagined rollouts
    :raises ValueError: none of these was given
    """
    if isinstance(given, AdaptiveRolloutLength):
        return given
    if not isinstance(given, Mapping):
        return RolloutSchedule(given)
    accepted = [field.name for field in fields(AdaptiveRolloutLength)]
    if not set(given) <= set(accepted):
        raise ValueError(
            f"rollout_schedule as a mapping must hold arguments of AdaptiveRolloutLength, {accepted}, got {dict(given)}."
        )
    return AdaptiveRolloutLength(**given)
