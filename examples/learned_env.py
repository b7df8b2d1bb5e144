"""
Learn a model of the environment from random actions and train PPO in hundreds of imagined episodes. Then let PPO act in the
real environment, refit the model to what it met there, and train PPO again.
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from sb3_mbrl import LearnedModelVecEnv
from sb3_mbrl.envs import collect

IMAGINED_PER_REAL = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2_000, help="real steps in both rounds together")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    per_round = args.timesteps // 2

    imagined = LearnedModelVecEnv.from_env(
        "Pendulum-v1",
        n_envs=64,
        n_steps=per_round,
        dynamics_kwargs={"net_arch": [64, 64]},
        fit_kwargs={"max_gradient_steps": 1_500},
        seed=args.seed,
    )
    # The rewards of Pendulum are large, and PPO learns better from scaled rewards
    env = VecNormalize(VecMonitor(imagined), norm_obs=False, gamma=0.9)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=512, learning_rate=1e-3, gamma=0.9, seed=args.seed)
    real = make_vec_env("Pendulum-v1", n_envs=10, seed=args.seed + 1)

    for round_ in range(2):
        if round_ == 1:
            imagined.refit(collect("Pendulum-v1", per_round, policy=model, seed=args.seed + 2))
        model.learn(IMAGINED_PER_REAL * per_round, reset_num_timesteps=False, progress_bar=True)
        mean, std = evaluate_policy(model, real, n_eval_episodes=10)
        n_real = per_round * (round_ + 1)
        print(f"after {n_real} real and {model.num_timesteps} imagined steps: return {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main()
