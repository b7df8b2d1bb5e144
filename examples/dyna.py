"""
Train PPO and DQN, unchanged, in a learned model.

``dyna.png`` shows the returns of evaluation episodes over real steps. If the model predicts a much higher return than the real
environment gives, a line says so: the policy is exploiting errors of the model.
"""

import argparse

from matplotlib.figure import Figure
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import Dyna
from sb3_mbrl.zoo import load_hyperparams

TASKS: dict[str, type[BaseAlgorithm]] = {"Pendulum-v1": PPO, "CartPole-v1": DQN}


class Curve(BaseCallback):
    """
    Records the mean return of evaluations over real steps.

    :param env_id: id of the environment to evaluate in
    :param every: real steps between two evaluations
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
            self.returns.append(float(mean))  # type: ignore[arg-type]
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3_000, help="steps in the real environment")
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    figure = Figure(figsize=(5 * len(args.envs), 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(args.envs), squeeze=False)[0]
    for axes, env_id in zip(all_axes, args.envs, strict=True):
        algorithm = TASKS[env_id]
        name = f"Dyna({algorithm.__name__})"
        hyperparams = load_hyperparams(f"dyna_{algorithm.__name__.lower()}", env_id)
        model = Dyna(algorithm, env=env_id, seed=args.seed, verbose=1, **hyperparams)
        curve = Curve(env_id, every=max(args.timesteps // 20, 1))
        model.learn(args.timesteps, callback=curve, log_interval=1_000)
        points = ", ".join(f"{step}: {value:.0f}" for step, value in zip(curve.steps, curve.returns, strict=True))
        print(f"{env_id} {name}: {points}", flush=True)
        axes.plot(curve.steps, curve.returns)
        axes.set(title=f"{env_id}, {name}", xlabel="real steps", ylabel="return")
    figure.savefig("dyna.png", dpi=100)
    print("dyna.png: returns over real steps")


if __name__ == "__main__":
    main()
