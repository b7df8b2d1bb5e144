"""Simulators of any environment that can be copied, or whose state can be set."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle

from sb3_mbrl.tasks.classic_control import Outcome
from sb3_mbrl.tasks.wrappers import TRANSPARENT, layers

GetState = Callable[[Any], np.ndarray]
"""``f(env.unwrapped) -> (D,)``: the whole state, on which the environment's future depends."""


SetState = Callable[[Any, np.ndarray], None]
"""``f(env.unwrapped, state)``: puts the environment into the state that was read."""


class Simulator(Protocol):
    """Steps a batch of states for :class:`SimulatorModel`. Arrays are float64; states and actions are finite."""

    def start(self, obs: np.ndarray) -> np.ndarray:
        """
        :param obs: observations, (B, O)
        :return: states, (B, S)
        """

    def observe(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: observations, (B, O)
        """

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        """
        :param states: (B, S)
        :param action: as the environment's ``step`` takes it, (B, *action_space.shape)
        :return: the outcome for each state; values that are not finite mark states whose simulation diverged
        """


def _copied(env: gym.Env) -> gym.Env:
    """
    :param env: a live environment
    :return: an independent copy, without transparent wrappers
    :raises ValueError: it cannot be copied
    """
    memo: dict[int, Any] = {}
    clone: Any = None
    try:
        for layer in layers(env):
            if type(layer) in TRANSPARENT:
                # Left out, because it may hold an open file, or end the imagined episode at a time limit
                memo[id(layer)] = clone
            elif isinstance(layer, EzPickle) and not hasattr(layer, "__deepcopy__"):
                # deepcopy would call the constructor again, which loses the current state
                memo[id(layer)] = clone = type(layer).__new__(type(layer))
                vars(clone).update(copy.deepcopy(vars(layer), memo))
            else:
                clone = copy.deepcopy(layer, memo)
    except Exception as error:
        raise ValueError(
            f"{env} is not a task that SimulatorModel knows, and cannot be copied ({type(error).__name__}: {error}). Give the "
            "class of the environment a `__deepcopy__`, or learn a model of it: ProbabilisticEnsemble."
        ) from error
    return clone


def _check_number_of_environments(obs: np.ndarray, envs: Sequence[gym.Env]) -> None:
    if len(obs) != len(envs):
        raise ValueError(
            f"Got observations of {len(obs)} environments, but SimulatorModel was given {len(envs)}: this simulator starts "
            "from their current states. Pass the VecEnv that the policy acts in: SimulatorModel(vec_env)."
        )


class StateVectorSimulator:
    """
    Steps states one after the other in a single private copy of the environment. A state is the concatenation of: whether it
    has ended, the array that ``get_state`` returned, and the observation.

    :param envs: live environments, without transparent wrappers
    :param get_state: reads the state of an unwrapped environment
    :param set_state: puts an unwrapped environment into a state
    """

    def __init__(self, envs: Sequence[gym.Env], get_state: GetState, set_state: SetState) -> None:
        self.envs = envs
        self.get_state, self.set_state = get_state, set_state
        self.copy = _copied(envs[0])
        self.copy.reset(seed=0)
        self.n_obs = int(np.prod(envs[0].observation_space.shape or ()))
        state = get_state(self.copy.unwrapped)
        if np.ndim(state) != 1:
            raise ValueError(
                f"`get_state` must return an array with one dimension, got {type(state).__name__} with {np.ndim(state)} "
                "dimensions. Flatten the state."
            )

    def start(self, obs: np.ndarray) -> np.ndarray:
        _check_number_of_environments(obs, self.envs)
        states = [self.get_state(env.unwrapped) for env in self.envs]
        return np.stack([self._joined(False, state, ob) for state, ob in zip(states, obs, strict=True)])

    def observe(self, states: np.ndarray) -> np.ndarray:
        return states[:, states.shape[1] - self.n_obs :]

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        next_states, reward, terminated = states.copy(), np.zeros(len(states)), states[:, 0] > 0
        # States that have ended are not stepped, because an environment may raise an error after its end
        for index in np.flatnonzero(~terminated):
            self.set_state(self.copy.unwrapped, states[index, 1 : states.shape[1] - self.n_obs].copy())
            obs, reward[index], terminated[index], _, _ = self.copy.step(action[index])
            next_states[index] = self._joined(terminated[index], self.get_state(self.copy.unwrapped), obs)
        return next_states, reward, terminated

    def _joined(self, ended: bool, state: np.ndarray, obs: np.ndarray) -> np.ndarray:
        return np.concatenate([[float(ended)], state, np.ravel(obs)])


class CopySimulator:
    """
    Steps states one after the other, each in a deep copy of the live environment. The copies include its random generator, so
    this simulator foresees events that are random to a policy. A state is the concatenation of: whether it has ended, the
    number of its copy, and the observation. All copies stay in memory until the next ``start``, and copying is slow.

    :param envs: live environments, without transparent wrappers
    """

    def __init__(self, envs: Sequence[gym.Env]) -> None:
        self.envs = envs
        self.copies: list[gym.Env] = []
        for env in envs:
            _copied(env)  # raises now rather than in the first plan

    def start(self, obs: np.ndarray) -> np.ndarray:
        _check_number_of_environments(obs, self.envs)
        self.copies = [_copied(env) for env in self.envs]
        numbers = np.arange(len(obs), dtype=np.float64)
        return np.concatenate([np.zeros((len(obs), 1)), numbers[:, None], obs], axis=1)

    def observe(self, states: np.ndarray) -> np.ndarray:
        return states[:, 2:]

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        next_states, reward, terminated = states.copy(), np.zeros(len(states)), states[:, 0] > 0
        # States that have ended are not stepped, because an environment may raise an error after its end
        for index in np.flatnonzero(~terminated):
            env = _copied(self.copies[int(states[index, 1])])
            obs, reward[index], terminated[index], _, _ = env.step(action[index])
            next_states[index] = np.concatenate([[float(terminated[index]), len(self.copies)], np.ravel(obs)])
            self.copies.append(env)
        return next_states, reward, terminated
