"""
Learning curves: one CSV per algorithm, environment and seed in ``benchmarks/results/``.

    python -m benchmarks.curves --algo mbpo --env Hopper-v5 --seeds 0 1 2 --steps 15000 --jobs 2
    python -m benchmarks.curves --algo sac --env Hopper-v5 --seeds 0 1 2 --steps 15000
    python -m benchmarks.curves --algo pets --env Pendulum-v1 --seeds 0 1 2 --steps 2000 --eval-freq 200
    python -m benchmarks.curves --algo tdmpc2 --env dmc-walker-walk --seeds 0 --steps 50000 --eval-freq 5000

Algorithms of sb3_mbrl have the hyperparameters of ``sb3_mbrl/zoo``. Their variants replace what their names say:
``mbcrossq-utd1`` and ``-utd4`` the updates per step, ``mbpo-adaptive`` the rollout schedule, ``-published-fits`` the rule of
fits, ``-bfloat16`` the precision, ``tdmpc2-4envs`` the number of environments. ``ppo-zoo`` and ``dqn-zoo`` have RL Zoo's
hyperparameters, ``sac`` and ``dqn`` their defaults. ``sac-utd`` is SAC with MBPO's update-to-data ratio, warm-up and target
entropy, so that the gap between ``mbpo`` and ``sac-utd`` is the effect of the model. SAC makes its updates with the same fast
code as MBPO; the results are the same up to rounding.

Each job is one process. Steps include the random warm-up. An evaluation is the mean over deterministic episodes in a separate
environment, whose start states are drawn anew for each seed and evaluation. An interrupted run resumes from its last
checkpoint, and so does a finished run if more steps are requested. (DQN then explores again, because its schedule follows the
progress of the run.) A run that already has enough steps is skipped. A run without a checkpoint (PPO has none), or with other
hyperparameters than the current ones, is refused. The first lines of a CSV hold the command, the hyperparameters and the
versions; there is one such line for each time that they changed.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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
from sb3_mbrl.acceleration import keep_freed_memory
from sb3_mbrl.acceleration import sac as fused_sac
from sb3_mbrl.algorithms.checkpoints import ExactCheckpoints
from sb3_mbrl.callbacks import ExactCheckpointCallback
from sb3_mbrl.common.files import write_atomically
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
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
}
"""Algorithms that have hyperparameters in the zoo."""


class ResumableSAC(ExactCheckpoints, SAC):
    """SAC that resumes from checkpoints and makes its updates with the same fast code as MBPO."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        if fused_sac.supports(self):
            fused_sac.train(self, gradient_steps, batch_size)
        else:
            super().train(gradient_steps, batch_size)


class ResumableDQN(ExactCheckpoints, DQN):
    """DQN that resumes from checkpoints."""


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mbcrossq-utd1": ("mbcrossq", {"gradient_steps": 1}),
    "mbcrossq-utd4": ("mbcrossq", {"gradient_steps": 4}),
    "mbpo-adaptive": ("mbpo", {"rollout_schedule": {"max_length": 15, "tolerance": 0.1}}),
    "mbpo-published-fits": ("mbpo", {"model_updates_per_step": None, "fit_kwargs": {"patience_steps": 0}}),
    "mbpo-bfloat16": ("mbpo", {"precision": "bfloat16"}),
    "tdmpc2-4envs": ("tdmpc2", {}),
}
"""Variants of these algorithms: the hyperparameters that they replace."""

INNER: dict[str, Any] = {"dyna-ppo": PPO, "dyna-dqn": DQN}
"""The algorithms that Dyna trains in its model."""

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
"""RL Zoo's hyperparameters of PPO for Pendulum-v1 (without gSDE, in four environments) and of DQN for CartPole-v1."""

ALGORITHMS: dict[str, Any] = {
    **TUNED,
    **{variant: TUNED[algo] for variant, (algo, _) in VARIANTS.items()},
    "ppo-zoo": PPO,
    "dqn-zoo": ResumableDQN,
    "sac": ResumableSAC,
    "sac-utd": ResumableSAC,
    "dqn": ResumableDQN,
}
N_ENVS = {"ppo-zoo": 4, "tdmpc2-4envs": 4}
"""Number of parallel environments, if there is more than one."""

