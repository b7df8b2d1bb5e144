"""Checks of what an environment returns, before it is stored: a single NaN would ruin the model and the networks."""

from typing import Any

import numpy as np
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_mbrl.common.types import LARGEST

BEYOND = f"NaN, infinite or larger than {LARGEST:.0e}"

Observations = np.ndarray | dict[str, np.ndarray]


def check_reset(algorithm: OffPolicyAlgorithm) -> None:
    """
    :param algorithm: an algorithm whose environments were reset or continue
    :raises ValueError: its last observation is not finite
    """
    assert not isinstance(algorithm._last_obs, tuple) and algorithm._last_obs is not None
    if not _finite_rows(algorithm._last_obs, algorithm.n_envs).all():
        algorithm._last_obs = None  # the next learn() has to reset again
        raise ValueError(f"The environment was reset to an observation that is {BEYOND}. Fix its reset().")


def check_step(
    algorithm: OffPolicyAlgorithm, obs: Observations, reward: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> None:
    """
    :param algorithm: the algorithm that is about to store the step
    :param obs: observations that the environments returned, (n_envs, \\*shape), or a dict of such arrays
    :param reward: (n_envs,)
    :param dones: where an episode ended, (n_envs,)
    :param infos: one dict for each environment, with the last observation of an episode that ended
    :raises ValueError: an observation or a reward is not finite
    """
    normalize = algorithm._vec_normalize_env
    if normalize is not None:  # raw values are stored, and clipping hides infinity in normalised ones
        obs, reward = normalize.get_original_obs(), normalize.get_original_reward()
    last = _finite_rows(obs, algorithm.n_envs)
    for i in np.flatnonzero(dones):
        if "terminal_observation" in infos[i]:
            last[i] = _finite_rows(infos[i]["terminal_observation"], 1)[0]
    checked = {
        "an observation": _finite_rows(obs, algorithm.n_envs),
        "a last observation": last,
        "a reward": _finite_rows(reward, algorithm.n_envs),
    }
    for name, finite in checked.items():
        if not finite.all():
            raise ValueError(
                f"Environment {int(np.argmin(finite))} returned {name} that is {BEYOND} at step "
                f"{algorithm.num_timesteps}. It was not stored; the model and the replay buffer are intact. Fix the "
                "environment (stable_baselines3.common.vec_env.VecCheckNan helps to find the cause)"
                + ("." if normalize is None else ", and reload the statistics of VecNormalize, which include this value.")
            )


def _finite_rows(values: Observations, n_envs: int) -> np.ndarray:
    """Whether all entries of an observation or a reward are finite and at most ``LARGEST``, (n_envs,) bool."""
    parts = values.values() if isinstance(values, dict) else [values]
    return np.all([(np.abs(part) <= LARGEST).reshape(n_envs, -1).all(axis=1) for part in parts], axis=0)
