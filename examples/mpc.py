"""Plan in the model that MBPO has learned, with the help of its actor and critic; then plan for another reward."""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_mbrl import MBPO, MPCPolicy


def spin(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """A reward that MBPO never saw: turn as fast as possible."""
    return next_obs[:, 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=2_000)
    parser.add_argument("--episodes", type=int, default=4, help="evaluation episodes for each mean, run in parallel")
    args = parser.parse_args()

    model = MBPO("MlpPolicy", "Pendulum-v1", learning_starts=500, gradient_steps=5, seed=0)
    model.learn(args.timesteps, progress_bar=True)
    env = make_vec_env("Pendulum-v1", n_envs=args.episodes, seed=1)
    print("MBPO's policy:", evaluate_policy(model, env, n_eval_episodes=args.episodes))

    planned = MPCPolicy(model, planner="icem", horizon=10, discount=model.gamma, actor=model, terminal_value=model)
    print("plans of 10 steps that end in MBPO's critic:", evaluate_policy(planned, env, n_eval_episodes=args.episodes))

    spinning = MPCPolicy(model, planner="icem", horizon=10, reward_fn=spin)
    obs, state = env.reset(), None
    for _ in range(50):
        action, state = spinning.predict(obs, state)
        obs, *_ = env.step(action)
    print("angular velocities when planning for spin:", obs[:, 2])


if __name__ == "__main__":
    main()
