"""
Offline: from a fixed dataset of medium quality, is a policy better for the model's uncertainty being punished?

    python -m benchmarks.offline --env Hopper-v5 --seeds 0 1 2
    python -m benchmarks.offline --env Pendulum-v1 --seeds 0 1 2

SAC, stopped early, is the behaviour policy; what it does, stochastically, is the dataset. A model is fitted to it, and PPO
or SAC trained in the model, with and without a penalty on its uncertainty. One CSV an environment, penalty and seed in
``results/offline/``: returns in the real environment over imagined steps. The last of them counts: without the environment
nobody could choose another.
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
    :param behaviour_steps: of SAC in the real environment, seed 0
    :param dataset: recorded transitions
    :param penalties: on the uncertainty
    :param max_episode_steps: of imagined episodes
    :param n_envs: imagined
    :param imagined_steps: of the algorithm
    :param algorithm: trained in the model
    :param algorithm_kwargs: its arguments
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
    """Trained once, seed 0, and kept."""
    path = RESULTS / "checkpoints" / f"behaviour_{env_id}_{steps}.zip"
    if not path.exists():
        SAC("MlpPolicy", env_id, seed=0, device="cpu").learn(steps).save(path)
    return SAC.load(path, device="cpu")


def real_return(policy: BaseAlgorithm, env_id: str, deterministic: bool = True) -> float:
    """Mean of ten episodes, from the same starts each time."""
    env = make_vec_env(env_id, n_envs=10, seed=10_000)
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=10, deterministic=deterministic)
    return float(mean)  # type: ignore[arg-type]


def train(env_id: str, task: Task, imagined: LearnedModelVecEnv, penalty: float, seed: int, behaviour_return: float) -> None:
    """One policy, in a model that was fitted."""
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of dataset, model and PPO")
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
