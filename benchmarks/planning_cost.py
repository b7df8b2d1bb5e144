"""
How many seconds does it take to plan an action in a learned ensemble?

    python -m benchmarks.planning_cost --planner cem --threads 2
    python -m benchmarks.planning_cost --planner cem --threads 2 --envs 16 --iterations 1

Prints one line of JSON. The first command measures the same as ``benchmarks/peers.py --planner`` does for mbrl-lib and
pytorch_mppi; run both in turns and quote the ratio. The second command plans for 16 environments at once and then for each of
them alone. The ensemble has its initial weights, with which plans cost as much as with fitted ones.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.dynamics import ProbabilisticEnsemble
from sb3_mbrl.planning import ModelObjective, Planner, PlannerState, make_planner

# PETS on HalfCheetah, except for its four layers and its horizon of 30. benchmarks/peers.py repeats these numbers, because it
# imports nothing from this repository
SIZES = {
    "obs_dim": 17,
    "action_dim": 6,
    "ensemble_size": 5,
    "n_elites": 5,
    "layers": 3,
    "population": 400,
    "horizon": 25,
    "iterations": 5,
    "particles": 20,
    "repeats": 5,
    "seed": 0,
}


def objective_of(args: argparse.Namespace) -> ModelObjective:
    """
    :param args: the command line
    :return: the objective, which scores plans in an ensemble with its initial weights
    """
    model = ProbabilisticEnsemble(
        spaces.Box(-np.inf, np.inf, (args.obs_dim,), np.float32),
        spaces.Box(-1, 1, (args.action_dim,), np.float32),
        ensemble_size=args.ensemble_size,
        n_elites=args.n_elites,
        net_arch=[200] * args.layers,
        generator=th.Generator().manual_seed(args.seed),
        device="cpu",
    )
    return ModelObjective(model, n_particles=args.particles, propagation=args.propagation)


def planner_of(args: argparse.Namespace) -> Planner:
    """
    :param args: the command line
    :return: a planner with the settings that ``benchmarks/peers.py`` gives to those of the peers
    """
    n_elites = args.population // 10
    own: dict[str, Any] = {
        "cem": {"n_elites": n_elites, "min_variance": 0.0},  # a variance limit of 0 makes it use all iterations
        "icem": {"n_elites": n_elites},
        "mppi": {},
    }[args.planner]
    return make_planner(
        args.planner, horizon=args.horizon, population_size=args.population, n_iterations=args.iterations, **own
    )


def timed(act: Callable[[], th.Tensor]) -> tuple[float, float, th.Tensor]:
    """
    :param act: the function to time
    :return: seconds of wall-clock time, seconds of CPU time, and the result of the function
    """
    wall, cpu = time.perf_counter(), time.process_time()
    result = act()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planner", choices=["cem", "icem", "mppi"], default="cem")
    parser.add_argument("--propagation", choices=["ts1", "tsinf"], default="tsinf")
    parser.add_argument("--envs", type=int, default=1, help="number of environments to plan for at once")
    parser.add_argument("--threads", type=int, default=2)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    th.manual_seed(args.seed)
    objective, planner = objective_of(args), planner_of(args)

    def plan(obs: th.Tensor, state: PlannerState, seeds: range) -> th.Tensor:
        generators = [th.Generator().manual_seed(seed) for seed in seeds]
        made = planner.plan(objective.score(obs, generators), state, generators)
        assert made.n_iterations == args.iterations
        return made.actions

    def plan_alone(obs: th.Tensor, seeds: range) -> th.Tensor:
        start = planner.initial_state(1, args.action_dim)
        return th.cat([plan(row, start, seeds[env : env + 1]) for env, row in enumerate(obs.split(1))])

    together, alone, difference = [], [], 0.0
    for repeat in range(args.repeats + 1):
        obs, seeds = th.randn(args.envs, args.obs_dim), range(repeat * args.envs, (repeat + 1) * args.envs)
        start = planner.initial_state(args.envs, args.action_dim)
        wall, cpu, actions = timed(lambda: plan(obs, start, seeds))  # noqa: B023
        together.append((wall, cpu))
        if args.envs > 1:
            wall, cpu, singles = timed(lambda: plan_alone(obs, seeds))  # noqa: B023
            alone.append((wall, cpu))
            difference = max(difference, float((actions - singles).abs().max()))

    def median(numbers: Iterable[float]) -> float:
        return round(statistics.median(list(numbers)[1:]), 4)  # the first call warms up

    measured = {
        "seconds_per_action": median(wall for wall, _ in together),
        "cpu_seconds_per_action": median(cpu for _, cpu in together),
    }
    if args.envs > 1:  # planning "an action" then means one action for each environment
        measured |= {
            "seconds_alone": median(wall for wall, _ in alone),
            "cpu_seconds_alone": median(cpu for _, cpu in alone),
            "ratio": median(one[0] / loop[0] for one, loop in zip(together, alone, strict=True)),
            "cpu_ratio": median(one[1] / loop[1] for one, loop in zip(together, alone, strict=True)),
            "largest_difference_of_plans": difference,
        }
    names = ["planner", "propagation", "envs", *SIZES]
    print(
        json.dumps(
            {"library": "sb3_mbrl", "measured": "planning"}
            | {name: getattr(args, name) for name in names}
            | measured
            | {"threads": args.threads, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
        )
    )


if __name__ == "__main__":
    main()
