"""
TD-MPC2 in four environments at once, whose episodes end when the pole falls.

In each step, the plans for all environments are made in one batch. With the default ``gradient_steps=-1``, there is one update
per environment step, counted over all environments.
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import TDMPC2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=6_000)
    args = parser.parse_args()

    env = make_vec_env("InvertedPendulum-v5", n_envs=4, seed=0)
    model = TDMPC2("MlpPolicy", env, learning_starts=min(1_000, args.timesteps // 2), seed=0)
    model.learn(args.timesteps, progress_bar=True)
    model.save("tdmpc2_inverted_pendulum")
    # Evaluate the prior alone: planning every action of episodes of a thousand steps would take long
    prior = TDMPC2.load("tdmpc2_inverted_pendulum", env=env, planner="none")
    print("mean and std of the return of the prior:", evaluate_policy(prior, env, n_eval_episodes=4))


if __name__ == "__main__":
    main()
