"""
Dyna-Q with n imagined updates after each real step: n = 0 (Q-learning), 5 and 50, on CliffWalking-v1.

This is the figure of Sutton & Barto (2018, section 8.2) on another grid. Q-learning has not learned the task after fifty
episodes; Dyna-Q with n = 50 needs a few, because it learns from each real transition many times, without further steps in the
environment. ``dyna_q.png`` shows the length of each episode, averaged over all seeds.
"""

import argparse
import time
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.monitor import Monitor

from sb3_mbrl import DynaQ

EPISODES = 50
SOLVED = 20
"""Mean steps that count as solved: one action in ten is random, and the shortest path takes 13 steps."""


def lengths(planning_steps: int, max_timesteps: int, seeds: int) -> Iterator[list[int]]:
    """Yields the lengths of all episodes, one list per seed."""
    for seed in range(seeds):
        env = Monitor(gym.make("CliffWalking-v1"))
        stop = StopTrainingOnMaxEpisodes(max_episodes=EPISODES)
        DynaQ("TabularPolicy", env, planning_steps=planning_steps, seed=seed).learn(max_timesteps, callback=stop)
        yield env.get_episode_lengths()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000, help=f"maximum steps of a run, which has {EPISODES} episodes")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    print(
        f"{'n':>3} {'steps, episodes 1, 2, 5, 10, 50':>40} {'episodes to solve':>18} {'real steps to solve':>20} {'s/run':>6}"
    )
    for n, color in ((0, "tab:gray"), (5, "tab:orange"), (50, "tab:blue")):
        start = time.perf_counter()
        runs = list(lengths(n, args.timesteps, args.seeds))
        seconds = (time.perf_counter() - start) / args.seeds
        complete = min(len(run) for run in runs)
        if complete == 0:
            print(f"{n:3} for some seed, no episode ended within {args.timesteps} steps")
            continue
        steps = np.array([run[:complete] for run in runs])
        mean = steps.mean(axis=0)
        # Solved at the first of five consecutive episodes that are short, on average over these episodes and over the seeds
        window = np.convolve(mean, np.ones(5) / 5, mode="valid") if complete >= 5 else mean
        solved = int(np.argmax(window <= SOLVED)) + 1 if (window <= SOLVED).any() else None
        real = f"{steps[:, :solved].sum(axis=1).mean():.0f}" if solved else "-"
        shown = ", ".join(f"{mean[i - 1]:.0f}" for i in (1, 2, 5, 10, EPISODES) if i <= complete)
        print(f"{n:3} {shown:>40} {solved or '-':>18} {real:>20} {seconds:6.1f}")
        axes.plot(np.arange(1, complete + 1), mean, color=color, label=f"n = {n}")
    axes.axhline(13, color="black", linewidth=0.8, linestyle=":", label="shortest path")
    axes.set(
        xlabel="episode",
        ylabel="real steps in the episode",
        yscale="log",
        title=f"Dyna-Q on CliffWalking-v1, {args.seeds} seeds",
    )
    axes.legend(title="planning steps")
    figure.savefig("dyna_q.png", dpi=100)
    print("dyna_q.png: real steps in each episode")


if __name__ == "__main__":
    main()
