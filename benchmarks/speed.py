"""
Compare the cost of an update, of an epoch of the model and of a step of MBPO with other libraries, measured in turns.

    python -m benchmarks.speed --threads 1 --rounds 5 --mbrl-lib /path/to/peer/bin/python --sbx /path/to/sbx/bin/python
    python -m benchmarks.speed --threads 1 --rounds 1 --mbrl-lib /path/to/peer/bin/python --loop-steps 2000

With ``--loop-steps``, the whole of MBPO is run for that many steps after 5000 random ones, instead of its parts. A round then
takes half an hour.

Our updates and those of Stable-Baselines3 run in one process, twenty at a time in turns. The peers run in processes of their
own under their own Python (``benchmarks/README.md``), in the order A B C, A B C, ... Quote the ratios, and do not use the
machine for anything else during a measurement.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC

from sb3_mbrl import MBPO
from sb3_mbrl.acceleration.precision import HAS_BFLOAT16
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics import ProbabilisticEnsemble
from sb3_mbrl.zoo import load_hyperparams

ENV_ID = "Hopper-v5"
FIT_ROWS = 8_000
VALIDATION_RATIO = 0.2
IMAGINED_ROWS = 400_000
UPDATES = 20
"""Updates per environment step, as many as MBPO makes on Hopper."""


def random_transitions(env: gym.Env, n: int) -> Transitions:
    """Random transitions with the shapes of ``env``."""
    generator = th.Generator().manual_seed(0)
    obs, next_obs = (th.randn(n, *env.observation_space.shape, generator=generator) for _ in range(2))  # type: ignore[misc]
    action = 2 * th.rand(n, *env.action_space.shape, generator=generator) - 1  # type: ignore[misc]
    return Transitions(obs, action, next_obs, th.randn(n, generator=generator), th.zeros(n, dtype=th.bool))


def with_data(model: SAC) -> SAC:
    """Fills the buffers of ``model``, so that ``train`` can be timed on its own."""
    rows = random_transitions(model.get_env().envs[0], 5_000)  # type: ignore[union-attr]
    model._setup_learn(1)
    assert model.replay_buffer is not None
    columns = (rows.observations, rows.next_observations, rows.actions, rows.rewards, rows.terminated)
    for transition in zip(*(column.numpy() for column in columns), strict=True):
        model.replay_buffer.add(*(np.asarray(each)[np.newaxis] for each in transition), [{}])
    if isinstance(model, MBPO):
        model.model_buffer.add(random_transitions(model.get_env().envs[0], IMAGINED_ROWS))  # type: ignore[union-attr]
        model.num_timesteps = model._last_fit_timestep = model.learning_starts  # no fit is due
    return model


def updates() -> dict[str, float]:
    """Seconds of one update for each library: medians of fifteen calls of ``train``, in turns."""
    ours = {"env": ENV_ID, "device": "cpu", "seed": 0, **load_hyperparams("mbpo", ENV_ID)}
    models: dict[str, SAC] = {"Stable-Baselines3": SAC("MlpPolicy", ENV_ID, device="cpu", seed=0)}
    models |= {name: MBPO(precision=precision, **ours) for name, precision in OURS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        with_data(model)
    for _ in range(18):
        for name, model in models.items():
            start = time.perf_counter()
            model.train(UPDATES, batch_size=256)
            seconds[name].append((time.perf_counter() - start) / UPDATES)
    return {name: statistics.median(each[3:]) for name, each in seconds.items()}


def epoch(precision: str) -> float:
    """Seconds of an epoch of the fit, including validation: the median of ten."""
    env, moments = gym.make(ENV_ID), []
    model = ProbabilisticEnsemble(env.observation_space, env.action_space, precision=precision, device="cpu")
    model.fit(
        random_transitions(env, int(FIT_ROWS / (1 - VALIDATION_RATIO))),
        max_epochs=11,
        patience=100,
        on_epoch=lambda *_: moments.append(time.perf_counter()),
    )
    return statistics.median(np.diff(moments).tolist())


OURS = {"sb3_mbrl": "float32"} | ({"sb3_mbrl, bfloat16": "bfloat16"} if HAS_BFLOAT16 else {})
MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "update": updates,
    "epoch": lambda: {name: epoch(precision) for name, precision in OURS.items()},
}
REFERENCE = {"update": "Stable-Baselines3", "epoch": "mbrl-lib", "loop": "mbrl-lib"}
PEERS_SCRIPT = str(pathlib.Path(__file__).with_name("peers.py"))
PEERS = {
    "mbrl-lib": {"update": "seconds_per_sac_update", "epoch": "seconds_per_fit_epoch"},
    "sbx": {"update": "seconds_per_sac_update"},
}
"""Keys of the JSON that ``peers.py --component`` prints for each peer."""


def in_a_process(command: list[str], threads: int) -> dict[str, float]:
    """Runs the command and parses the JSON in the last line that it prints."""
    limits = dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], str(threads))
    done = subprocess.run(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def one_round(peers: dict[str, str], threads: int) -> dict[tuple[str, str], float]:
    """Seconds for each measurement and library."""
    seconds: dict[tuple[str, str], float] = {}
    for what in MEASUREMENTS:
        own = [sys.executable, "-m", "benchmarks.speed", "--threads", str(threads), "--only", what]
        seconds |= {(what, name): each for name, each in in_a_process(own, threads).items()}
    for name, python in peers.items():
        measured = in_a_process([python, PEERS_SCRIPT, name, "--component", "--threads", str(threads)], threads)
        seconds |= {(what, name): measured[key] for what, key in PEERS[name].items()}
    return seconds


def one_loop(peers: dict[str, str], threads: int, steps: int) -> dict[tuple[str, str], float]:
    """Seconds of a step of MBPO without evaluations."""
    arguments = ["--steps", str(steps), "--threads", str(threads)]
    own = [sys.executable, "-m", "benchmarks.step_cost"]
    commands = {"sb3_mbrl": own, "sb3_mbrl, published fits": [*own, "--published-fits"]}
    if "mbrl-lib" in peers:
        commands["mbrl-lib"] = [peers["mbrl-lib"], PEERS_SCRIPT, "mbrl-lib"]
    return {
        ("loop", name): in_a_process([*command, *arguments], threads)["seconds_per_step"] for name, command in commands.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    for name in PEERS:
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"the Python interpreter of {name}'s virtual environment")
    parser.add_argument(
        "--loop-steps", type=int, default=0, help="run the whole loop for this many steps (a multiple of 1000 for mbrl-lib)"
    )
    parser.add_argument("--only", choices=sorted(MEASUREMENTS), help="make only this measurement, in this process")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(MEASUREMENTS[args.only]()))
        return
    given = {name: getattr(args, name.replace("-", "_")) for name in PEERS}
    peers = {name: python for name, python in given.items() if python}
    rounds = [
        one_loop(peers, args.threads, args.loop_steps) if args.loop_steps else one_round(peers, args.threads)
        for _ in range(args.rounds)
    ]
    print(f"{args.threads} threads, {args.rounds} rounds: milliseconds of each round, and ratio of the medians")
    for what, name in rounds[0]:
        of_rounds, reference = ([each.get((what, who), np.nan) for each in rounds] for who in (name, REFERENCE[what]))
        ratio = statistics.median(of_rounds) / statistics.median(reference)
        print(f"{what:7} {name:20} {ratio:5.2f}   " + " ".join(f"{1000 * value:.1f}" for value in of_rounds))


if __name__ == "__main__":
    main()
