"""Schedules in environment steps."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from sb3_mbrl.common.arguments import MOST_STEPS, integer

LONGEST_ROLLOUT = 10**4
"""Largest number of imagined steps of a branch."""


class RolloutSchedule:
    """
    Length of imagined rollouts: ``min_length`` until ``start`` environment steps, then linear, then ``max_length``
    from ``end`` on; truncated to an integer (Janner et al. 2019, table 2; ours counts the warm-up steps,
    the paper's epochs do not).

    :param schedule: a constant length, or ``(start, end, min_length, max_length)``
    :raises ValueError: not of this form
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
