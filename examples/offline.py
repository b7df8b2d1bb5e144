"""
Learn from a recorded dataset, without further steps in the environment.

The dataset is recorded by the behaviour policy, a half-trained SAC on the pendulum. A model is fitted to the dataset. SAC is
then trained in the model twice, equally long: once for the rewards that the model predicts, and once for these rewards minus
MOPO's penalty on the disagreement of the ensemble members. ``offline.png`` shows the returns of the policies in the real
environment.
"""

import argparse

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import LearnedModelVecEnv

ENV_ID = "Pendulum-v1"
N_ENVS = 100
UPDATES_PER_STEP = 5  # per step of all imagined environments together
N_POINTS = 10


def record(policy: SAC, n_steps: int, seed: int) -> dict[str, np.ndarray]:
    """
    :param policy: the policy, which acts stochastically
    :param n_steps: number of steps to record
    :param seed: seed of the environment
    :return: the dataset: arrays with the names of Gymnasium
    """
    env = gym.make(ENV_ID)
    rows = []
    obs, _ = env.reset(seed=seed)
    for _ in range(n_steps):
        action, _ = policy.predict(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def real_return(policy: SAC, seed: int, deterministic: bool = True) -> float:
    """Mean return of 20 episodes, which have the same start states in each call."""
    env = make_vec_env(ENV_ID, n_envs=20, seed=seed + 1_000)
    mean, _ = evaluate_policy(policy, env, n_eval_episodes=20, deterministic=deterministic)
    return float(mean)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2_500, help="training steps of the behaviour policy")
    parser.add_argument(
        "--recorded", type=int, default=150, help="steps in the dataset; from 300 on, the penalty makes no difference"
    )
    parser.add_argument("--penalty", type=float, default=50.0, help="reward per unit of disagreement")
    parser.add_argument("--max-episode-steps", type=int, default=20, help="length of imagined episodes")
    parser.add_argument("--updates", type=int, help="updates of SAC in the model; default: twice --timesteps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    updates = args.updates or 2 * args.timesteps

    behaviour = SAC("MlpPolicy", ENV_ID, seed=args.seed).learn(args.timesteps)
    dataset = record(behaviour, args.recorded, args.seed)
    returns = {"behaviour policy": [real_return(behaviour, args.seed, deterministic=False)]}

    for name, penalty in (("unpenalised model", 0.0), ("penalised model", args.penalty)):
        # With the same seed, the model is the same
        imagined = LearnedModelVecEnv.from_dataset(
            dataset,
            ENV_ID,
            n_envs=N_ENVS,
            max_episode_steps=args.max_episode_steps,
            uncertainty_penalty=penalty,
            dynamics_kwargs={"net_arch": [64, 64]},
            fit_kwargs={"max_gradient_steps": 2_000},
            seed=args.seed,
        )
        sac = SAC("MlpPolicy", imagined, gradient_steps=UPDATES_PER_STEP, seed=args.seed)
        returns[name] = []
        for _ in range(N_POINTS):
            steps = N_ENVS * updates // (UPDATES_PER_STEP * N_POINTS)
            sac.learn(steps, reset_num_timesteps=False, progress_bar=True)
            returns[name].append(real_return(sac, args.seed))

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in returns.items():
        print(f"{name:18} {values[-1]:8.1f}")
        if len(values) == 1:
            axes.axhline(values[0], color="gray", linestyle="--", label=name)
        else:
            axes.plot(np.arange(1, N_POINTS + 1) * updates / N_POINTS, values, label=name)
    axes.set(title=f"{ENV_ID}, from {args.recorded} recorded steps", xlabel="updates of SAC", ylabel="return in reality")
    axes.legend()
    figure.savefig("offline.png", dpi=100)
    print("offline.png: returns over updates")


if __name__ == "__main__":
    main()