SHARED_WITH_SAC = ("learning_starts", "gradient_steps", "target_entropy")


def upright(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """A reward for InvertedPendulum, whose own reward of 1 until the pole falls is the same for all plans that keep it up."""
    return 1 - next_obs[:, 0] ** 2 - 10 * next_obs[:, 1] ** 2


REWARDS = {"InvertedPendulum-v5": upright}
"""Rewards that PETS is given to plan with, as in its paper. The returns of the curves are those of the environment."""


def hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    :param algo: a key of ``ALGORITHMS``
    :param env_id: Gymnasium id
    :return: the arguments that differ from the defaults of the algorithm
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
    """The environment with the arguments for which the hyperparameters are tuned."""
    dm_control.register(env_id)
    return make_vec_env(env_id, n_envs, seed=seed, env_kwargs=load_env_kwargs("mbpo", env_id))


class CurveCallback(BaseCallback):
    """
    Evaluates every ``eval_freq`` environment steps and writes the CSV. Its lines and the seconds that training took so far are
    stored as attributes of the model, ``curve`` and ``seconds_spent``. Checkpoints therefore contain them, and a resumed run
    has them all.

    :param path: the CSV
    :param env_id: id of the environment to evaluate in
    :param eval_freq: environment steps between two evaluations
    :param n_episodes: episodes per evaluation
    :param seed: seed of the run
    """

    def __init__(self, path: pathlib.Path, env_id: str, eval_freq: int, n_episodes: int, seed: int):
        super().__init__()
        self.path, self.eval_freq, self.n_episodes = path, eval_freq, n_episodes
        self.first_seed = 10_000_000 * (1 + seed)  # far from the seeds of training and of other runs
        # All episodes run in parallel, so that a planner plans for all of them at once
        self.eval_env = make_env(env_id, seed=self.first_seed, n_envs=n_episodes)

    def _on_training_start(self) -> None:
        self.clock = time.perf_counter(), time.process_time()

    def _on_rollout_start(self) -> None:
        # Here the last transition has been stored and trained on; on_step is called before both
        self.evaluate()

    def evaluate(self) -> None:
        """Evaluates and writes the CSV if an evaluation is due."""
        steps = self.model.num_timesteps
        if steps // self.eval_freq == _steps(self.model.curve[-1]) // self.eval_freq:
            return
        self._count_seconds()
        self.eval_env.seed(self.first_seed + steps)  # the same for a resumed run
        mean, std = evaluate_policy(self.model, self.eval_env, self.n_episodes)
        # The time of evaluations does not count
        self.clock = time.perf_counter(), time.process_time()
        wall, cpu = self.model.seconds_spent
        self.model.curve = [*self.model.curve, f"{steps},{wall:.1f},{cpu:.1f},{mean:.2f},{std:.2f}"]
        write_atomically(self.path, "\n".join([*self.model.curve, ""]).encode())

    def _on_step(self) -> bool:
        self._count_seconds()
        return True

    def _count_seconds(self) -> None:
        now = time.perf_counter(), time.process_time()
        spent = getattr(self.model, "seconds_spent", (0.0, 0.0))
        self.model.seconds_spent = tuple(sum(each) - before for *each, before in zip(spent, now, self.clock, strict=True))
        self.clock = now


def header(args: argparse.Namespace) -> str:
    """The line that a reader needs to reproduce the curve."""
    about = {
        "command": " ".join(_arguments(args, args.seeds[0])),
        "hyperparams": {name: getattr(value, "__name__", value) for name, value in hyperparams(args.algo, args.env).items()},
        "eval_episodes": args.eval_episodes,
        "processor": _processor(),
        "threads": th.get_num_threads(),
        "commit": _commit(),
        "python": platform.python_version(),
        "sb3_mbrl": sb3_mbrl.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
        "gymnasium": gym.__version__,
        "mujoco": mujoco.__version__,
    }
    return f"# {json.dumps(about)}"


def _commit() -> str | None:
    """The commit of the running code; None outside of a git checkout."""
    here = pathlib.Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return git.stdout.strip() or None


def _processor() -> str:
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _arguments(args: argparse.Namespace, seed: int) -> list[str]:
    """Command-line arguments of a run with one seed."""
    arguments = ["--algo", args.algo, "--env", args.env, "--seeds", str(seed), "--steps", str(args.steps)]
    arguments += ["--eval-freq", str(args.eval_freq), "--eval-episodes", str(args.eval_episodes)]
    return [*arguments, "--checkpoint-freq", str(args.checkpoint_freq), "--threads", str(args.threads)]


def _steps(row: str) -> int:
    """Steps in a line of a CSV; 0 for the lines before the numbers."""
    return int(row.split(",")[0]) if row[0].isdigit() else 0


def run_one(args: argparse.Namespace) -> None:
    """Runs one curve in this process, or resumes it."""
    th.set_num_threads(args.threads)
    seed = args.seeds[0]
    name = f"{args.algo}_{args.env}_{seed}"
    path, checkpoints = RESULTS / f"{name}.csv", RESULTS / "checkpoints" / name
    written = path.read_text().splitlines() if path.exists() else []
    if written and _steps(written[-1]) >= args.steps:
        print(f"{name}: skipped, since it already has {_steps(written[-1])} steps", flush=True)
        return
    env = make_env(args.env, seed, n_envs=N_ENVS.get(args.algo, 1))
    model: BaseAlgorithm
    algorithm = ALGORITHMS[args.algo]
    about = header(args)
    if any(checkpoints.glob("checkpoint-*")):
        model = algorithm.load_checkpoint(checkpoints, env=env, device="cpu")
        before = [line for line in model.curve if line.startswith("#")]
        began, now = (json.loads(line[2:])["hyperparams"] for line in (before[0], about))
        if began != now:
            sys.exit(
                f"{path} was made with {began}, the current hyperparameters are {now}. Remove its checkpoint to start again."
            )
        if about != before[-1]:
            model.curve = [*before, about, *model.curve[len(before) :]]
    elif written:
        sys.exit(f"{path} has {_steps(written[-1])} steps and no checkpoint to resume from. Remove it to start again.")
    else:
        model = algorithm(env=env, seed=seed, device="cpu", **hyperparams(args.algo, args.env))
        model.curve = [about, COLUMNS]
    RESULTS.mkdir(exist_ok=True)
    curve = CurveCallback(path, args.env, args.eval_freq, args.eval_episodes, seed)
    callbacks: list[BaseCallback] = [curve]
    if isinstance(model, ExactCheckpoints):
        callbacks.append(ExactCheckpointCallback(args.checkpoint_freq, checkpoints, verbose=2))
    # One call of learn, because schedules follow the progress of the whole run
    model.learn(args.steps - model.num_timesteps, callback=callbacks, log_interval=1_000_000, reset_num_timesteps=False)
    curve.evaluate()
    if isinstance(model, ExactCheckpoints):
        model.save_checkpoint(checkpoints)
    print(f"{name}: step {model.num_timesteps}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=sorted(ALGORITHMS), required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--eval-freq", type=int, default=500)
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--checkpoint-freq", type=int, default=1_000)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    args = parser.parse_args()
    if len(args.seeds) == 1:
        keep_freed_memory()
        run_one(args)
        return

    def run(seed: int) -> int:
        env = {**os.environ, **dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(args.threads))}
        return subprocess.run([sys.executable, "-m", "benchmarks.curves", *_arguments(args, seed)], env=env).returncode

    with ThreadPoolExecutor(args.jobs) as jobs:
        if any(jobs.map(run, args.seeds)):
            sys.exit("Some seeds failed; see their messages above.")


if __name__ == "__main__":
    main()
