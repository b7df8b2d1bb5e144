"""Search spaces for ``--optimize``: the model-based arguments of each algorithm. Its YAML file sets the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial

Sampler = Callable[["Trial", int, int, dict[str, Any]], dict[str, Any]]
Converter = Callable[[dict[str, Any]], dict[str, Any]]


def suggest_mbpo(trial: Trial, most_updates: int = 40) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :param most_updates: largest ``gradient_steps``
    :return: arguments of MBPO and its siblings
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "gradient_steps": trial.suggest_int("gradient_steps", 1, most_updates, log=True),
        "model_train_freq": trial.suggest_categorical("model_train_freq", [125, 250, 500, 1000]),
        "rollouts_per_step": trial.suggest_categorical("rollouts_per_step", [50, 100, 200, 400]),
        # A constant length, because a schedule would depend on the length of the run
        "rollout_schedule": trial.suggest_int("rollout_schedule", 1, 15, log=True),
        # Larger than 0 but less than one real transition in a batch is not accepted
        "real_ratio": trial.suggest_categorical("real_ratio", [0.0, 0.05, 0.1, 0.25, 0.5]),
        **suggest_ensemble(trial),
    }


def suggest_pets(trial: Trial) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :return: arguments of PETS
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "model_train_freq": trial.suggest_categorical("model_train_freq", [50, 100, 200, 400]),
        "planner": trial.suggest_categorical("planner", ["cem", "icem", "mppi"]),
        "horizon": trial.suggest_int("horizon", 5, 60, log=True),
        "population_size": trial.suggest_int("population_size", 40, 400, log=True),
        **suggest_ensemble(trial),
    }


def suggest_dyna(trial: Trial) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :return: arguments of Dyna, but not of the algorithm that it trains
    """
    return {
        "imagined_steps_per_step": trial.suggest_int("imagined_steps_per_step", 10, 200, log=True),
        "max_episode_steps": trial.suggest_int("max_episode_steps", 10, 200, log=True),
        "model_train_freq": trial.suggest_categorical("model_train_freq", [100, 200, 400, 800]),
        "model_updates_per_step": trial.suggest_float("model_updates_per_step", 1.0, 20.0, log=True),
        **suggest_ensemble(trial),
    }


def suggest_ensemble(trial: Trial) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :return: size of the ensemble and of its networks
    """
    return {
        "ensemble_size": trial.suggest_categorical("ensemble_size", [3, 5, 7]),
        "model_layers": trial.suggest_int("model_layers", 2, 4),
        "model_units": trial.suggest_categorical("model_units", [64, 128, 200, 400]),
    }


def suggest_tdmpc(trial: Trial) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :return: arguments of TD-MPC and TD-MPC2
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [128, 256, 512]),
        "tau": trial.suggest_float("tau", 0.002, 0.05, log=True),
        "horizon": trial.suggest_int("horizon", 2, 5),
        "rho": trial.suggest_float("rho", 0.3, 1.0),
        "consistency_coef": trial.suggest_float("consistency_coef", 0.5, 40.0, log=True),
    }


def suggest_tdmpc2(trial: Trial) -> dict[str, Any]:
    """
    :param trial: a trial of Optuna
    :return: arguments of TD-MPC2
    """
    return {**suggest_tdmpc(trial), "entropy_coef": trial.suggest_float("entropy_coef", 1e-5, 1e-2, log=True)}


def convert(sampled: dict[str, Any], share_of_elites: float = 1.0) -> dict[str, Any]:
    """
    :param sampled: the parameters of a trial, by name
    :param share_of_elites: share of the members of the ensemble that are elites
    :return: arguments of the algorithm
    """
    arguments = dict(sampled)
    if "ensemble_size" in arguments:
        size, units = arguments.pop("ensemble_size"), arguments.pop("model_units")
        arguments["dynamics_kwargs"] = {
            "ensemble_size": size,
            "n_elites": round(share_of_elites * size),
            "net_arch": [units] * arguments.pop("model_layers"),
        }
    if "population_size" in arguments:
        arguments["planner_kwargs"] = {"population_size": arguments.pop("population_size")}
    return arguments


def _sample(
    suggest: Callable[[Trial], dict[str, Any]],
    convert: Converter,
    trial: Trial,
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
) -> dict[str, Any]:
    return convert(suggest(trial))


_SUGGEST: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "mbpo": suggest_mbpo,
    "mbtqc": suggest_mbpo,
    "mbcrossq": partial(suggest_mbpo, most_updates=10),  # CrossQ needs few updates
    "mbtd3": suggest_mbpo,
    "pets": suggest_pets,
    "dyna_ppo": suggest_dyna,
    "dyna_dqn": suggest_dyna,
    "tdmpc": suggest_tdmpc,
    "tdmpc2": suggest_tdmpc2,
}

CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(_SUGGEST, convert),
    **dict.fromkeys(("mbpo", "mbtqc", "mbcrossq", "mbtd3"), partial(convert, share_of_elites=5 / 7)),  # MBPO's
}
"""Functions that convert the parameters of a trial to arguments, by algorithm."""

SAMPLERS: dict[str, Sampler] = {algo: partial(_sample, suggest, CONVERTERS[algo]) for algo, suggest in _SUGGEST.items()}
"""The samplers that RL Zoo calls, by algorithm."""
