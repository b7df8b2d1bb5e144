"""How long a run of a model-based algorithm will take, measured before it starts."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_mbrl.common.accelerated import accelerated
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.rollouts import branched_rollouts

if TYPE_CHECKING:
    from sb3_mbrl.mbpo.model_based import ModelBased

N_TRANSITIONS = 2_048
"""A fit is measured on, and are imagined."""

N_REPEATS = 10
"""Updates, and gradient steps of the model."""


@dataclass(frozen=True)
class Costs:
    """
    Seconds on this machine, with the threads that it has now.

    :param update: of one update of the algorithm
    :param fit: of one gradient step of the model
    :param imagine: of one imagined transition
    """

    update: float
    fit: float
    imagine: float


def measure(algorithm: "ModelBased") -> Costs:
    """
    Let a copy do each kind of work on random data, which takes about a second. The algorithm, the environment and the random
    streams stay as they are.

    :param algorithm: with an environment
    :return: what the work costs
    """
    random = algorithm._random_state()
    try:
        return _measure(_copy(algorithm))
    finally:
        algorithm._restore_random_state(random)


def _copy(algorithm: "ModelBased") -> Any:
    """Of networks and arguments, with no data and nobody to report to."""
    file = io.BytesIO()
    algorithm.save(file)
    file.seek(0)
    # The least buffers that the measurement fits into: the algorithm's own may be all the memory there is
    small: dict[str, Any] = {"buffer_size": N_TRANSITIONS * algorithm.n_envs, "verbose": 0, "tensorboard_log": None}
    copy: Any = type(algorithm).load(file, device=algorithm.device, **small)
    copy.set_logger(Logger(folder=None, output_formats=[]))
    return copy


def _measure(copy: Any) -> Costs:
    data = _random_transitions(copy)
    copy.replay_buffer = _real_buffer(copy, data)
    first = {"max_gradient_steps": N_REPEATS}

    def imagine() -> None:
        with accelerated(copy.policy):
            branched_rollouts(
                copy.dynamics, copy._sample_imagined_action, data.observations, 1, copy.model_buffer.add, copy._generator
            )

    def update() -> None:
        with copy._mixed_batches(N_REPEATS):
            copy._update(N_REPEATS, copy.batch_size)

    fit = _seconds(lambda: copy.dynamics.fit(data, copy._generator, **copy.fit_kwargs | first), copy.device)
    return Costs(
        fit=fit / N_REPEATS,
        imagine=_seconds(imagine, copy.device) / N_TRANSITIONS,
        update=_seconds(update, copy.device) / N_REPEATS,
    )


def _random_transitions(copy: Any) -> Transitions:
    """Within the bounds of the observations, whatever they mean."""
    space: spaces.Box = copy.observation_space
    obs = np.clip(np.random.standard_normal((2, N_TRANSITIONS, *space.shape)), space.low, space.high)
    obs, next_obs = th.as_tensor(obs.reshape(2, N_TRANSITIONS, -1), dtype=th.float32, device=copy.device)
    action = th.rand(N_TRANSITIONS, copy.dynamics.action_dim, device=copy.device) * 2 - 1
    ended = th.zeros(N_TRANSITIONS, dtype=th.bool, device=copy.device)
    return Transitions(obs, action, next_obs, th.randn(N_TRANSITIONS, device=copy.device), ended)


def _real_buffer(copy: Any, data: Transitions) -> ReplayBuffer:
    buffer = ReplayBuffer(N_TRANSITIONS, copy.observation_space, copy.action_space, copy.device)
    shape = (N_TRANSITIONS, 1, -1)
    buffer.observations[:] = data.observations.cpu().numpy().reshape(buffer.observations.shape)
    buffer.next_observations[:] = data.next_observations.cpu().numpy().reshape(buffer.observations.shape)
    buffer.actions[:] = data.actions.cpu().numpy().reshape(shape)
    buffer.rewards[:] = data.rewards.cpu().numpy().reshape(N_TRANSITIONS, 1)
    buffer.full = True
    return buffer


def _seconds(work: Callable[[], Any], device: th.device) -> float:
    """Of the second of two times: the first one prepares caches and memory."""
    work()
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.synchronize(device)


def forecast(algorithm: "ModelBased", total_timesteps: int, costs: Costs) -> str | None:
    """
    :param algorithm: that is about to learn
    :param total_timesteps: environment steps at which it will stop
    :param costs: of its work
    :return: how long it will take, and for what; None: nothing will be learned, or how often is not known
    """
    now, starts = algorithm.num_timesteps, algorithm.learning_starts
    learned = total_timesteps - max(now, starts)
    per_step = _updates_per_step(algorithm)
    if learned <= 0 or per_step is None:
        return None
    n_updates = int(per_step * learned)
    lengths = [algorithm._rollout_length(int(step)) for step in np.linspace(max(now, starts), total_timesteps, 100)]
    n_imagined = int(algorithm.rollouts_per_step * learned * np.mean(lengths))
    seconds = n_updates * costs.update + n_imagined * costs.imagine
    fits = "fits of the model to their end, which are not counted"
    if algorithm.model_updates_per_step is not None:
        # The budget of the first fit goes back to the beginning
        n_fits = int(algorithm.model_updates_per_step * (total_timesteps - (now if algorithm.dynamics.is_fitted else 0)))
        seconds += n_fits * costs.fit
        fits = f"{n_fits} gradient steps of the model of {costs.fit * 1e3:.1f} ms"
    return (
        f"To step {total_timesteps}: about {_in_words(seconds)} beside the environment's own steps. {n_updates} updates of "
        f"{costs.update * 1e3:.1f} ms, {n_imagined} imagined transitions of {costs.imagine * 1e6:.1f} us, {fits}."
    )


def _updates_per_step(algorithm: "ModelBased") -> float | None:
    if algorithm.gradient_steps < 0:
        return 1.0  # SB3: as many as there were steps
    train_freq: Any = algorithm.train_freq
    if train_freq.unit is not TrainFrequencyUnit.STEP:
        return None  # of episodes, whose length nobody knows
    return algorithm.gradient_steps / (train_freq.frequency * algorithm.n_envs)


def _in_words(seconds: float) -> str:
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
