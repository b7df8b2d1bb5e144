"""
Train TD-MPC2, then act with it in three ways: by planning, by planning within a time limit, and by its policy prior alone. The
script prints the return and the time per action of each.
"""

import argparse
import time

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import TDMPC2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=3)
    args = parser.parse_args()

    starts = min(1_000, args.timesteps // 2)
    model = TDMPC2("MlpPolicy", "Pendulum-v1", learning_starts=starts, tensorboard_log="runs", seed=0)
    model.learn(args.timesteps, progress_bar=True)
    model.save("tdmpc2_pendulum")
    model = TDMPC2.load("tdmpc2_pendulum", env=model.get_env())

    # With a time limit, a plan makes as many iterations as fit into it, but at least one
    for name, max_plan_seconds, plans in (("planning", None, True), ("10 ms", 0.01, True), ("prior alone", None, False)):
        model.policy.max_plan_seconds, model.policy.plans = max_plan_seconds, plans
        start = time.perf_counter()
        mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=args.episodes)
        milliseconds = 1_000 * (time.perf_counter() - start) / (200 * args.episodes)
        print(f"{name:12} return {mean:7.1f} +- {std:5.1f}, {milliseconds:5.1f} ms an action")


if __name__ == "__main__":
    main()
