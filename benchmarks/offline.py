"""
Offline: from a fixed dataset of medium quality, is a policy better for the model's uncertainty being punished?

    python -m benchmarks.offline --env Hopper-v5 --behaviour-steps 50000 --dataset 20000 --penalties 0 1 5 --seeds 0 1 2

SAC, stopped early, is the behaviour policy; what it does, stochastically, is the dataset. A model is fitted to it, and SAC
with its defaults trained in the model, for each penalty anew. One CSV an environment, penalty and seed in
``results/offline/``: returns in the real environment over updates in the model. The last of them counts: without the
environment nobody could choose another.
"""

import argparse
import json
import time

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.curves import RESULTS
from sb3_mbrl import LearnedModelVecEnv
from sb3_mbrl.envs import collect

OFFLINE = RESULTS / "offline"


def behaviour_policy(env_id: str, steps: int) -> SAC:
    """Trained once, seed 0, and kept."""
    path = RESULTS / "checkpoints" / f"behaviour_{env_id}_{steps}.zip"
    if not path.exists():
        SAC("MlpPolicy", env_id, seed=0, device="cpu").learn(steps).save(path)
    return SAC.load(path, device="cpu")


def real_return(policy: SAC, env_id: str, deterministic: bool = True) -> float:
    """Mean of ten episodes, from the same starts each time."""
    env = make_vec_env(env_id, n_envs=10, seed=10_000)
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=10, deterministic=deterministic)
    return float(mean)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--behaviour-steps", type=int, required=True)
    parser.add_argument("--dataset", type=int, default=20_000, help="recorded transitions")
    parser.add_argument("--penalties", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--horizon", type=int, default=5, help="of imagined episodes, in steps")
    parser.add_argument("--n-envs", type=int, default=100)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--updates-per-step", type=int, default=20, help="of all imagined environments")
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    th.set_num_threads(1)
    OFFLINE.mkdir(parents=True, exist_ok=True)
    behaviour = behaviour_policy(args.env, args.behaviour_steps)
    behaviour_return = real_return(behaviour, args.env, deterministic=False)
    for seed in args.seeds:
        np.random.seed(seed)
        th.manual_seed(seed)
        recorded = collect(args.env, args.dataset, behaviour, seed)
        for penalty in args.penalties:
            run(args, seed, penalty, recorded, behaviour_return)


def run(args: argparse.Namespace, seed: int, penalty: float, recorded: list, behaviour_return: float) -> None:
    """One policy in one model."""
    start = time.process_time()
    imagined = LearnedModelVecEnv.from_dataset(
        recorded,
        args.env,
        n_envs=args.n_envs,
        horizon=args.horizon,
        uncertainty_penalty=penalty,
        seed=seed,
        device="cpu",
    )
    sac = SAC("MlpPolicy", imagined, gradient_steps=args.updates_per_step, seed=seed, device="cpu")
    about = {**vars(args), "seeds": [seed], "penalties": [penalty], "behaviour_return": round(behaviour_return, 1)}
    path = OFFLINE / f"{args.env}_{penalty:g}_{seed}.csv"
    path.write_text(f"# {json.dumps(about)}\nupdates,cpu_seconds,return_mean\n")
    for _ in range(args.points):
        sac.learn(args.n_envs * args.updates // (args.updates_per_step * args.points), reset_num_timesteps=False)
        row = f"{sac._n_updates},{time.process_time() - start:.0f},{real_return(sac, args.env):.1f}"
        with open(path, "a") as file:
            file.write(row + "\n")
        print(path.stem, row, flush=True)


if __name__ == "__main__":
    main()
