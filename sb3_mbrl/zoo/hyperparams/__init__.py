"""Tuned hyperparameters: one YAML file for each algorithm, with one entry for each environment."""

from pathlib import Path
from typing import Any

import yaml

# RL Zoo's own keys, which are not arguments of an algorithm's constructor
ZOO_KEYS = ("n_timesteps", "n_envs", "env_wrapper", "normalize", "frame_stack", "callback", "vec_env_wrapper", "env_kwargs")


def load_hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    The tuned constructor arguments of an algorithm for an environment::

        from sb3_mbrl import MBPO
        from sb3_mbrl.zoo import load_hyperparams

        MBPO(env="Hopper-v5", **load_hyperparams("mbpo", "Hopper-v5"))

    Those of ``Dyna`` are named after what it trains: ``Dyna(PPO, env=..., **load_hyperparams("dyna_ppo", "Pendulum-v1"))``.
    Ant and Humanoid are tuned without contact forces in the observation: make them with :func:`load_env_kwargs`.

    :param algo: ``"mbpo"``, ``"mbtqc"``, ``"mbcrossq"``, ``"mbtd3"``, ``"pets"``, ``"dyna_ppo"``, ``"dyna_dqn"``,
        ``"tdmpc"`` or ``"tdmpc2"``
    :param env_id: Gymnasium id; an id without an entry gets the entry ``default``
    :return: constructor arguments, including ``policy`` but not ``n_timesteps`` and RL Zoo's other keys
    :raises ValueError: there are no hyperparameters for this algorithm
    """
    return {key: value for key, value in _load_entry(algo, env_id).items() if key not in ZOO_KEYS}


def load_env_kwargs(algo: str, env_id: str) -> dict[str, Any]:
    """
    The arguments of the environment that the hyperparameters are tuned for: ``gym.make(env_id, **kwargs)``.

    :param algo: name of an algorithm, see :func:`load_hyperparams`
    :param env_id: Gymnasium id
    :return: keyword arguments of the environment, empty for most
    :raises ValueError: there are no hyperparameters for this algorithm
    """
    return _load_entry(algo, env_id).get("env_kwargs", {})


def hyperparams_file(algo: str) -> Path:
    """
    :param algo: name of an algorithm, see :func:`load_hyperparams`
    :return: the file of its hyperparameters, in RL Zoo's format
    :raises ValueError: there are no hyperparameters for this algorithm
    """
    folder = Path(__file__).parent
    available = sorted(path.stem for path in folder.glob("*.yml"))
    if algo not in available:
        raise ValueError(f"There are no hyperparameters for {algo!r}. algo must be one of {available}.")
    return folder / f"{algo}.yml"


def _load_entry(algo: str, env_id: str) -> dict[str, Any]:
    entries = yaml.safe_load(hyperparams_file(algo).read_text())
    return dict(entries.get(env_id, entries["default"]))
