"""
Learning curves: one CSV per algorithm, environment and seed in ``benchmarks/results/``.

    python -m benchmarks.curves --algo mbpo --env Hopper-v5 --seeds 0 1 2 --steps 15000 --jobs 2
    python -m benchmarks.curves --algo sac --env Hopper-v5 --seeds 0 1 2 --steps 15000
    python -m benchmarks.curves --algo pets --env Pendulum-v1 --seeds 0 1 2 --steps 2000 --eval-freq 200
    python -m benchmarks.curves --algo tdmpc2 --env dmc-walker-walk --seeds 0 --steps 50000 --eval-freq 5000

``mbpo`` and all that have values in ``sb3_mbrl/zoo`` take them, ``mbcrossq-utd1`` and ``-utd4`` MBCrossQ's with that many
updates per step; ``ppo-zoo`` and ``dqn-zoo`` take RL Zoo's; ``tdmpc``, ``tdmpc2``, ``sac`` and ``dqn`` have their defaults,
``tdmpc2-4envs`` in four environments;
``sac-utd`` is SAC with MBPO's update-to-data ratio, warm-up and target entropy: what the model adds is the gap between
``mbpo`` and ``sac-utd``.
Each job is one process with one thread. The steps count everything, random warm-up included; an evaluation is the mean
over deterministic episodes on an environment of its own. An interrupted run goes on from its last checkpoint.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

import gymnasium as gym
import mujoco
import stable_baselines3
import torch as th
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

import sb3_mbrl
from benchmarks import dm_control
from sb3_mbrl import MBPO, MBTD3, MBTQC, PETS, TDMPC, TDMPC2, Dyna, MBCrossQ
from sb3_mbrl.common.checkpoints import ExactCheckpointCallback, ExactCheckpoints
from sb3_mbrl.zoo import load_env_kwargs, load_hyperparams

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = "env_steps,wall_seconds,cpu_seconds,return_mean,return_std"
TUNED: dict[str, Any] = {
    "mbpo": MBPO,
    "mbtqc": MBTQC,
    "mbcrossq": MBCrossQ,
    "mbtd3": MBTD3,
    "pets": PETS,
    "dyna-ppo": Dyna,
    "dyna-dqn": Dyna,
}
"""With values in the zoo."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {f"mbcrossq-utd{n}": ("mbcrossq", {"gradient_steps": n}) for n in (1, 4)}
"""Those values, some of them replaced."""

INNER: dict[str, Any] = {"dyna-ppo": PPO, "dyna-dqn": DQN}
"""What Dyna trains in its model."""

