"""
MBPO in several environments at once, with normalised observations and rewards.

SB3 calls ``train`` once after one step of all environments, so that four environments with ``gradient_steps=20`` are an
update-to-data ratio of 5. ``model_train_freq`` and ``rollout_schedule`` count environment steps over all environments.
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_mbrl import MBPO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=4_000)
    args = parser.parse_args()

    env = VecNormalize(make_vec_env("InvertedPendulum-v5", n_envs=4, vec_env_cls=SubprocVecEnv, seed=0))
    model = MBPO("MlpPolicy", env, learning_starts=400, gradient_steps=20, target_entropy=-0.05, seed=0)
    model.learn(args.timesteps, progress_bar=True)

    env.training, env.norm_reward = False, False
    print("mean and std of the return:", evaluate_policy(model, env, n_eval_episodes=8))
    env.close()


if __name__ == "__main__":
    main()
