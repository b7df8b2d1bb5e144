"""Settings of all tests: one PyTorch thread, no screen, and the same examples from hypothesis in every run."""

import math
import os
from collections.abc import Callable, Iterator

# Must be set before anything imports pyplot
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch as th
from hypothesis import settings
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import acceleration
from tests.fake_device import FakeDevice, fake_device

# `make test` runs two processes on two cores, and sums depend on the number of threads
th.set_num_threads(1)

# The result of a test must depend neither on the speed of the machine nor on random examples
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


class Clock:
    """A clock that advances by a millisecond each time it is read; a test may also set ``now``."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replaces the clock that planners, policies and algorithms read."""
    clock = Clock()
    for module in ("planning.planner", "mpc.planning_policy", "algorithms.base", "algorithms.forecast"):
        monkeypatch.setattr(f"sb3_mbrl.{module}.time", clock)
    return clock


@pytest.fixture
def not_accelerated() -> Iterator[None]:
    """Turns acceleration off, because the plain code of PyTorch and Stable-Baselines3 rounds differently."""
    with acceleration.disabled():
        yield


@pytest.fixture(params=[True, False], ids=["accelerated", "plain"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test twice, with and without acceleration."""
    monkeypatch.setattr(acceleration, "enabled", request.param)


@pytest.fixture
def best_return() -> Callable[..., float]:
    """A function ``best_return(model, env_id, steps, enough)`` that trains a model, for tests of reproductions."""

    def train(model: BaseAlgorithm, env_id: str, steps: int, enough: float = math.inf) -> float:
        """Best mean return of five deterministic episodes, evaluated every 250 steps; training stops above ``enough``."""
        stop = StopTrainingOnRewardThreshold(enough)
        env = make_vec_env(env_id, 5, seed=1_000)
        callback = EvalCallback(env, callback_on_new_best=stop, eval_freq=250, verbose=0)
        model.learn(steps, callback=callback)
        return callback.best_mean_reward

    return train


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """The fake device ``"lazy"``, which counts what the host reads from it."""
    with fake_device(monkeypatch) as device:
        yield device
