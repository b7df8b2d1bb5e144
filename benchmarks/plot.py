"""
Make the figures and the two tables of the docs (``docs/_static/returns.md`` and ``steps.md``) from ``benchmarks/results/``.

    pip install -c constraints.txt -e .[benchmarks]
    python -m benchmarks.plot

Curves are interquartile means over the seeds with bootstrap intervals (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264,
with the definitions of rliable). For three seeds, the interquartile mean is the mean.
"""

import json
import pathlib
from collections import defaultdict
from functools import reduce
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import bootstrap, trim_mean

RESULTS = pathlib.Path(__file__).parent / "results"
FIGURES = pathlib.Path(__file__).parent.parent / "docs" / "_static"
LABELS = {
    "mbpo": "MBPO",
    "mbpo-adaptive": "MBPO, adaptive rollouts",
    "mbpo-published-fits": "MBPO, fits to their end",
    "mbpo-bfloat16": "MBPO, bfloat16",
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
    "ppo-zoo": "PPO, RL Zoo's values",
    "dyna-dqn": "Dyna(DQN)",
    "dqn-zoo": "DQN, RL Zoo's values",
    "sac": "SAC",
    "sac-utd": "SAC at MBPO's update-to-data ratio",
    "dqn": "DQN",
}

PAGES = {
    "": ("mbpo", "pets", "sac", "sac-utd", "dqn"),
    "over": ("mbpo", "mbtqc", "mbtd3", "mbcrossq", "mbcrossq-utd1", "mbcrossq-utd4"),
    "tdmpc": ("tdmpc2", "tdmpc2-4envs", "tdmpc", "mbpo", "sac"),
    "variants": ("mbpo", "mbpo-adaptive", "mbpo-published-fits", "mbpo-bfloat16"),
    "dyna": ("dyna-ppo", "ppo-zoo", "dyna-dqn", "dqn-zoo"),
}
"""Suffixes of the figures of an environment, and the algorithms in each. The last one has a logarithmic x-axis."""


TARGETS = {"Pendulum-v1": -200, "InvertedPendulum-v5": 1_000, "Hopper-v5": 1_800, "HalfCheetah-v5": 3_500}
"""Returns for which the second table lists when they were reached."""


def load_curves() -> dict[str, dict[str, list[np.ndarray]]]:
    """
    :return: for each environment and algorithm, one array per seed with the columns of the CSV (steps, wall, CPU, mean, std)
    """
    curves: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(RESULTS.glob("*.csv")):
        algo, env_id, _ = path.stem.split("_")
        curves[env_id][algo].append(read(path)[1])
    return curves


