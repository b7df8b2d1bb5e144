"""The models that imagined environments learn from real transitions."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.common.progress import showing
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import FitReport, check_fit_arguments, describe_epochs, fit
from sb3_mbrl.dynamics.learned_termination import make_termination


def unfitted_model(
    env: VecEnv | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    reward_fn: RewardFn | None,
    termination_fn: TerminationFn | str | None,
    dynamics_kwargs: Mapping[str, Any],
    fit_kwargs: Mapping[str, Any],
    seed: int | None,
    device: th.device | str,
) -> tuple[ProbabilisticEnsemble, th.Generator]:
    """
    :param env: the real environment, whose termination rule ``"auto"`` looks up; None: there is no environment
    :param observation_space: observation space of the model
    :param action_space: action space of the model
    :param reward_fn: the reward; learned if None
    :param termination_fn: the termination function, ``"auto"`` or ``"learned"``; None: the task never terminates
    :param dynamics_kwargs: further arguments of the model
    :param fit_kwargs: arguments of later fits, which are checked here already
    :param seed: seed of the model and its fits
    :param device: device of the model
    :return: the model, and the generator for its fit
    :raises ValueError: spaces or arguments are not supported
    """
    check_fit_arguments(fit_kwargs)
    check_spaces(observation_space, action_space)
    generator = th.Generator(device=get_device(device))
    generator.seed() if seed is None else generator.manual_seed(int(seed))
    dynamics = ProbabilisticEnsemble(
        observation_space,
        action_space,
        reward_fn=reward_fn,
        termination_fn=make_termination(termination_fn, env, observation_space, action_space, generator),
        generator=generator,
        device=device,
        **dynamics_kwargs,
    )
    inspect.signature(fit).bind(dynamics, None, **fit_kwargs)  # raises an error for unknown names
    return dynamics, generator


def fit_model(
    dynamics: ProbabilisticEnsemble,
    transitions: Transitions,
    generator: th.Generator,
    fit_kwargs: Mapping[str, Any],
    verbose: int,
    progress_bar: bool,
) -> FitReport:
    """
    :param dynamics: the model
    :param transitions: real transitions
    :param generator: source of the random numbers of the fit
    :param fit_kwargs: further arguments of the fit
    :param verbose: 1 for a line when the model is fitted, and every half minute until then
    :param progress_bar: show a bar instead
    :return: errors and cost of the fit
    """
    with showing(verbose, progress_bar) as show:
        report = dynamics.fit(transitions, generator, **{"on_epoch": describe_epochs(show), **fit_kwargs})
    if verbose >= 1:
        print(f"Model fitted: {report.in_words()}")
    return report
