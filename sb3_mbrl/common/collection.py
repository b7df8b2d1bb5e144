"""Collects real transitions with a policy."""

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_mbrl.common.actions import are_whole, from_environment
from sb3_mbrl.common.arguments import BOOLEAN, OFF_POLICY, SEED, check_arguments, integer
from sb3_mbrl.common.environments import as_vec_env
from sb3_mbrl.common.progress import showing
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.trajectories import split_after
from sb3_mbrl.common.types import Transitions


def collect_trajectories(
    env: VecEnv,
    predict: Callable[..., tuple[np.ndarray, Any]],
    n_steps: int,
    deterministic: bool = False,
    device: th.device | str = "cpu",
) -> list[Transitions]:
    """
    Let a policy act in an environment, which is reset first. Do not pass the environment of a training run that continues
    afterwards.

    :param env: vectorised environment; the statistics of a ``VecNormalize`` are used and not updated
    :param predict: ``model.predict`` of an SB3 algorithm or policy, or a function with its arguments:
        ``predict(obs, state=..., episode_start=..., deterministic=...) -> (actions in the environment's scale, state)``
    :param n_steps: steps of each environment
    :param deterministic: passed to ``predict``
    :param device: device of the tensors
    :return: one trajectory per episode, of which the last may be unfinished; raw observations and rewards, actions in [-1, 1],
        or one-hot if they are discrete
    :raises ValueError: the actions are neither Discrete nor a Box with finite bounds
    """
    space = env.action_space
    if not (isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and space.is_bounded())):
        raise ValueError(
            "Actions must be Discrete or a Box with finite bounds, because models get them one-hot or scaled to [-1, 1]; got "
            f"{space}."
        )
    normalize = unwrap_vec_normalize(env)
    was_training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False
    try:
        columns, ended = _play(env, predict, n_steps, deterministic, space)
    finally:
        if normalize is not None:
            normalize.training = was_training
    pieces = []
    for i in range(env.num_envs):
        pieces += split_after(ended[:, i], [column[:, i] for column in columns], device)
    return pieces


def _play(
    env: VecEnv, predict: Callable[..., tuple[np.ndarray, Any]], n_steps: int, deterministic: bool, space: spaces.Space
) -> tuple[list[np.ndarray], np.ndarray]:
    """
    :return: the columns of ``Transitions``, (n_steps, n_envs, ...) each, and where an episode ended, (n_steps, n_envs)
    """
    normalize = unwrap_vec_normalize(env)
    rows: list[list[np.ndarray]] = []
    dones_of_rows = []
    obs: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    raw_obs = obs if normalize is None else normalize.get_original_obs()
    for _ in range(n_steps):
        action, state = predict(obs, state=state, episode_start=starts, deterministic=deterministic)
        obs, reward, dones, infos = env.step(action)
        raw_reward = reward if normalize is None else normalize.get_original_reward()
        new_raw_obs = obs if normalize is None else normalize.get_original_obs()
        next_obs = np.array(new_raw_obs)
        for i in np.flatnonzero(dones):
            # The VecEnv has been reset already, so the returned observation belongs to the next episode
            last = infos[i]["terminal_observation"]
            next_obs[i] = last if normalize is None else normalize.unnormalize_obs(last)
        timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        rows.append([np.array(raw_obs), from_environment(action, space), next_obs, np.array(raw_reward), dones & ~timeouts])
        dones_of_rows.append(np.array(dones))
        raw_obs, starts = new_raw_obs, dones
    return [np.stack(column) for column in zip(*rows, strict=True)], np.stack(dones_of_rows)


SHOWN = {"verbose": OFF_POLICY["verbose"], "progress_bar": BOOLEAN}


COLLECTED = {"n_steps": integer(1, 10**9, whole_floats=True), "seed": SEED, **SHOWN}
"""Rules for the arguments of :func:`collect`."""


class Predicts(Protocol):
    """Algorithms and policies of Stable-Baselines3."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions in the environment's scale, and the state of the policy."""


def collect(
    env: gym.Env | VecEnv | str,
    n_steps: int,
    policy: Predicts | None = None,
    seed: int | None = None,
    verbose: int = 0,
    progress_bar: bool = False,
) -> list[Transitions]:
    """
    Let a policy act in the real environment, which is reset first.

    :param env: the environment or its id
    :param n_steps: transitions, over all environments of a vector (rounded up)
    :param policy: anything with SB3's ``predict``; None: uniformly random actions
    :param seed: seed of the environment and of random actions
    :param verbose: 1 for a line at the end, and every half minute until then
    :param progress_bar: show a bar instead
    :return: trajectories, each from the first observation of an episode; raw observations and rewards, actions in [-1, 1]
        or one-hot
    :raises ValueError: a number is out of its range, or learned dynamics do not support the spaces
    """
    check_arguments(locals(), COLLECTED)
    seed = None if seed is None else int(seed)  # Gymnasium does not take an integer of NumPy
    with as_vec_env(env) as vec_env:
        check_spaces(vec_env.observation_space, vec_env.action_space)
        if seed is not None:  # SB3 would draw one from NumPy's global stream
            vec_env.seed(seed)
        predict = _random_actions(vec_env.action_space, vec_env.num_envs, seed) if policy is None else policy.predict
        n_rounds, n_envs = -(-int(n_steps) // vec_env.num_envs), vec_env.num_envs
        with showing(verbose, progress_bar, total=n_rounds * n_envs) as show:

            def act(*args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
                show("collecting real transitions", n_envs)
                return predict(*args, **kwargs)

            trajectories = collect_trajectories(vec_env, act, n_steps=n_rounds)
        if verbose >= 1:
            print(f"Collected {n_rounds * n_envs} real transitions in {len(trajectories)} episodes")
        return trajectories


def _random_actions(space: spaces.Space, n_envs: int, seed: int | None) -> Any:
    """``predict`` of a policy that acts at random."""
    rng = np.random.default_rng(seed)

    def predict(obs: np.ndarray, state: Any = None, **_: Any) -> tuple[np.ndarray, Any]:
        if isinstance(space, spaces.Discrete):
            return space.start + rng.integers(space.n, size=n_envs), state
        assert isinstance(space, spaces.Box)
        if are_whole(space):
            return rng.integers(space.low, space.high, (n_envs, *space.shape), space.dtype, endpoint=True), state
        return rng.uniform(space.low, space.high, (n_envs, *space.shape)).astype(space.dtype), state

    return predict
