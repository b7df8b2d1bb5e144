"""
Short plans with a terminal value: SAC's critic estimates the return after the horizon, and SAC's actor proposes plans.

A plan of five steps is too short to see that the pendulum must first swing away from upright in order to get there. The critic
of a briefly trained SAC knows this roughly, and the plan corrects the critic over its first five steps. Plans are made in the
true simulator, so that only the horizon limits them; ``examples/mpc.py`` does the same with a learned model.
"""

import argparse

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import MPCPolicy
from sb3_mbrl.dynamics import SimulatorModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=2_000, help="training steps of SAC")
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    sac = SAC("MlpPolicy", args.env, seed=args.seed)
    sac.learn(args.timesteps, progress_bar=True)

    model = SimulatorModel(args.env)
    policies = {
        f"SAC after {args.timesteps} steps": sac,
        f"plan of {args.horizon} steps": MPCPolicy(model, horizon=args.horizon),
        "  + SAC's critic": MPCPolicy(model, horizon=args.horizon, discount=sac.gamma, terminal_value=sac),
        "  + SAC's critic and actor": MPCPolicy(
            model, horizon=args.horizon, discount=sac.gamma, terminal_value=sac, actor=sac
        ),
    }
    for name, policy in policies.items():
        env = make_vec_env(
            args.env, n_envs=min(5, args.episodes), seed=args.seed + 1_000
        )  # the same start states for each policy
        mean, std = evaluate_policy(policy, env, n_eval_episodes=args.episodes)
        print(f"{name:28} {mean:8.1f} ± {std:.1f}")


if __name__ == "__main__":
    main()
