"""
Offline learning: does a penalty on the model's uncertainty improve a policy that is trained on a fixed dataset?

    python -m benchmarks.offline --env Hopper-v5 --seeds 0 1 2
    python -m benchmarks.offline --env Pendulum-v1 --seeds 0 1 2

The behaviour policy is a SAC that was stopped early; it acts stochastically to record the dataset. A model is fitted to the
dataset, and PPO or SAC is trained in the model, with and without a penalty on the uncertainty. ``results/offline/`` has one
CSV per environment, penalty and seed, with returns in the real environment over imagined steps. Only the last return counts,
because without the environment nobody could choose an earlier policy.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.curves import RESULTS
from sb3_mbrl import LearnedModelVecEnv
from sb3_mbrl.envs import collect

OFFLINE = RESULTS / "offline"
POINTS = 6


@dataclass(frozen=True)
class Task:
    """
    :param behaviour_steps: training steps of the behaviour policy in the real environment, with seed 0
    :param dataset: number of recorded transitions
    :param penalties: penalties on the uncertainty to compare
    :param max_episode_steps: length of imagined episodes
    :param n_envs: number of imagined environments
    :param imagined_steps: training steps of the algorithm in the model
    :param algorithm: the algorithm that is trained in the model
    :param algorithm_kwargs: arguments of the algorithm
    """

    behaviour_steps: int
    dataset: int
    penalties: Sequence[float]
    max_episode_steps: int
    n_envs: int
    imagined_steps: int
    algorithm: type[BaseAlgorithm]
    algorithm_kwargs: dict[str, Any]


TASKS = {
    "Hopper-v5": Task(
        behaviour_steps=50_000,
        dataset=20_000,
        penalties=(0.0, 10.0),
        max_episode_steps=500,
        n_envs=256,
        imagined_steps=2_400_000,
        algorithm=PPO,
        algorithm_kwargs={"n_steps": 64, "batch_size": 1024, "policy_kwargs": {"log_std_init": -1.0}},
    ),
    "Pendulum-v1": Task(
        behaviour_steps=2_500,
        dataset=150,
        penalties=(0.0, 50.0),
        max_episode_steps=20,
        n_envs=100,
        imagined_steps=100_000,
        algorithm=SAC,
        algorithm_kwargs={"gradient_steps": 5},
    ),
}


def behaviour_policy(env_id: str, steps: int) -> SAC:
    """The behaviour policy, which is trained once with seed 0 and then loaded from its file."""
    path = RESULTS / "checkpoints" / f"behaviour_{env_id}_{steps}.zip"
    if not path.exists():
        SAC("MlpPolicy", env_id, seed=0, device="cpu").learn(steps).save(path)
    return SAC.load(path, device="cpu")


def real_return(policy: BaseAlgorithm, env_id: str, deterministic: bool = True) -> float:
    """Mean return of ten episodes, which have the same start states in each call."""
    env = make_vec_env(env_id, n_envs=10, seed=10_000)
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=10, deterministic=deterministic)
    return float(mean)  # type: ignore[arg-type]


def train(env_id: str, task: Task, imagined: LearnedModelVecEnv, penalty: float, seed: int, behaviour_return: float) -> None:
    """Trains one policy in the fitted model and writes its CSV."""
    start = time.process_time()
    imagined.imagination.rules = replace(imagined.imagination.rules, uncertainty_penalty=penalty)
    imagined.seed(seed)
    model = task.algorithm("MlpPolicy", imagined, seed=seed, device="cpu", **task.algorithm_kwargs)  # type: ignore[call-arg]
    path = OFFLINE / f"{env_id}_{penalty:g}_{seed}.csv"
    about = {
        **vars(task),
        "algorithm": task.algorithm.__name__,
        "seed": seed,
        "penalty": penalty,
        "behaviour_return": round(behaviour_return, 1),
    }
    path.write_text(f"# {json.dumps(about)}\nimagined_steps,cpu_seconds,return_mean\n")
    for _ in range(POINTS):
        model.learn(task.imagined_steps // POINTS, reset_num_timesteps=False)
        row = f"{model.num_timesteps},{time.process_time() - start:.0f},{real_return(model, env_id):.1f}"
        with open(path, "a") as file:
            file.write(row + "\n")
        print(path.stem, row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=sorted(TASKS), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of dataset, model and policy")
    args = parser.parse_args()
    th.set_num_threads(1)
    OFFLINE.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.env]
    behaviour = behaviour_policy(args.env, task.behaviour_steps)
    behaviour_return = real_return(behaviour, args.env, deterministic=False)
    print("behaviour policy", round(behaviour_return, 1), flush=True)
    for seed in args.seeds:
        np.random.seed(seed)
        th.manual_seed(seed)
        recorded = collect(args.env, task.dataset, behaviour, seed)
        imagined = LearnedModelVecEnv.from_dataset(
            recorded, args.env, n_envs=task.n_envs, max_episode_steps=task.max_episode_steps, seed=seed, device="cpu"
        )
        for penalty in task.penalties:
            train(args.env, task, imagined, penalty, seed, behaviour_return)


if __name__ == "__main__":
    main()
