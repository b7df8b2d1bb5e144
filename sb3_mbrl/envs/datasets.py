"""Reads transitions from fixed datasets: Minari's, SB3's replay buffers, arrays by name, and collected trajectories."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.common.actions import from_environment, one_hot
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.trajectories import concatenate, initial_rows, real_transitions
from sb3_mbrl.common.types import Transitions


class EpisodicDataset(Protocol):
    """The part of ``minari.MinariDataset`` that is used."""

    @property
    def observation_space(self) -> spaces.Space:
        """The space of the recorded observations."""

    @property
    def action_space(self) -> spaces.Space:
        """The space of the recorded actions."""

    @property
    def env_spec(self) -> EnvSpec | None:
        """How the environment is made, if that is known."""

    def iterate_episodes(self) -> Iterable[Any]:
        """Episodes of T steps: T + 1 ``observations``; T ``actions``, ``rewards``, ``terminations`` and ``truncations``."""


Trajectories = Sequence[Transitions]
"""What :func:`~sb3_mbrl.envs.collect` returns: each from the first observation of an episode."""

Dataset = EpisodicDataset | ReplayBuffer | Mapping[str, Any] | Trajectories
"""A ``minari.MinariDataset``; SB3's replay buffer; what ``collect`` returned; or arrays by the names of Gymnasium or of D4RL:
``observations`` (N, O), ``actions`` (N, \\*action_space.shape) in the environment's scale, ``rewards`` (N,),
``next_observations`` (N, O), ``terminations`` or ``terminals`` (N,), and ``truncations`` or ``timeouts`` (N,), which may be
missing."""

NAMES_OF_D4RL = {"terminations": "terminals", "truncations": "timeouts"}

ROUNDING = 1e-4
"""Actions may exceed [-1, 1] by this much, which rounding explains."""

EMPTY = "The dataset holds no transitions: there is nothing to fit a model to. Was it filtered, or not loaded?"


def read_dataset(
    dataset: Dataset, env: gym.Env | VecEnv | None = None, device: th.device | str = "cpu"
) -> tuple[Transitions, th.Tensor]:
    """
    :param dataset: a dataset of Minari, SB3's replay buffer, arrays by name, or collected trajectories
    :param env: the environment, whose spaces are used; None: the dataset's, which arrays and trajectories do not contain
    :param device: device of the tensors
    :return: all transitions, raw observations and rewards, actions in [-1, 1] or one-hot; and the first observations of
        episodes among them, (K, O)
    :raises ValueError: the dataset is of another type, empty or incomplete, its spaces are not those of the environment, or
        actions are out of bounds
    """
    observation_space, action_space = spaces_of(dataset, env)
    check_spaces(observation_space, action_space)
    if isinstance(dataset, ReplayBuffer):
        return _read_buffer(dataset, device)
    if isinstance(dataset, Sequence):
        return read_trajectories(dataset, device)
    arrays = dataset if isinstance(dataset, Mapping) else _arrays_of_episodes(dataset)
    return _read_arrays(arrays, observation_space, action_space, device)


def spaces_of(dataset: Dataset, env: gym.Env | VecEnv | None) -> tuple[spaces.Space, spaces.Space]:
    """
    :param dataset: a dataset of Minari, SB3's replay buffer, arrays by name, or collected trajectories
    :param env: the environment, if there is one
    :return: spaces of observations and actions: the environment's, otherwise those of the dataset
    :raises ValueError: the dataset is of another type, or its spaces are not known or not those of the environment
    """
    if isinstance(dataset, Mapping) or (isinstance(dataset, Sequence) and _are_trajectories(dataset)):
        if env is None:
            raise ValueError(
                "Arrays and collected transitions do not contain the spaces of observations and actions: pass the "
                "environment, env=."
            )
        return env.observation_space, env.action_space
    if isinstance(dataset, Sequence) or not (isinstance(dataset, ReplayBuffer) or hasattr(dataset, "iterate_episodes")):
        raise ValueError(
            "dataset must be a minari.MinariDataset (minari.load_dataset loads one by its id), a ReplayBuffer of "
            "Stable-Baselines3, a mapping of names to arrays (of Gymnasium or D4RL), or a list of Transitions (from "
            f"sb3_mbrl.envs.collect), got {type(dataset).__name__}."
        )
    if env is None:
        return dataset.observation_space, dataset.action_space
    for name in ("observation_space", "action_space"):
        recorded, real = getattr(dataset, name), getattr(env, name)
        if not _same(recorded, real):
            raise ValueError(
                f"The {name} of the dataset is {recorded}, but that of the environment is {real}. Pass the environment in "
                "which the dataset was recorded, with the same wrappers."
            )
    return env.observation_space, env.action_space


def _are_trajectories(dataset: Sequence[Any]) -> bool:
    return len(dataset) > 0 and all(isinstance(each, Transitions) for each in dataset)


def _same(recorded: spaces.Space, real: spaces.Space) -> bool:
    """Whether two spaces are equal; the dtype of a Box does not matter."""
    if not (isinstance(recorded, spaces.Box) and isinstance(real, spaces.Box)):
        return recorded == real
    if recorded.shape != real.shape:
        return False
    return np.allclose(recorded.low, real.low) and np.allclose(recorded.high, real.high)


def read_trajectories(
    trajectories: Trajectories | Transitions, device: th.device | str = "cpu"
) -> tuple[Transitions, th.Tensor]:
    """
    :param trajectories: each from the first observation of an episode; or a batch of transitions in any order
    :param device: device of the tensors
    :return: all transitions; and the first observations of episodes, (K, O), where K is 0 for a batch
    """
    if isinstance(trajectories, Transitions):
        batch, initial = trajectories, trajectories.observations[:0]
    else:
        batch = concatenate(trajectories)
        initial = th.cat([trajectory.observations[:1] for trajectory in trajectories])
    columns = [getattr(batch, field.name).to(device) for field in fields(batch)]
    return Transitions(*columns), initial.to(device)


def _read_buffer(buffer: ReplayBuffer, device: th.device | str) -> tuple[Transitions, th.Tensor]:
    if buffer.size() == 0:
        raise ValueError(EMPTY)
    if buffer.optimize_memory_usage or not buffer.handle_timeout_termination:
        raise ValueError(
            "optimize_memory_usage=True loses the last observation of each episode, and handle_timeout_termination=False "
            "stores time limits as terminations, so the model would learn wrong transitions. Fill a buffer with the default "
            "settings."
        )
    transitions = real_transitions(buffer, device)
    if bool((transitions.actions.abs() > 1 + ROUNDING).any()):
        raise ValueError(
            f"The replay buffer holds actions as large as {float(transitions.actions.abs().max()):.3g}, where the off-policy "
            "algorithms of Stable-Baselines3 store them scaled to [-1, 1]: add policy.scale_action(action) to it."
        )
    return transitions, transitions.observations[th.as_tensor(initial_rows(buffer), device=device)]


def _arrays_of_episodes(dataset: EpisodicDataset) -> dict[str, np.ndarray]:
    """The episodes concatenated, one array for each name. Each episode ends with its last row, even if its flags differ."""
    episodes = list(dataset.iterate_episodes())
    if len(episodes) == 0:
        raise ValueError(EMPTY)
    return {
        "observations": np.concatenate([episode.observations[:-1] for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "next_observations": np.concatenate([episode.observations[1:] for episode in episodes]),
        "terminations": np.concatenate([episode.terminations for episode in episodes]),
        "truncations": np.concatenate([np.arange(len(episode.rewards), 0, -1) == 1 for episode in episodes]),
    }


def _read_arrays(
    arrays: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space, device: th.device | str
) -> tuple[Transitions, th.Tensor]:
    columns = _columns(arrays, observation_space.shape or (), action_space.shape or ())
    ended = (columns["terminations"] > 0.5) | (columns["truncations"] > 0.5)
    begins = np.concatenate([[True], ended[:-1]])

    def tensor(array: np.ndarray) -> th.Tensor:
        return th.tensor(array, dtype=th.float32, device=device)

    transitions = Transitions(
        tensor(columns["observations"]),
        tensor(_scaled(columns["actions"], action_space)),
        tensor(columns["next_observations"]),
        tensor(columns["rewards"]),
        th.tensor(columns["terminations"] > 0.5, device=device),
    )
    return transitions, transitions.observations[th.as_tensor(begins, device=device)]


def _columns(
    arrays: Mapping[str, Any], observation_shape: tuple[int, ...], action_shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """
    :param arrays: arrays by the names of Gymnasium or of D4RL
    :param observation_shape: shape of one observation
    :param action_shape: shape of one action
    :return: arrays of N >= 1 rows, by the names of Gymnasium
    :raises ValueError: an array is missing, or has another shape
    """
    shapes = {
        "observations": observation_shape,
        "actions": action_shape,
        "rewards": (),
        "next_observations": observation_shape,
        "terminations": (),
        "truncations": (),
    }
    keys = {name: name if name in arrays else NAMES_OF_D4RL.get(name, name) for name in shapes}
    columns = {name: np.asarray(arrays[key]) for name, key in keys.items() if key in arrays}
    missing = shapes.keys() - columns.keys() - {"truncations"}
    if missing:
        raise ValueError(
            f"The dataset lacks {sorted(missing)}; it has {sorted(arrays)}. It must have 'observations', 'actions', "
            "'rewards', 'next_observations' and 'terminations' (or 'terminals'), and may have 'truncations' (or 'timeouts'), "
            "which mark other ends of episodes. For raw data of D4RL, d4rl.qlearning_dataset adds the next observations."
        )
    columns.setdefault("truncations", np.zeros(columns["terminations"].shape, dtype=bool))
    n = columns["observations"].shape[:1]  # a tuple, so that a scalar needs no special case
    for name, column in columns.items():
        if column.shape != (*n, *shapes[name]):
            raise ValueError(
                f"The {keys[name]} of the dataset must have shape {(*n, *shapes[name])}, one row for each observation, got "
                f"{column.shape}."
            )
    if n == (0,):
        raise ValueError(EMPTY)
    return columns


def _scaled(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param actions: in the environment's scale, (N, \\*space.shape)
    :param space: Discrete, or a Box with finite bounds
    :return: one-hot, or in [-1, 1], (N, A)
    """
    if isinstance(space, spaces.Discrete):
        if not np.isin(actions, space.start + np.arange(space.n)).all():
            raise ValueError(
                f"The actions of the dataset range from {actions.min()} to {actions.max()}, but those of {space} are whole "
                f"numbers from {space.start} to {space.start + space.n - 1}. Shift or filter them."
            )
        return one_hot(actions, space).numpy()
    scaled = from_environment(actions, space).reshape(len(actions), -1)
    if (np.abs(scaled) > 1 + ROUNDING).any():
        raise ValueError(
            f"The actions of the dataset range from {actions.min():.3g} to {actions.max():.3g}, beyond the bounds of {space}: "
            "they must be in the environment's scale, not normalised. If the environment clips actions, clip these too."
        )
    return scaled
