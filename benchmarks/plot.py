"""
Plots and a table from the CSVs of ``benchmarks/results/``, for the docs.

    python -m benchmarks.plot
"""

import json
import pathlib
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure

RESULTS = pathlib.Path(__file__).parent / "results"
FIGURES = pathlib.Path(__file__).parent.parent / "docs" / "_static"
LABELS = {
    "mbpo": "MBPO",
    "mbtqc": "MBTQC",
    "mbtd3": "MBTD3",
    "mbcrossq": "MBCrossQ, 2 updates a step",
    "mbcrossq-utd1": "MBCrossQ, 1 update a step",
    "mbcrossq-utd4": "MBCrossQ, 4 updates a step",
    "tdmpc2": "TD-MPC2",
    "tdmpc2-4envs": "TD-MPC2, four environments",
    "tdmpc": "TD-MPC",
    "pets": "PETS",
    "dyna-ppo": "Dyna(PPO)",
    "ppo-zoo": "PPO",
    "dyna-dqn": "Dyna(DQN)",
    "dqn-zoo": "DQN",
    "sac": "SAC",
    "sac-utd": "SAC at MBPO's update-to-data ratio",
    "dqn": "DQN",
}

PAGES = {
    "": ("mbpo", "pets", "sac", "sac-utd", "dqn"),
    "over": ("mbpo", "mbtqc", "mbtd3", "mbcrossq", "mbcrossq-utd1", "mbcrossq-utd4"),
    "tdmpc": ("tdmpc2", "tdmpc2-4envs", "tdmpc", "mbpo", "sac"),
    "dyna": ("dyna-ppo", "ppo-zoo", "dyna-dqn", "dqn-zoo"),
}
"""Figures of an environment, and what each shows. The x-axis of the last is logarithmic."""


def load_curves() -> dict[str, dict[str, list[np.ndarray]]]:
    """
    :return: environment -> algorithm -> one array a seed, columns as in the CSV (steps, wall, CPU, mean, std)
    """
    curves: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(RESULTS.glob("*.csv")):
        algo, env_id, _ = path.stem.split("_")
        curves[env_id][algo].append(np.genfromtxt(path, delimiter=",", skip_header=2, ndmin=2))
    return curves


def interpolate(seeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that every seed reached, and the returns there, (seeds, steps)."""
    steps = seeds[0][:, 0]
    steps = steps[steps <= min(seed[-1, 0] for seed in seeds)]
    return steps, np.array([np.interp(steps, seed[:, 0], seed[:, 3]) for seed in seeds])


def plot(env_id: str, algos: dict[str, list[np.ndarray]], logarithmic: bool) -> Figure:
    """Mean over seeds, each seed as a thin line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for color, algo in enumerate(label for label in LABELS if label in algos):
        steps, returns = interpolate(algos[algo])
        axes.plot(steps, returns.mean(axis=0), color=f"C{color}", label=f"{LABELS[algo]} ({_count(len(returns))})")
        for seed in algos[algo]:
            axes.plot(seed[:, 0], seed[:, 3], color=f"C{color}", alpha=0.3, linewidth=0.8)
    axes.set(xlabel="environment steps, warm-up included", ylabel="mean return of an evaluation", title=env_id)
    if logarithmic:
        axes.set_xscale("log")
    axes.legend()
    return figure


def _count(n_seeds: int) -> str:
    return "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"


def plot_offline(env_id: str, paths: list[pathlib.Path]) -> Figure:
    """Each run as a line, with the penalty as its colour."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    penalties = sorted({path.stem.split("_")[1] for path in paths}, key=float)
    for path in paths:
        about = json.loads(path.read_text().splitlines()[0].removeprefix("# "))
        penalty = path.stem.split("_")[1]
        label = f"penalty {penalty}" if penalty not in {line.get_gid() for line in axes.lines} else None
        steps, _, returns = np.genfromtxt(path, delimiter=",", skip_header=2, ndmin=2).T
        axes.plot(steps, returns, color=f"C{penalties.index(penalty)}", label=label, gid=penalty)
    axes.axhline(about["behaviour_return"], color="gray", linestyle="--", label="behaviour policy")
    axes.set(xlabel="imagined steps", ylabel="return in the real environment", title=f"{env_id}, offline")
    axes.legend()
    return figure


def table(curves: dict[str, dict[str, list[np.ndarray]]]) -> str:
    """Markdown: the last common evaluation of each algorithm on each environment, a number a seed."""
    lines = ["| environment | steps | algorithm | mean return | each seed | CPU minutes |", "|---|---|---|---|---|---|"]
    for env_id, algos in curves.items():
        for algo in (label for label in LABELS if label in algos):
            steps, returns = interpolate(algos[algo])
            each = ", ".join(f"{value:.0f}" for value in returns[:, -1])
            minutes = np.mean([np.interp(steps[-1], seed[:, 0], seed[:, 2]) for seed in algos[algo]]) / 60
            lines.append(
                f"| {env_id} | {steps[-1]:.0f} | {LABELS[algo]} | {returns[:, -1].mean():.0f} | {each} | {minutes:.0f} |"
            )
    return "\n".join(lines)


def _own(page: str) -> set[str]:
    """What no page before shows."""
    pages = list(PAGES)
    return set(PAGES[page]) - {algo for earlier in pages[: pages.index(page)] for algo in PAGES[earlier]}


def main() -> None:
    curves = load_curves()
    FIGURES.mkdir(exist_ok=True)
    for env_id, algos in curves.items():
        for page, shown in PAGES.items():
            there = {algo: algos[algo] for algo in shown if algo in algos}
            if there.keys() & _own(page):
                name = f"{env_id}_{page}" if page else env_id
                plot(env_id, there, logarithmic=page == "dyna").savefig(FIGURES / f"{name}.png", dpi=120)
    offline = sorted((RESULTS / "offline").glob("*.csv"))
    for env_id in sorted({path.stem.split("_")[0] for path in offline}):
        own = [path for path in offline if path.stem.startswith(f"{env_id}_")]
        plot_offline(env_id, own).savefig(FIGURES / f"offline_{env_id}.png", dpi=120)
    print(table(curves))
    first = next(RESULTS.glob("*.csv")).read_text().splitlines()[0]
    about = json.loads(first.removeprefix("# "))
    print(f"\n{about['processor']}, one thread a run, torch {about['torch']}, SB3 {about['stable_baselines3']}")


if __name__ == "__main__":
    main()
