"""How long a run of a model-based algorithm will take, measured before it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger

from sb3_mbrl.acceleration.perceptron import accelerated
from sb3_mbrl.algorithms.costs import in_words, seconds, undone, updates_per_step
from sb3_mbrl.common.replay_buffers import keep_scaled_actions
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.dynamics.rollout_length import AdaptiveRolloutLength
from sb3_mbrl.dynamics.rollouts import branched_rollouts
from sb3_mbrl.mbpo.buffers import ModelReplayBuffer
from sb3_mbrl.tasks.termination_rules import NeverTerminates

if TYPE_CHECKING:
    from sb3_mbrl.mbpo.mixin import MBPOMixin

N_TRANSITIONS = 2_048
"""A fit is measured on, and are imagined."""

N_UPDATES = 10
N_GRADIENT_STEPS = 40
"""Gradient steps of the model that are timed; the fixed costs of a fit are worth one or two steps."""


@dataclass(frozen=True)
class Costs:
    """
    Seconds on this machine, with the threads that it has now.

    :param update: of one update of the algorithm
    :param fit: of one gradient step of the model, and of one of a learned termination if there is one
    :param imagine: of one imagined transition
    """

    update: float
    fit: float
    imagine: float


def measure(algorithm: "MBPOMixin") -> Costs:
    """
    Let the algorithm do each kind of work on random data, which takes a second or two, and undo it: networks, optimisers,
    random streams, the log and the data are afterwards what they were.

    :param algorithm: about to learn
    :return: what the work costs
    """
    n_fitted = algorithm.dynamics.n_fitted
    try:
        with undone(algorithm), _without_given_functions(algorithm.dynamics):
            return _measure(algorithm)
    finally:
        algorithm.dynamics.n_fitted = n_fitted


@contextmanager
def _without_given_functions(dynamics: ProbabilisticEnsemble) -> Iterator[None]:
    """They may not take states that were made up, or count their calls."""
    reward_fn, termination_fn = dynamics.reward_fn, dynamics.termination_fn
    dynamics.reward_fn = None
    if not isinstance(termination_fn, LearnedTermination):
        dynamics.termination_fn = NeverTerminates()
    try:
        yield
    finally:
        dynamics.reward_fn, dynamics.termination_fn = reward_fn, termination_fn


def _measure(algorithm: Any) -> Costs:
    data = _random_transitions(algorithm)
    algorithm._vec_normalize_env = None
    algorithm.replay_buffer = _real_buffer(algorithm, data)
    dynamics = algorithm.dynamics
    algorithm.model_buffer = ModelReplayBuffer(N_TRANSITIONS, dynamics.observation_dim, dynamics.action_dim, algorithm.device)
    algorithm._logger = Logger(folder=None, output_formats=[])
    # Nothing else ends it
    this_long = {"max_gradient_steps": N_GRADIENT_STEPS, "max_epochs": None, "patience": N_GRADIENT_STEPS}
    fit_kwargs = {**algorithm.fit_kwargs, **this_long, "on_epoch": None}

    def imagine() -> None:
        with accelerated(algorithm.policy):
            branched_rollouts(
                dynamics,
                algorithm._sample_imagined_action,
                data.observations,
                1,
                algorithm.model_buffer.add,
                algorithm._generator,
            )

    def update() -> None:
        with algorithm._mixed_batches(N_UPDATES):
            algorithm._update(N_UPDATES, algorithm.batch_size)

    fit = seconds(lambda: dynamics.fit(data, algorithm._generator, **fit_kwargs), algorithm.device)
    return Costs(
        fit=fit / N_GRADIENT_STEPS,
        imagine=seconds(imagine, algorithm.device) / N_TRANSITIONS,
        update=seconds(update, algorithm.device) / N_UPDATES,
    )


def _random_transitions(algorithm: Any) -> Transitions:
    """Within the bounds of the observations, whatever they mean."""
    space: spaces.Box = algorithm.observation_space
    obs = np.clip(np.random.standard_normal((2, N_TRANSITIONS, *space.shape)), space.low, space.high)
    obs, next_obs = th.as_tensor(obs.reshape(2, N_TRANSITIONS, -1), dtype=th.float32, device=algorithm.device)
    action = th.rand(N_TRANSITIONS, algorithm.dynamics.action_dim, device=algorithm.device) * 2 - 1
    # A learned termination is only fitted if there are terminations
    learned = isinstance(algorithm.dynamics.termination_fn, LearnedTermination)
    ended = (th.arange(N_TRANSITIONS, device=algorithm.device) % 8 == 0) & learned
    return Transitions(obs, action, next_obs, th.randn(N_TRANSITIONS, device=algorithm.device), ended)


def _real_buffer(algorithm: Any, data: Transitions) -> ReplayBuffer:
    """A buffer of the algorithm's class: a user's may sample in its own way, and return more than SB3's."""
    buffer: ReplayBuffer = algorithm.replay_buffer_class(
        N_TRANSITIONS, algorithm.observation_space, algorithm.action_space, algorithm.device, **algorithm.replay_buffer_kwargs
    )
    keep_scaled_actions(buffer)
    columns = (data.observations, data.next_observations, data.actions, data.rewards, data.terminated)
    for obs, next_obs, action, reward, done in zip(*(each.cpu().numpy()[:, np.newaxis] for each in columns), strict=True):
        buffer.add(obs, next_obs, action, reward, done, [{}])
    return buffer


