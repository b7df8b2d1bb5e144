"""Tools for telling how long a run will take: work is timed, and then undone."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch as th
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import TrainFrequencyUnit


@contextmanager
def undone(algorithm: Any) -> Iterator[None]:
    """
    Restores the saved state and the in-memory state on exit.

    :param algorithm: the algorithm that works within the context
    """
    attributes, random = vars(algorithm).copy(), algorithm._random_state()
    generator = algorithm._generator.get_state()
    state_dicts, tensors = algorithm._get_torch_save_params()
    states = {name: deepcopy(recursive_getattr(algorithm, name).state_dict()) for name in state_dicts}
    values = {name: recursive_getattr(algorithm, name).detach().clone() for name in tensors}
    try:
        yield
    finally:
        vars(algorithm).clear()
        vars(algorithm).update(attributes)
        for name, state in states.items():
            recursive_getattr(algorithm, name).load_state_dict(state)
        for name, value in values.items():
            recursive_getattr(algorithm, name).data.copy_(value)
        algorithm._generator.set_state(generator)
        algorithm._restore_random_state(random)


def seconds(work: Callable[[], Any], device: th.device) -> float:
    """
    :param work: done twice: the first time is a warm-up
    :param device: the device that does it
    :return: wall time of the second time
    """
    work()
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.synchronize(device)


def updates_per_step(algorithm: Any) -> float | None:
    """
    :param algorithm: an off-policy algorithm of SB3
    :return: its updates per environment step; None: it counts episodes, whose length nobody knows
    """
    if algorithm.gradient_steps < 0:
        return 1.0  # SB3: as many as there were steps
    if algorithm.train_freq.unit is not TrainFrequencyUnit.STEP:
        return None
    return algorithm.gradient_steps / (algorithm.train_freq.frequency * algorithm.n_envs)  # type: ignore[no-any-return]


def in_words(n_seconds: float) -> str:
    """
    :param n_seconds: a span of time
    :return: the same in hours, minutes or seconds, as a text
    """
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if n_seconds >= 1.5 * length:
            return f"{n_seconds / length:.1f} {unit}"
    return f"{n_seconds:.0f} seconds"
