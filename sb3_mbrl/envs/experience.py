"""Real transitions, and the start states and bounds that imagined environments take from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.trajectories import concatenate
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.envs.bounds import ObservedRange
from sb3_mbrl.envs.datasets import read_trajectories
from sb3_mbrl.envs.imagination import StartFn, as_states

StartStates = str | np.ndarray | th.Tensor | StartFn
"""``"all"`` or ``"initial"`` observations of the transitions, raw observations (M, O), or ``f(n, generator) -> (n, O)``."""


Bounds = tuple[np.ndarray, np.ndarray]
"""Lowest and highest observation, (O,) each."""


@dataclass(frozen=True)
class Experience:
    """
    Real transitions.

    :param transitions: all of them, in any order
    :param initial: first observations of episodes among them, (K, O)
    """

    transitions: Transitions
    initial: th.Tensor

    @classmethod
    def of(cls, trajectories: Sequence[Transitions] | Transitions, device: th.device) -> "Experience":
        """
        :param trajectories: each from the first observation of an episode; or a batch of transitions in any order
        :param device: device of the result
        :return: the transitions, and the first observations of the trajectories
        """
        return cls(*read_trajectories(trajectories, device))

    def __add__(self, other: "Experience") -> "Experience":
        return Experience(concatenate([self.transitions, other.transitions]), th.cat([self.initial, other.initial]))

    def starts(self, which: StartStates) -> np.ndarray | th.Tensor | StartFn:
        """
        :param which: ``"all"`` observations or ``"initial"`` ones; an array or a function is returned unchanged
        :return: start states for :class:`Imagination`
        :raises ValueError: there are no such states
        """
        if not isinstance(which, str):
            return which
        states = {"all": self.transitions.observations, "initial": self.initial}[which]
        if len(states) == 0:
            raise ValueError(
                f"start_states={which!r}: there are no such states among the transitions. Pass start_states='all', or states."
            )
        return states

    def observed_range(self) -> ObservedRange:
        """
        :return: lowest and highest observation among the transitions
        """
        low, high = th.cat([self.transitions.observations, self.transitions.next_observations]).aminmax(dim=0)
        return ObservedRange(low.cpu().numpy(), high.cpu().numpy())


def check_start_states(start_states: StartStates, observation_space: spaces.Space, device: th.device) -> None:
    """
    :param start_states: start states of imagined episodes
    :param observation_space: flat Box
    :param device: device of the model
    :raises ValueError: the name is unknown, or the states (or those that the function returns) have another shape or are not
        finite
    """
    if isinstance(start_states, str):
        if start_states not in ("all", "initial"):
            raise ValueError(
                f"start_states must be 'all', 'initial', an array, or a function f(n, generator); got {start_states!r}."
            )
        return
    n_obs = int(np.prod(observation_space.shape or ()))
    if callable(start_states):
        as_states(start_states(2, th.Generator(device).manual_seed(0)), n_obs, device, k=2)
    else:
        as_states(start_states, n_obs, device)