def forecast(algorithm: "MBPOMixin", total_timesteps: int, costs: Costs | None = None) -> str | None:
    """
    :param algorithm: that is about to learn
    :param total_timesteps: environment steps at which it will stop
    :param costs: of its work; None: to be measured
    :return: how long it will take, and for what; None: nothing will be learned, or how often is not known
    """
    now, starts = algorithm.num_timesteps, algorithm.learning_starts
    learned = total_timesteps - max(now, starts)
    per_step = updates_per_step(algorithm)
    if learned <= 0 or per_step is None:
        return None
    costs = costs or measure(algorithm)
    n_updates = int(per_step * learned)
    schedule = algorithm._schedule
    if isinstance(schedule, AdaptiveRolloutLength):
        at_most, length = "at most ", float(schedule.max_length)
    else:
        at_most = ""
        length = np.mean([schedule(int(step)) for step in np.linspace(max(now, starts), total_timesteps, 100)]).item()
    n_imagined = int(algorithm.rollouts_per_step * learned * length)
    duration = n_updates * costs.update + n_imagined * costs.imagine
    fits = "fits of the model to their end, which are not counted"
    n_gradient_steps = _gradient_steps_of_fits(algorithm, total_timesteps)
    if n_gradient_steps is not None:
        duration += n_gradient_steps * costs.fit
        fits = f"at most {n_gradient_steps} gradient steps of the model of {costs.fit * 1e3:.1f} ms"
        if isinstance(algorithm.dynamics.termination_fn, LearnedTermination):
            fits += ", with those of the learned termination"
    return (
        f"To step {total_timesteps}: about {in_words(duration)} beside the environment's own steps. {n_updates} updates of "
        f"{costs.update * 1e3:.1f} ms, {at_most}{n_imagined} imagined transitions of {costs.imagine * 1e6:.1f} us, {fits}."
    )


def _gradient_steps_of_fits(algorithm: "MBPOMixin", total_timesteps: int) -> int | None:
    """At most; None: there is no limit."""
    now, starts = algorithm.num_timesteps, algorithm.learning_starts
    if "max_gradient_steps" in algorithm.fit_kwargs:  # of each fit
        n_fits = 1 + (total_timesteps - max(now, starts)) // algorithm.model_train_freq
        per_fit = algorithm.fit_kwargs["max_gradient_steps"]
        return None if per_fit is None else n_fits * per_fit
    if algorithm.model_updates_per_step is None:
        return None
    # The budget of the first fit goes back to the beginning
    return int(algorithm.model_updates_per_step * (total_timesteps - (now if algorithm.dynamics.is_fitted else 0)))
