"""Types shared by every room."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch as th

LARGEST = 1e18
"""Largest magnitude of an observation or reward. The square of a much larger number is infinite in float32, so fits and
updates would give NaN long after the cause."""

TerminationFn = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
"""``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,) bool``: raw observations, actions in the
environment's own scale, ``True`` where the task ends (a time limit is not an end)."""

RewardFn = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
"""``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,) float``: raw observations, actions in the
environment's own scale."""


@dataclass(frozen=True)
class Transitions:
    """
    A batch of transitions in the form in which the dynamics use them.

    :param observations: raw (un-normalised) observations, (N, O) float32
    :param actions: actions scaled to [-1, 1], (N, A) float32
    :param next_observations: true successors (never the first observation of the next episode), (N, O) float32
    :param rewards: raw rewards, (N,) float32
    :param terminated: the task ended here; a time limit does not count, (N,) bool
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor

    def __len__(self) -> int:
        return self.observations.shape[0]

    def __getitem__(self, rows: th.Tensor | slice) -> "Transitions":
        """
        :param rows: row indices, a slice or a boolean mask
        :return: the transitions at these rows
        """
        return Transitions(*(getattr(self, field.name)[rows] for field in fields(self)))
