"""
From planning once to model predictive control: PETS in three settings, each with the same number of environment steps.

1. Plan once: fit the model to random data only, and execute whole plans without replanning. Plans lead to states that random
   actions never reach, where the model is wrong.
2. Aggregate: refit the model to the data that the plans collect as well. The model is then right where plans lead, but a plan
   still continues when the pendulum has left the predicted path.
3. Model predictive control: plan, execute one action, observe, and plan again.

The pendulum starts hanging at rest, and random torques hardly lift it. ``ladder.png`` shows the states that each model was
fitted to and the states that its plans visit. From setting to setting, the two come closer together.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import TimeLimit
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env

from sb3_mbrl import PETS
from sb3_mbrl.common.collection import collect_trajectories
from sb3_mbrl.common.trajectories import concatenate, real_transitions
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.diagnostics.state_distribution import state_distribution

HORIZON = 30
N_STEPS = 100

RUNGS: dict[str, dict[str, Any]] = {
    "plan once": {"aggregate": False, "replan_freq": HORIZON},
    "aggregate": {"aggregate": True, "replan_freq": HORIZON},
    "MPC": {"aggregate": True, "replan_freq": 1},
}


class HangingPendulum(PendulumEnv):
    """Pendulum-v1 with episodes that start at rest at the bottom."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = np.array([np.pi, 0.0]) + self.np_random.uniform(-0.1, 0.1, 2)
        return self._get_obs(), {}


def make_env() -> gym.Env:
    return TimeLimit(HangingPendulum(), N_STEPS)


def polar(obs: th.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Angle from upright in degrees, and velocity."""
    return np.degrees(np.arctan2(obs[:, 1].numpy(), obs[:, 0].numpy())), obs[:, 2].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=1_000, help="environment steps in each setting")
    parser.add_argument("--episodes", type=int, default=5, help="evaluation episodes for each mean return")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    all_axes = figure.subplots(1, len(RUNGS), sharex=True, sharey=True)
    print(f"{'':10} {'return':>8} {'std':>6} {'KS':>6} {'outside':>8} {'error, data':>12} {'error, plans':>13}")
    for axes, (name, rung) in zip(all_axes, RUNGS.items(), strict=True):
        model = PETS(
            "MPCPolicy",
            make_vec_env(make_env, seed=args.seed),
            # A model that is fitted only once gets as many random steps as the other settings get steps in total
            learning_starts=2 * N_STEPS if rung["aggregate"] else args.timesteps - 1,
            horizon=HORIZON,
            dynamics_kwargs={"net_arch": (64, 64)},
            seed=args.seed,
            **rung,
        )
        model.learn(args.timesteps, progress_bar=True)

        assert model.replay_buffer is not None
        data = real_transitions(model.replay_buffer, model.device)
        episodes = collect_trajectories(make_vec_env(make_env, args.episodes, seed=args.seed + 1_000), model.predict, N_STEPS)
        plans = concatenate(episodes)
        returns = np.array([episode.rewards.sum().item() for episode in episodes])
        # Error of one step relative to predicting no change: on the fitted data, and on the states that plans visit
        on_data, on_plans = (one_step_error(model.dynamics, rows).summary()["one_step_error"] for rows in (data, plans))
        shift = state_distribution(data.observations, plans.observations)
        print(
            f"{name:10} {returns.mean():8.1f} {returns.std():6.1f} {shift.ks.max():6.2f} {shift.outside_any:8.1%} "
            f"{on_data:12.4f} {on_plans:13.4f}"
        )
        for rows, label, color in ((data, "fitted to", "tab:gray"), (plans, "visited by plans", "tab:blue")):
            axes.scatter(*polar(rows.observations), s=5, alpha=0.6, linewidths=0, color=color, label=label)
        axes.set(title=f"{name}: return {returns.mean():.0f}", xlabel="angle from upright (degrees)")
    all_axes[0].set_ylabel("velocity (rad/s)")
    all_axes[0].legend(loc="upper left", fontsize="small", markerscale=2)
    figure.savefig("ladder.png", dpi=100)
    print("ladder.png: states that the model was fitted to, and states that plans visit")


if __name__ == "__main__":
    main()
