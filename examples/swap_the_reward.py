"""
Learn the dynamics once, then plan for other rewards without further training.

PETS learns Pendulum-v1, whose reward is for standing upright. With the learned model, plans then make the pendulum stand, lean
to one side and to the other, hang, and turn, for 80 steps each within one long episode. Each of these tasks is a reward
function. ``swap_the_reward.png`` shows the angle.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import PETS, MPCPolicy
from sb3_mbrl.common.types import RewardFn

N_EPISODES = 4
LEAN = np.radians(20.0)  # torques of Pendulum-v1 hold the rod up to 24 degrees away from upright


# An observation holds the cosine and the sine of the angle from upright, and the velocity
def lean(target: float) -> RewardFn:
    def reward(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        return -((th.atan2(next_obs[:, 1], next_obs[:, 0]) - target) ** 2) - 0.1 * next_obs[:, 2] ** 2

    return reward


def hang(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -next_obs[:, 0] - 0.01 * next_obs[:, 2] ** 2


def turn(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -next_obs[:, 2]


TASKS: dict[str, RewardFn | None] = {
    "its own reward": None,
    "lean left": lean(LEAN),
    "lean right": lean(-LEAN),
    "hang": hang,
    "turn backwards": turn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=80, help="steps of each task")
    args = parser.parse_args()

    model = PETS("MPCPolicy", "Pendulum-v1", horizon=15, dynamics_kwargs={"net_arch": (100, 100)}, seed=0)
    model.learn(args.timesteps, progress_bar=True)

    env = make_vec_env(lambda: gym.make("Pendulum-v1", max_episode_steps=1_000), n_envs=N_EPISODES, seed=1)
    obs, angles = env.reset(), []
    print(f"{'':15} {'angle':>6} {'its std':>8} {'velocity':>9}   (last quarter of {args.steps} steps)")
    for name, reward_fn in TASKS.items():
        policy = MPCPolicy(model, planner="icem", horizon=25, reward_fn=reward_fn)
        state, velocities = None, []
        for _ in range(args.steps):
            action, state = policy.predict(obs, state, deterministic=True)
            obs, *_ = env.step(action)
            angles.append(np.degrees(np.arctan2(obs[:, 1], obs[:, 0])) % 360)
            velocities.append(obs[:, 2])
        last = np.radians(np.stack(angles[-args.steps // 4 :]))
        mean = np.angle(np.exp(1j * last).mean())  # circular mean: angles jump from 360 to 0
        spread = np.angle(np.exp(1j * (last - mean))).std()
        velocity = np.mean(velocities[-args.steps // 4 :])
        print(f"{name:15} {np.degrees(mean):5.0f}° {np.degrees(spread):7.0f}° {velocity:9.2f}")

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot((np.stack(angles) + 90) % 360 - 90, ".", markersize=2)
    for i, name in enumerate(TASKS):
        axes.axvline(i * args.steps, color="tab:gray", linewidth=0.8)
        axes.text((i + 0.5) * args.steps, 280, name, ha="center")
    axes.set(xlabel="step", ylabel="angle from upright (degrees)", ylim=(-90, 270), yticks=[-90, 0, 90, 180, 270])
    figure.savefig("swap_the_reward.png", dpi=100)
    print("swap_the_reward.png: the angle of each pendulum")


if __name__ == "__main__":
    main()
