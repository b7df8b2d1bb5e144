"""A forecast of how long a run will take, from the pace of its first full round."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback


@dataclass(frozen=True)
class _Moment:
    """A moment of a run: its environment step, the time, and the seconds spent in each phase until then."""

    step: int
    time: float
    phases: Mapping[str, float]


class Forecast(BaseCallback):
    """
    Prints once in each ``learn`` how long the rest of it will take, from the pace of the first full round of training. The
    round begins after the first call of ``train``, whose fit may use the whole budget since the beginning, so that it
    contains one fit, one imagination and the updates in between, as all later rounds do.

    :param first_phase: the phase that marks the beginning of training, ``"fitting"`` or ``"updating"``
    :param n_steps: least number of environment steps in a round
    """

    model: Any  # a ModelBasedAlgorithm, which imports this file

    def __init__(self, first_phase: str, n_steps: int):
        super().__init__()
        self.first_phase = first_phase
        self.n_steps = n_steps

    def _on_training_start(self) -> None:
        self.begin: _Moment | None = None
        self.is_printed = False

    def _on_rollout_start(self) -> None:
        model = self.model
        if self.is_printed or model.num_timesteps <= model.learning_starts or self.first_phase not in model._seconds:
            return
        now = _Moment(model.num_timesteps, time.perf_counter(), model._seconds)
        if self.begin is None:
            self.begin = now
        elif now.step - self.begin.step >= self.n_steps:
            self._print(self.begin, now)
            self.is_printed = True

    def _on_step(self) -> bool:
        return True

    def _print(self, begin: _Moment, now: _Moment) -> None:
        spent = {phase: seconds - begin.phases.get(phase, 0.0) for phase, seconds in now.phases.items()}
        spent["everything else"] = now.time - begin.time - sum(spent.values())
        total = self.locals["total_timesteps"]
        n_rounds = (total - now.step) / (now.step - begin.step)
        left = {phase: seconds * n_rounds * self.model._growth(phase, begin.step, total) for phase, seconds in spent.items()}
        parts = ", ".join(f"{phase} {in_words(seconds)}" for phase, seconds in left.items())
        print(f"To step {total}: about {in_words(sum(left.values()))} ({parts}).")


def growth(schedule: Callable[[int], float], begin: int, now: int, total_timesteps: int) -> float:
    """
    :param schedule: an amount of work by environment step
    :param begin: an earlier environment step
    :param now: this environment step
    :param total_timesteps: the last environment step
    :return: the mean amount from now to the last step, relative to the mean amount from ``begin`` to now
    """
    before, after = (
        np.mean([schedule(int(step)) for step in np.linspace(*ends, 100)]) for ends in ((begin, now), (now, total_timesteps))
    )
    return float(after / before)


def in_words(n_seconds: float) -> str:
    """
    :param n_seconds: a duration
    :return: the duration in hours, minutes or seconds, as a text
    """
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if n_seconds >= 1.5 * length:
            return f"{n_seconds / length:.1f} {unit}"
    return f"{n_seconds:.0f} seconds"
