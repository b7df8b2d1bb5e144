"""
TD-MPC2 from images: the actions push a white dot, which has to reach the grey dot in the middle.

Three frames are stacked, because a single frame does not show in which direction the dot moves. During training, TD-MPC2
shifts the images at random.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_mbrl import TDMPC2

SIZE = 40


class Dot(gym.Env):
    """A dot, seen from above, that is rewarded for being near the middle."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-0.8, 0.8, 2), np.zeros(2)
        return self._image(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.velocity = 0.8 * self.velocity + 0.1 * action
        self.position = np.clip(self.position + self.velocity, -1, 1)
        return self._image(), float(1 - np.abs(self.position).mean()), False, False, {}

    def _image(self) -> np.ndarray:
        image = np.zeros((SIZE, SIZE, 1), np.uint8)
        for position, grey in ((np.zeros(2), 100), (self.position, 255)):
            row, column = ((position + 1) / 2 * (SIZE - 5)).round().astype(int)
            image[row : row + 5, column : column + 5] = grey
        return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2_000)
    args = parser.parse_args()

    env = VecFrameStack(make_vec_env(lambda: TimeLimit(Dot(), 30), n_envs=2, seed=0), n_stack=3)
    starts = min(500, args.timesteps // 2)
    # With gamma=None, the discount is computed from the time limit, which gives 0.95 as well
    model = TDMPC2(
        "CnnPolicy",
        env,
        gamma=0.95,
        learning_starts=starts,
        batch_size=32,
        buffer_size=20_000,
        pretrain_steps=100,
        seed=0,
    )
    model.learn(args.timesteps, progress_bar=True)
    print("mean and std of the return (at most 30):", evaluate_policy(model, model.get_env(), n_eval_episodes=10))


if __name__ == "__main__":
    main()
