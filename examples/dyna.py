"""
Train PPO and DQN in a learned model, unmodified, and beside it in the environment itself with five times the real steps.

``dyna.png`` shows the returns of evaluation episodes over real steps. Where the model promises much more than
reality pays, a line says so: the policy has found errors of the model.
"""

import argparse
from typing import Any

from matplotlib.figure import Figure
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import Dyna

# Small, for tasks as small as these
ENSEMBLE = {"ensemble_size": 5, "n_elites": 5, "net_arch": (64, 64)}

TASKS: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "algorithm": PPO,
        # Of RL Zoo; 4 environments
        "plain": {"n_steps": 1024, "gamma": 0.9, "gae_lambda": 0.95, "learning_rate": 1e-3, "clip_range": 0.2},
        "n_envs": 4,
        # The same, in more and shorter imagined episodes
        "agent": {
            "n_steps": 50,
            "batch_size": 320,
            "gamma": 0.9,
            "gae_lambda": 0.95,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
        },
        "dyna": {
            "n_imagined_envs": 64,
            "horizon": 50,
            "learning_starts": 500,
            "model_train_freq": 200,
            "model_updates_per_step": 5,
        },
    },
    "CartPole-v1": {
        "algorithm": DQN,
        # Of RL Zoo
        "plain": {
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
        "n_envs": 1,
        "agent": {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "target_update_interval": 160,
            "train_freq": 16,
            "gradient_steps": 128,
            "exploration_fraction": 0.3,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
        "dyna": {
            "imagined_steps_per_step": 20,
            "horizon": 50,
            "learning_starts": 500,
            "model_train_freq": 200,
            "model_updates_per_step": 5,
        },
    },
}


class Curve(BaseCallback):
    """
    Returns over real steps.

    :param env_id: a new environment for the evaluation
    :param every: real steps
    """

    def __init__(self, env_id: str, every: int):
        super().__init__()
        self.env, self.every = make_vec_env(env_id, n_envs=5), every
        self.steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.every * (len(self.steps) + 1):
            self.env.seed(1_000)  # the same starts each time
            mean, _ = evaluate_policy(self.model, self.env, n_eval_episodes=10)
            self.steps.append(self.num_timesteps)
            self.returns.append(float(mean))
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--timesteps", type=int, default=3_000, help="real steps of Dyna; the algorithm alone takes five times"
    )
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    figure = Figure(figsize=(5 * len(args.envs), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(args.envs), squeeze=False)[0]
    for axes, env_id in zip(all_axes, args.envs, strict=True):
        task = TASKS[env_id]
        algorithm = task["algorithm"]
        dyna = Dyna(
            algorithm,
            "MlpPolicy",
            env_id,
            algorithm_kwargs=task["agent"],
            dynamics_kwargs=ENSEMBLE,
            seed=args.seed,
            verbose=1,
            **task["dyna"],
        )
        plain = algorithm("MlpPolicy", make_vec_env(env_id, task["n_envs"], seed=args.seed), seed=args.seed, **task["plain"])
        runs: list[tuple[str, BaseAlgorithm, int]] = [
            (f"Dyna({algorithm.__name__})", dyna, args.timesteps),
            (algorithm.__name__, plain, 5 * args.timesteps),
        ]
        for name, model, timesteps in runs:
            curve = Curve(env_id, every=max(timesteps // 20, 1))
            model.learn(timesteps, callback=curve, log_interval=None)  # type: ignore[call-arg]
            points = ", ".join(f"{step}: {value:.0f}" for step, value in zip(curve.steps, curve.returns, strict=True))
            print(f"{env_id} {name}: {points}", flush=True)
            axes.plot(curve.steps, curve.returns, label=name)
        axes.set(title=env_id, xlabel="real steps", ylabel="return")
        axes.legend()
    figure.savefig("dyna.png", dpi=100)
    print("dyna.png: returns over real steps")


if __name__ == "__main__":
    main()