RL_ZOO: dict[str, dict[str, Any]] = {
    "ppo-zoo": {"n_steps": 1024, "gamma": 0.9, "gae_lambda": 0.95, "learning_rate": 1e-3, "clip_range": 0.2},
    "dqn-zoo": {
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1_000,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
}
"""RL Zoo's values: of PPO for Pendulum-v1 (without gSDE) in four environments, of DQN for CartPole-v1."""

ALGORITHMS: dict[str, Any] = {
    **TUNED,
    **{variant: TUNED[algo] for variant, (algo, _) in VARIANTS.items()},
    "ppo-zoo": PPO,
    "dqn-zoo": DQN,
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
    "tdmpc2-4envs": TDMPC2,
    "sac": SAC,
    "sac-utd": SAC,
    "dqn": DQN,
}
N_ENVS = {"ppo-zoo": 4, "tdmpc2-4envs": 4}
"""Environments side by side, where there are more than one."""

SHARED_WITH_SAC = ("learning_starts", "gradient_steps", "target_entropy")


def upright(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """For InvertedPendulum, whose own reward, 1 until it falls, is the same for all plans that do not."""
    return 1 - next_obs[:, 0] ** 2 - 10 * next_obs[:, 1] ** 2


REWARDS = {"InvertedPendulum-v5": upright}
"""What PETS plans for, which its paper gives it too. The returns of the curves are the environment's."""


def hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    :param algo: a key of ``ALGORITHMS``
    :param env_id: Gymnasium id
    :return: what differs from the defaults of the algorithm
    """
    algo, replaced = VARIANTS.get(algo, (algo, {}))
    if algo in TUNED:
        reward = {"reward_fn": REWARDS[env_id]} if algo == "pets" and env_id in REWARDS else {}
        inner = {"algorithm_class": INNER[algo]} if algo in INNER else {}
        return {**load_hyperparams(algo.replace("-", "_"), env_id), **reward, **inner, **replaced}
    tuned = load_hyperparams("mbpo", env_id) if algo == "sac-utd" else {}
    if algo in RL_ZOO:
        return {"policy": "MlpPolicy", **RL_ZOO[algo]}
    return {"policy": "MlpPolicy", **{key: tuned[key] for key in SHARED_WITH_SAC if key in tuned}}


def make_env(env_id: str, seed: int, n_envs: int = 1) -> VecEnv:
    """As the hyperparameters are tuned for."""
    dm_control.register(env_id)
    return make_vec_env(env_id, n_envs, seed=seed, env_kwargs=load_env_kwargs("mbpo", env_id))


class CurveCallback(BaseCallback):
    """
    Appends an evaluation to the CSV every ``eval_freq`` environment steps.

    :param path: the CSV, header written
    :param env_id: environment to evaluate on
    :param eval_freq: environment steps
    :param n_episodes: per evaluation
    :param spent: wall and CPU seconds of earlier parts of this run
    """

    def __init__(self, path: pathlib.Path, env_id: str, eval_freq: int, n_episodes: int, spent: tuple[float, float]):
        super().__init__()
        self.path, self.eval_freq, self.n_episodes = path, eval_freq, n_episodes
        # Side by side: a planner plans for all of them at once
        self.eval_env = make_env(env_id, seed=10_000, n_envs=n_episodes)
        self.last = 0
        self.wall, self.cpu = time.perf_counter() - spent[0], time.process_time() - spent[1]

    def _on_rollout_start(self) -> None:
        # Here the last transition is stored and trained on; on_step would come before both
        self.evaluate()

    def evaluate(self) -> None:
        """Does nothing where no evaluation is due."""
        steps = self.model.num_timesteps
        if steps == self.last or steps % self.eval_freq:
            return
        self.last = steps
        start, start_cpu = time.perf_counter(), time.process_time()
        mean, std = evaluate_policy(self.model, self.eval_env, self.n_episodes)
        with open(self.path, "a") as file:
            wall, cpu = start - self.wall, start_cpu - self.cpu
            file.write(f"{steps},{wall:.1f},{cpu:.1f},{mean:.2f},{std:.2f}\n")
        # The time of evaluations is not the algorithm's
        self.wall += time.perf_counter() - start
        self.cpu += time.process_time() - start_cpu

    def _on_step(self) -> bool:
        return True


def header(args: argparse.Namespace) -> str:
    """What a reader needs to run the curve again."""
    about = {
        "command": f"--algo {args.algo} --env {args.env} --seeds {args.seeds[0]} --steps {args.steps}",
        "hyperparams": {name: getattr(value, "__name__", value) for name, value in hyperparams(args.algo, args.env).items()},
        "eval_episodes": args.eval_episodes,
        "processor": _processor(),
        "threads": th.get_num_threads(),
        "python": platform.python_version(),
        "sb3_mbrl": sb3_mbrl.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "mujoco": mujoco.__version__,
    }
    return f"# {json.dumps(about)}\n{COLUMNS}\n"


def _processor() -> str:
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def run_one(args: argparse.Namespace) -> None:
    """One curve, in this process, with one thread; goes on where an interrupted one stopped."""
    th.set_num_threads(1)
    seed = args.seeds[0]
    name = f"{args.algo}_{args.env}_{seed}"
    path, checkpoints = RESULTS / f"{name}.csv", RESULTS / "checkpoints" / name
    env, spent = make_env(args.env, seed, n_envs=N_ENVS.get(args.algo, 1)), (0.0, 0.0)
    model: BaseAlgorithm
    algorithm = ALGORITHMS[args.algo]
    if checkpoints.exists() and path.exists():
        model = algorithm.load_checkpoint(checkpoints, env=env, device="cpu")
        lines = path.read_text().splitlines()
        # Evaluations after the checkpoint will be made again
        kept = [row for row in lines if not row[0].isdigit() or int(row.split(",")[0]) <= model.num_timesteps]
        path.write_text("\n".join(kept) + "\n")
        last = kept[-1].split(",") if kept[-1][0].isdigit() else ["0", "0", "0"]
        kept_steps, spent = int(last[0]), (float(last[1]), float(last[2]))
    else:
        model = algorithm(env=env, seed=seed, device="cpu", **hyperparams(args.algo, args.env))
        RESULTS.mkdir(exist_ok=True)
        kept_steps = 0
        path.write_text(header(args))
    curve = CurveCallback(path, args.env, args.eval_freq, args.eval_episodes, spent)
    curve.last = kept_steps
    callbacks: list[BaseCallback] = [curve]
    if isinstance(model, ExactCheckpoints):
        callbacks.append(ExactCheckpointCallback(args.checkpoint_freq, checkpoints, verbose=2))
    # In one piece: schedules follow the progress of the whole run
    model.learn(args.steps - model.num_timesteps, callback=callbacks, log_interval=1_000_000, reset_num_timesteps=False)
    curve.evaluate()
    print(f"{name}: step {model.num_timesteps}", flush=True)
    shutil.rmtree(checkpoints, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=sorted(ALGORITHMS), required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--eval-freq", type=int, default=500)
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--checkpoint-freq", type=int, default=1_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    args = parser.parse_args()
    if len(args.seeds) == 1:
        run_one(args)
        return
    waiting = list(args.seeds)
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            own = ["--seeds", str(waiting.pop(0))]
            common = ["--algo", args.algo, "--env", args.env, "--steps", str(args.steps)]
            common += ["--eval-freq", str(args.eval_freq), "--eval-episodes", str(args.eval_episodes)]
            common += ["--checkpoint-freq", str(args.checkpoint_freq)]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            running.append(subprocess.Popen([sys.executable, "-m", "benchmarks.curves", *common, *own], env=env))
        running[0].wait()
        running = [process for process in running if process.poll() is None]


if __name__ == "__main__":
    main()
