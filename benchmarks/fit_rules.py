"""
How much fitting does a model need? Compares rules for refitting on the same stream of transitions.

    python -m benchmarks.fit_rules --env Hopper-v5 --steps 15000
    python -m benchmarks.fit_rules --env HalfCheetah-v5 --steps 43000 --start 40000 --rules 'published: every' '(default)'

SAC collects the stream, after as many random actions as MBPO makes. Each rule refits one ensemble as the stream arrives, and
is judged by its errors on the next transitions, which it has not seen: the error one step ahead, relative to that of
predicting no change, and the error ten steps ahead, in standard deviations of the data. Prints means over the stream as a
Markdown table.
"""

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.curves import make_env
from sb3_mbrl.common.trajectories import concatenate, real_transitions, trajectories_from_buffer
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.diagnostics.open_loop import open_loop_error
from sb3_mbrl.diagnostics.statistics import over_outputs
from sb3_mbrl.dynamics import ProbabilisticEnsemble, known_termination

PIECE = 250
"""Number of transitions on which a model is judged before it may be fitted to them."""


@dataclass(frozen=True)
class Rule:
    """
    :param updates_per_step: gradient steps of the model for each environment step; None: no limit
    :param train_freq: environment steps between two fits
    :param surprise: a fit is skipped as long as the squared error on the newest ``PIECE`` transitions is at most this many
        times the error on the holdout of the last fit; the next fit gets its gradient steps
    :param newest: fit to this many of the newest transitions and as many of the others; None: fit to all
    :param fit_kwargs: arguments of ``fit``
    :param dynamics_kwargs: arguments of the ensemble
    """

    updates_per_step: float | None
    train_freq: int = PIECE
    surprise: float = 0.0
    newest: int | None = None
    fit_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamics_kwargs: Mapping[str, Any] = field(default_factory=dict)


PUBLISHED = {"patience_steps": 0}
RULES = {
    "published, raw targets and plain likelihood too": Rule(
        None, fit_kwargs=PUBLISHED, dynamics_kwargs={"normalize_targets": False, "nll_beta": 0.0}
    ),
    "published, plain likelihood too": Rule(None, fit_kwargs=PUBLISHED, dynamics_kwargs={"nll_beta": 0.0}),
    "published: every 250 steps, until no member improves": Rule(None, fit_kwargs=PUBLISHED),
    "the same, at least 100 gradient steps without improvement": Rule(None),
    "every 250 steps, 4 gradient steps a step": Rule(4.0),
    "every 250 steps, 2 gradient steps a step (default)": Rule(2.0),
    "every 250 steps, 1 gradient step a step": Rule(1.0),
    "every 1000 steps, 2 gradient steps a step": Rule(2.0, train_freq=1_000),
    "the default, half of the rows from the newest 2500": Rule(2.0, newest=2_500),
    "the default, where new transitions are twice as wrong as the holdout": Rule(2.0, surprise=2.0),
}

HORIZON = 10


def stream(env_id: str, random_steps: int, steps: int, seed: int) -> ReplayBuffer:
    """SAC's replay buffer after ``steps`` steps, of which the first ``random_steps`` are random."""
    model = SAC("MlpPolicy", make_env(env_id, seed), learning_starts=random_steps, buffer_size=steps, seed=seed, device="cpu")
    model.learn(steps, log_interval=1_000_000)
    assert model.replay_buffer is not None
    return model.replay_buffer


def follow(
    buffer: ReplayBuffer, env_id: str, start: int, rule: Rule, seed: int
) -> tuple[list[float], list[float], int, float]:
    """
    :param start: number of transitions in the first fit
    :return: errors one and ``HORIZON`` steps ahead on each piece of the stream that the model has not seen, the number of
        gradient steps, and the seconds of fitting
    """
    generator = th.Generator().manual_seed(seed)
    dynamics = ProbabilisticEnsemble(
        buffer.observation_space,
        buffer.action_space,
        termination_fn=known_termination(make_env(env_id, seed)),
        generator=generator,
        device="cpu",
        **rule.dynamics_kwargs,
    )
    everything = real_transitions(buffer, "cpu")
    one_step, later, n_gradient_steps, seconds, fitted, surprise = [], [], 0, 0.0, 0, math.inf
    for now in range(start, len(everything), PIECE):
        due = now - fitted
        if fitted == 0 or (due >= rule.train_freq and surprise > rule.surprise):
            budget = {} if rule.updates_per_step is None else {"max_gradient_steps": int(rule.updates_per_step * due)}
            rows = chosen(now, rule.newest, generator)
            before = time.perf_counter()
            report = dynamics.fit(everything[rows], generator, **rule.fit_kwargs, **budget)
            seconds += time.perf_counter() - before
            n_gradient_steps, fitted = n_gradient_steps + report.n_gradient_steps, now
        pieces = unseen(buffer, now, now + PIECE)
        error = one_step_error(dynamics, concatenate(pieces))
        one_step.append(error.summary()["one_step_error"])
        surprise = float(((error.rmse / dynamics.target_normalizer.divisor) ** 2).mean() / report.holdout_mse)
        errors = open_loop_error(dynamics, pieces, HORIZON, generator=generator, n_samples=1)
        later.append(over_outputs(errors.expectation)[-1].item())
    return one_step, later, n_gradient_steps, seconds


def chosen(now: int, newest: int | None, generator: th.Generator) -> th.Tensor:
    """Indices of the transitions to fit to, among the first ``now``."""
    if newest is None or now <= 2 * newest:
        return th.arange(now)
    others = th.randperm(now - newest, generator=generator)[:newest]
    return th.cat([others, th.arange(now - newest, now)])


def unseen(buffer: ReplayBuffer, start: int, end: int) -> list:
    """Unbroken pieces of trajectories among the transitions from ``start`` to ``end``."""
    pieces, row = [], 0
    for piece in trajectories_from_buffer(buffer):
        first, last = max(start, row) - row, min(end, row + len(piece)) - row
        if first < last:
            pieces.append(piece[slice(first, last)])
        row += len(piece)
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--random-steps", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--start", type=int, help="number of transitions in the first fit; default: the random ones")
    parser.add_argument("--rules", nargs="+", default=[""], help="parts of the names of rules to run; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = args.start or args.random_steps
    rules = {name: rule for name, rule in RULES.items() if any(part in name for part in args.rules)}
    if not rules or start >= args.steps:
        parser.error(f"--rules takes parts of {list(RULES)}, and --start must be below --steps {args.steps}.")
    th.set_num_threads(1)

    buffer = stream(args.env, args.random_steps, args.steps, args.seed)
    print(f"{args.env}, {args.steps} steps, {args.random_steps} of them random, fits from {start} on, one thread\n")
    print(f"| rule | gradient steps | seconds | error of one step | of {HORIZON} steps | in the last quarter | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, rule in rules.items():
        one_step, later, n, seconds = follow(buffer, args.env, start, rule, args.seed)
        quarter = max(1, len(one_step) // 4)
        means = [np.mean(one_step), np.mean(later), np.mean(one_step[-quarter:]), np.mean(later[-quarter:])]
        print(f"| {name} | {n} | {seconds:.0f} | " + " | ".join(f"{mean:.4f}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    main()
