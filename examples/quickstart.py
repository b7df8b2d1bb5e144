"""Train, evaluate, save and load MBPO in the same way as any algorithm of Stable-Baselines3."""

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import MBPO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=3_000)
    args = parser.parse_args()

    model = MBPO("MlpPolicy", "Pendulum-v1", learning_starts=500, gradient_steps=5, tensorboard_log="runs", seed=0)
    model.learn(args.timesteps, progress_bar=True)
    print("mean and std of the return:", evaluate_policy(model, model.get_env(), n_eval_episodes=10))

    model.save("mbpo_pendulum")
    loaded = MBPO.load("mbpo_pendulum", env=model.get_env())
    print("after loading:", evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=10))

    # The learned dynamics are loaded as well, and can be saved on their own
    loaded.dynamics.save("pendulum_dynamics.safetensors")


if __name__ == "__main__":
    main()
