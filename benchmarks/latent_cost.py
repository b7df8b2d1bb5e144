"""
How many seconds do a plan and an update of TD-MPC2 take?

    python -m benchmarks.latent_cost --model-size 1 --threads 2
    python -m benchmarks.latent_cost --model-size small --threads 1 --envs 8

Prints one line of JSON, measured on random numbers with the shapes of cheetah-run. ``benchmarks/peers_tdmpc2.py`` prints the
same for the official code; run both in turns and quote the ratio. With ``--envs``, it plans for that many environments at once
and then for each of them alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl import TDMPC2
from sb3_mbrl.acceleration import keep_freed_memory

OBS_DIM, ACTION_DIM, EPISODE_LENGTH = 17, 6, 500


class Noise(gym.Env):
    """An environment that returns random numbers with the shapes of cheetah-run."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return self._observe(), float(self.np_random.normal()), False, self.t == EPISODE_LENGTH, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(size=OBS_DIM).astype(np.float32)


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """
    :param work: the function to time
    :param repeats: number of timed calls, after three that are not timed
    :return: the median of the seconds
    """
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", default="1", help="small, or the size in millions of parameters")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--envs", type=int, default=1)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    keep_freed_memory()
    size = int(args.model_size) if args.model_size.isdigit() else args.model_size
    model = TDMPC2("MlpPolicy", Noise(), gamma=0.99, learning_starts=600, model_size=size, seed=0, device="cpu")
    model.learn(600)
    obs = np.random.default_rng(0).normal(size=(args.envs, OBS_DIM)).astype(np.float32)
    state: Any = None

    def plan() -> None:
        nonlocal state
        _, state = model.predict(obs, state)

    measured = {"seconds_per_plan": median_seconds(plan, args.repeats)}
    if args.envs > 1:
        alone = median_seconds(lambda: [model.predict(row) for row in obs], args.repeats)
        measured |= {"seconds_alone": alone, "ratio": measured["seconds_per_plan"] / alone}
    model.policy.set_training_mode(True)
    measured["seconds_per_update"] = median_seconds(
        lambda: model._update(model.replay_buffer.sample(model.batch_size)), args.repeats
    )
    about = {"library": "sb3_mbrl", "threads": args.threads, "model_size": size, "envs": args.envs}
    print(json.dumps(about | {name: round(value, 4) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