def read(path: pathlib.Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """
    :param path: a CSV
    :return: its header lines (one for the first run, and one for each resumed run that changed them), and its rows
    """
    lines = path.read_text().splitlines()
    about = [json.loads(line.removeprefix("# ")) for line in lines if line.startswith("#")]
    return about, np.loadtxt([line for line in lines if line[0].isdigit()], delimiter=",", ndmin=2)


def in_common(seeds: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which every seed was evaluated, and the rows there, (seeds, steps, columns)."""
    steps = reduce(np.intersect1d, [seed[:, 0] for seed in seeds])
    return steps, np.array([seed[np.isin(seed[:, 0], steps)] for seed in seeds])


def interquartile_mean(returns: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean over the seeds without the lowest and the highest quarter."""
    return trim_mean(returns, 0.25, axis=axis)


def interval(returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param returns: (seeds, steps), at least two seeds
    :return: 95 % interval of their interquartile mean, by the percentile bootstrap over seeds
    """
    drawn = bootstrap((returns,), interquartile_mean, axis=0, n_resamples=2_000, method="percentile", rng=0)
    return drawn.confidence_interval.low, drawn.confidence_interval.high


def plot(env_id: str, algos: dict[str, list[np.ndarray]], logarithmic: bool) -> Figure:
    """Plots the interquartile mean over seeds with its interval, and each seed as a thin line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for color, algo in enumerate(label for label in LABELS if label in algos):
        steps, rows = in_common(algos[algo])
        returns = rows[:, :, 3]
        label = f"{LABELS[algo]} ({_count(len(returns))})"
        axes.plot(steps, interquartile_mean(returns), color=f"C{color}", label=label)
        if len(returns) > 1:
            axes.fill_between(steps, *interval(returns), color=f"C{color}", alpha=0.15, linewidth=0)
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
        (about,), rows = read(path)
        penalty = path.stem.split("_")[1]
        label = f"penalty {penalty}" if penalty not in {line.get_gid() for line in axes.lines} else None
        steps, _, returns = rows.T
        axes.plot(steps, returns, color=f"C{penalties.index(penalty)}", label=label, gid=penalty)
    axes.axhline(about["behaviour_return"], color="gray", linestyle="--", label="behaviour policy")
    axes.set(xlabel="imagined steps", ylabel="return in the real environment", title=f"{env_id}, offline")
    axes.legend()
    return figure


def table(curves: dict[str, dict[str, list[np.ndarray]]]) -> str:
    """
    The first table in Markdown. It shows the last evaluation that all seeds have, for each algorithm and environment. An
    algorithm that ran longer than MBPO also gets a line for the step at which MBPO's curve ends.
    """
    lines = [
        "| environment | steps | algorithm | IQM | 95 % interval | each seed | CPU minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for env_id, algos in curves.items():
        for algo in (label for label in LABELS if label in algos):
            steps, rows = in_common(algos[algo])
            where_mbpo_ends = in_common(algos["mbpo"])[0][-1] if "mbpo" in algos else steps[-1]
            for index in np.flatnonzero((steps == where_mbpo_ends) | (steps == steps[-1])):
                last = rows[:, [index], 3]
                between = " to ".join(f"{bound.item():.0f}" for bound in interval(last)) if len(last) > 1 else ""
                each = ", ".join(f"{value:.0f}" for value in last[:, 0])
                minutes = rows[:, index, 2].mean() / 60
                iqm = interquartile_mean(last).item()
                lines.append(
                    f"| {env_id} | {steps[index]:.0f} | {LABELS[algo]} | {iqm:.0f} | {between} | {each} | {minutes:.0f} |"
                )
    return "\n".join(lines)


def steps_to_targets(curves: dict[str, dict[str, list[np.ndarray]]]) -> str:
    """The second table in Markdown: the first evaluation of each seed that reaches the target of the environment."""
    lines = ["| environment | return | algorithm | steps, each seed |", "|---|---|---|---|"]
    for env_id, target in TARGETS.items():
        algos = curves.get(env_id, {})
        for algo in (label for label in LABELS if label in algos):
            each = ", ".join(_first(seed, target) for seed in algos[algo])
            lines.append(f"| {env_id} | {target} | {LABELS[algo]} | {each} |")
    return "\n".join(lines)


def _first(seed: np.ndarray, target: float) -> str:
    reached = seed[seed[:, 3] >= target, 0]
    return f"{reached[0]:.0f}" if len(reached) > 0 else f"not by {seed[-1, 0]:.0f}"


def made_with() -> str:
    """Hardware and versions of all curves."""
    about = [each for path in RESULTS.glob("*.csv") for each in read(path)[0]]

    def values(name: str) -> str:
        return " or ".join(sorted({str(each[name]) for each in about}))

    return (
        f"{values('processor')}, {values('threads')} thread a run, PyTorch {values('torch')}, Stable-Baselines3 "
        f"{values('stable_baselines3')}, Gymnasium {values('gymnasium')}, MuJoCo {values('mujoco')}."
    )


def _own(page: str) -> set[str]:
    """Algorithms that no earlier page shows."""
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
    (FIGURES / "returns.md").write_text(f"{table(curves)}\n\n{made_with()}\n")
    (FIGURES / "steps.md").write_text(f"{steps_to_targets(curves)}\n")


if __name__ == "__main__":
    main()
