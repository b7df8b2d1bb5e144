"""
PDDM's planner (Nagabandi et al. 2019, https://arxiv.org/abs/1909.11652) on a hand with 24 actuators that turns a pen.

This example needs Gymnasium-Robotics: ``pip install -e '.[robotics]'``.

It uses the numbers of PDDM: three networks of 2 x 250, plans of 7 steps, and 700 candidates. These are filtered over time
(beta = 0.7; PDDM has 0.6 or 0.7 for hands) and weighted by their returns (kappa = 10, as for PDDM's cube; PDDM has 0.5 for the
valve and 20 for the two balls). As in PDDM, the reward is known, because it can be computed from the observation. There are
three differences: the networks are probabilistic and keep their weights between fits (PDDM trains them from scratch), all
candidates have the same noise (PDDM gives a tenth of them 0.3 times as much), and PDDM's own hands turn other objects.

Tested with Gymnasium-Robotics 1.4.2, Gymnasium 1.4.0 and MuJoCo 4.0.0.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl import PETS

try:
    import gymnasium_robotics
except ImportError as error:
    raise SystemExit("This example needs Gymnasium-Robotics: pip install -e '.[robotics]'") from error

gym.register_envs(gymnasium_robotics)
ENV_ID = "AdroitHandPen-v1"

# Indices in the observation, which has 45 numbers: 24 joints, the pen (position, velocities, direction), and the goal
PEN_HEIGHT, PEN_DIRECTION, DESIRED_DIRECTION, OFFSET = 26, slice(33, 36), slice(36, 39), slice(39, 42)


def reward(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Reward of ``adroit_pen.py``: distance and direction of the pen, bonuses if both are right, a penalty for dropping it."""
    distance = next_obs[:, OFFSET].norm(dim=1)
    similarity = (next_obs[:, PEN_DIRECTION] * next_obs[:, DESIRED_DIRECTION]).sum(dim=1)
    near = distance < 0.075
    bonus = 10.0 * (near & (similarity > 0.9)) + 50.0 * (near & (similarity > 0.95))
    return similarity - distance + bonus - 5.0 * (next_obs[:, PEN_HEIGHT] < 0.075)


def random_returns(env: VecEnv, n_episodes: int) -> np.ndarray:
    """Returns of uniform random actions."""
    returns: list[float] = []
    env.action_space.seed(0)
    env.reset()
    while len(returns) < n_episodes:
        _, _, _, infos = env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    return np.array(returns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=10, help="evaluation episodes for each mean return")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = PETS(
        "MPCPolicy",
        ENV_ID,
        planner="pddm",
        learning_starts=min(1_000, args.timesteps // 2),
        model_train_freq=500,
        reward_fn=reward,
        termination_fn=None,
        dynamics_kwargs={"ensemble_size": 3, "n_elites": 3, "net_arch": (250, 250)},
        seed=args.seed,
    )
    model.learn(args.timesteps, progress_bar=True)

    env = make_vec_env(ENV_ID, n_envs=min(5, args.episodes), seed=args.seed + 1_000)
    returns = random_returns(env, args.episodes)
    print(f"random actions: {returns.mean():8.1f} ± {returns.std():.1f}")
    mean, std = evaluate_policy(model, env, n_eval_episodes=args.episodes)
    print(f"PDDM's planner: {mean:8.1f} ± {std:.1f}")


if __name__ == "__main__":
    main()
