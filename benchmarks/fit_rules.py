"""
How much fitting a model needs: rules compared along one and the same stream of transitions.

    python -m benchmarks.fit_rules --env Hopper-v5 --steps 15000
    python -m benchmarks.fit_rules --env HalfCheetah-v5 --steps 15000

SAC makes the stream, after random actions as MBPO's. Each rule refits one ensemble as the stream comes in, and is judged on
what comes next, which it has not seen: the error one step ahead relative to that of no model, and ten steps ahead in standard
deviations of the data. Prints a Markdown table, means over the stream.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer

from benchmarks.curves import make_env
from sb3_mbrl.common.buffers import real_transitions
from sb3_mbrl.dynamics import ProbabilisticEnsemble, known_termination
from sb3_mbrl.dynamics.diagnostics import concatenate, one_step_error, open_loop_error, over_outputs, trajectories_from_buffer

PUBLISHED = {"patience_steps": 0}
RULES: dict[str, tuple[int, float | None, dict[str, Any], dict[str, Any]]] = {
    "published, raw targets and plain likelihood too": (250, None, PUBLISHED, {"normalize_targets": False, "nll_beta": 0.0}),
    "published, plain likelihood too": (250, None, PUBLISHED, {"nll_beta": 0.0}),
    "published: every 250 steps, until no member improves": (250, None, PUBLISHED, {}),
    "the same, at least 100 gradient steps without improvement": (250, None, {}, {}),
    "every 250 steps, 4 gradient steps a step": (250, 4.0, {}, {}),
    "every 250 steps, 2 gradient steps a step (default)": (250, 2.0, {}, {}),
    "every 250 steps, 1 gradient step a step": (250, 1.0, {}, {}),
    "every 1000 steps, 2 gradient steps a step": (1_000, 2.0, {}, {}),
}
"""
Environment steps between two fits, gradient steps of the model for each of them (None: no limit), arguments of ``fit`` and of
the ensemble.
"""

HORIZON = 10


def stream(env_id: str, random_steps: int, steps: int, seed: int) -> ReplayBuffer:
    """SAC's replay buffer after so many steps, the first of them random."""
    model = SAC("MlpPolicy", make_env(env_id, seed), learning_starts=random_steps, buffer_size=steps, seed=seed, device="cpu")
    model.learn(steps, log_interval=1_000_000)
    assert model.replay_buffer is not None
    return model.replay_buffer


def follow(
    buffer: ReplayBuffer,
    env_id: str,
    random_steps: int,
    train_freq: int,
    per_step: float | None,
    fit_kwargs: dict[str, Any],
    dynamics_kwargs: dict[str, Any],
    seed: int,
) -> tuple[list[float], list[float], int, float]:
    """
    :return: errors one and ``HORIZON`` steps ahead on each stretch of 250 transitions that the model has not seen, gradient
        steps, seconds of fitting
    """
    generator = th.Generator().manual_seed(seed)
    dynamics = ProbabilisticEnsemble(
        buffer.observation_space,
        buffer.action_space,
        termination_fn=known_termination(make_env(env_id, seed)),
        generator=generator,
        **dynamics_kwargs,
    )
    everything = real_transitions(buffer, "cpu")
    one_step, later, n_gradient_steps, seconds = [], [], 0, 0.0
    for now in range(random_steps, len(everything), 250):
        if (now - random_steps) % train_freq == 0:
            due = now if now == random_steps else train_freq
            budget = {} if per_step is None else {"max_gradient_steps": int(per_step * due)}
            start = time.perf_counter()
            report = dynamics.fit(everything[:now], generator, **fit_kwargs, **budget)
            seconds += time.perf_counter() - start
            n_gradient_steps += report.n_gradient_steps
        pieces = unseen(buffer, now, now + 250)
        one_step.append(one_step_error(dynamics, concatenate(pieces)).summary()["one_step_error"])
        errors = open_loop_error(dynamics, pieces, HORIZON, generator=generator, n_samples=1)
        later.append(over_outputs(errors.expectation)[-1].item())
    return one_step, later, n_gradient_steps, seconds


def unseen(buffer: ReplayBuffer, start: int, end: int) -> list:
    """Unbroken pieces of the transitions from ``start`` to ``end``."""
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
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)

    buffer = stream(args.env, args.random_steps, args.steps, args.seed)
    print(f"{args.env}, {args.steps} steps, {args.random_steps} of them random, one thread\n")
    print(f"| rule | gradient steps | seconds | error of one step | of {HORIZON} steps | in the last quarter | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, rule in RULES.items():
        one_step, later, n, seconds = follow(buffer, args.env, args.random_steps, *rule, args.seed)
        quarter = max(1, len(one_step) // 4)
        means = [np.mean(one_step), np.mean(later), np.mean(one_step[-quarter:]), np.mean(later[-quarter:])]
        print(f"| {name} | {n} | {seconds:.0f} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    main()
