"""
Plan in the true environment, to see what a planner achieves if the model makes no error, and how long each action takes.

    python examples/simulator_mpc.py Pendulum-v1 --episodes 20
    python examples/simulator_mpc.py HalfCheetah-v5 --population 100 --noise-beta 0.25 --shaped
    python examples/simulator_mpc.py InvertedPendulum-v5 --horizon 15 --init-std 0.3 --noise-beta 0.5 --shaped

MuJoCo steps the candidates in parallel threads. A planner maximises the reward within its horizon, which may not be what was
intended: HalfCheetah rolls over and over, faster and faster, and the reward of InvertedPendulum-v5 is the same wherever the
cart is, until it reaches the end of its rail. With ``--shaped``, the planner gets a reward that describes the intended
behaviour. The reported return is always that of the environment.
"""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch as th

from sb3_mbrl import MPCPolicy
from sb3_mbrl.dynamics import SimulatorModel


def run_upright(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Approximately HalfCheetah's reward, minus 10 while it lies on its back, as in iCEM's experiments."""
    lies = next_obs[:, 1].abs() > np.pi / 2
    return next_obs[:, 8] - 0.1 * action.square().sum(dim=1) - 10.0 * lies


def balance_in_the_middle(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """InvertedPendulum's reward, minus the squares of position and angle."""
    return 1.0 - next_obs[:, 0] ** 2 - next_obs[:, 1] ** 2


SHAPED = {"HalfCheetah-v5": run_upright, "InvertedPendulum-v5": balance_in_the_middle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", nargs="?", default="Pendulum-v1", help="a task of classic control or MuJoCo")
    parser.add_argument("--timesteps", type=int, help="maximum number of environment steps")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--planner", default="icem", choices=["icem", "cem", "mppi", "random_shooting"])
    parser.add_argument("--horizon", type=int, default=30)
    parser.add_argument("--population", type=int, default=40, help="candidates in the first iteration")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument(
        "--noise-beta", type=float, default=2.0, help="exponent of iCEM's noise: 0 is white noise, larger is smoother"
    )
    parser.add_argument(
        "--init-std", type=float, default=0.5, help="iCEM's initial standard deviation, in units of half the action range"
    )
    parser.add_argument(
        "--shaped", action="store_true", help=f"plan with the shaped reward of this script ({', '.join(SHAPED)})"
    )
    parser.add_argument("--threads", type=int, help="threads that step MuJoCo; default: one per core")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    planner_kwargs = {"population_size": args.population, "n_iterations": args.iterations}
    if args.planner == "icem":
        planner_kwargs |= {"noise_beta": args.noise_beta, "init_std": args.init_std}
    model = SimulatorModel(args.env, n_threads=args.threads)
    reward_fn = SHAPED[args.env] if args.shaped else None
    policy = MPCPolicy(model, args.planner, args.horizon, planner_kwargs, reward_fn=reward_fn, seed=args.seed)

    env = gym.make(args.env)
    returns, seconds, n_steps = [], 0.0, 0
    while len(returns) < args.episodes and (args.timesteps is None or n_steps < args.timesteps):
        obs, _ = env.reset(seed=args.seed + len(returns))
        state, total, done = None, 0.0, False
        while not done and (args.timesteps is None or n_steps < args.timesteps):
            start = time.perf_counter()
            action, state = policy.predict(obs, state)
            seconds += time.perf_counter() - start
            obs, reward, terminated, truncated, _ = env.step(action)
            total, done, n_steps = total + float(reward), terminated or truncated, n_steps + 1
            if n_steps % 100 == 0:
                print(f"step {n_steps}: return so far {total:.1f}, {1e3 * seconds / n_steps:.1f} ms per action", flush=True)
        returns.append(total)

    print(f"{args.env}: mean return {np.mean(returns):.1f} (std {np.std(returns):.1f}) of {len(returns)} episodes, ", end="")
    print(f"worst {np.min(returns):.1f}, {1e3 * seconds / n_steps:.1f} ms per action")


if __name__ == "__main__":
    main()
