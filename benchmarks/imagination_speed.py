"""
How many transitions per second does a vector of learned environments imagine?

    python -m benchmarks.imagination_speed --envs 1024 --threads 2

Prints one line of JSON for MBPO's ensemble on Hopper-v5. ``benchmarks/peers.py mbrl-lib --imagine 1024`` prints the same for
mbrl-lib; run both in turns and quote the ratio. A step is the complete step that SB3 sees: it takes actions as NumPy arrays,
returns observations, rewards and infos, and resets episodes that have ended.
"""

import argparse
import json
import time

import numpy as np
import torch as th

from sb3_mbrl import LearnedModelVecEnv


def transitions_per_second(env: LearnedModelVecEnv, steps: int) -> tuple[float, float]:
    """
    :param env: learned environments
    :param steps: steps of all environments to time, after a tenth as many that are not timed
    :return: transitions per second of wall-clock time, and per second of CPU time
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (env.num_envs, *(env.action_space.shape or ()))).astype(np.float32)
    env.reset()
    for _ in range(steps // 10):
        env.step(actions)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        env.step(actions)
    return env.num_envs * steps / (time.perf_counter() - wall), env.num_envs * steps / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--uncertainty-penalty", type=float, default=0.0, help="if above 0, all elites are evaluated")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    env = LearnedModelVecEnv.from_env(
        "Hopper-v5",
        n_steps=1_000,
        seed=0,
        n_envs=args.envs,
        uncertainty_penalty=args.uncertainty_penalty,
        fit_kwargs={"max_epochs": 5},
        device="cpu",
    )
    env.seed(0)
    per_second, per_cpu_second = transitions_per_second(env, args.steps)
    measured = {"transitions_per_second": round(per_second), "transitions_per_cpu_second": round(per_cpu_second)}
    print(json.dumps({"library": "sb3_mbrl", "measured": "imagination"} | measured | vars(args)))


if __name__ == "__main__":
    main()
