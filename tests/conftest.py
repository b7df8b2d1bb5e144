"""Every test: one torch thread, no screen, the same examples from hypothesis on every run."""

import math
import os
from collections.abc import Callable, Iterator

# Before anything imports pyplot
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch as th
from hypothesis import settings
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import acceleration
from tests.fake_device import FakeDevice, fake_device

# `make test` runs two processes on two cores; results must not depend on how many threads sum
th.set_num_threads(1)

# Neither a slow machine nor luck may decide whether a test passes
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


class Clock:
    """Goes on by a millisecond at each look, and when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that planners, policies and algorithms see."""
    clock = Clock()
    for module in ("planning.planner", "mpc.planning_policy", "algorithms.base", "algorithms.forecast"):
        monkeypatch.setattr(f"sb3_mbrl.{module}.time", clock)
    return clock


@pytest.fixture
def not_accelerated() -> Iterator[None]:
    """Only plain code runs, that of PyTorch and Stable-Baselines3, because faster code rounds otherwise."""
    with acceleration.disabled():
        yield


@pytest.fixture(params=[True, False], ids=["accelerated", "plain"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with acceleration and without."""
    monkeypatch.setattr(acceleration, "enabled", request.param)


@pytest.fixture
def best_return() -> Callable[..., float]:
    """``best_return(model, env_id, steps, enough)``, for reproductions: trains it."""

    def train(model: BaseAlgorithm, env_id: str, steps: int, enough: float = math.inf) -> float:
        """Best mean return of five deterministic episodes, evaluated every 250 steps; training ends where it is enough."""
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
