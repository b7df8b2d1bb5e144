"""
Train MBPO in your own environment, with its reward and its termination as functions.

If you pass both functions, the model only has to learn the next observation. They are written in PyTorch and take batches of
raw observations and of actions in the scale of the environment.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import MBPO


class Cart(gym.Env[np.ndarray, np.ndarray]):
    """A cart on a track of 4 m, pushed by up to 2 N, has to stay in the middle. The observation is its position and speed."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-1.5, -0.5], [1.5, 0.5]).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        position, speed = self.state
        speed = speed + 0.1 * float(action[0])
        self.state = np.array([position + 0.1 * speed, speed], dtype=np.float32)
        fallen = abs(self.state[0]) > 2.0
        return self.state.copy(), float(1.0 - self.state[0] ** 2 - 0.01 * action[0] ** 2), bool(fallen), False, {}


def reward(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return 1.0 - next_obs[:, 0] ** 2 - 0.01 * action[:, 0] ** 2


def fallen(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return next_obs[:, 0].abs() > 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2_000)
    args = parser.parse_args()

    model = MBPO(
        "MlpPolicy",
        TimeLimit(Cart(), max_episode_steps=100),
        learning_starts=200,
        gradient_steps=5,
        rollout_schedule=(500, 2_000, 1, 3),
        reward_fn=reward,
        termination_fn=fallen,
        seed=0,
    )
    model.learn(args.timesteps, progress_bar=True)
    print("mean and std of the return (100 is perfect):", evaluate_policy(model, model.get_env(), n_eval_episodes=10))


if __name__ == "__main__":
    main()
