"""
Time one plan and one update of the official code of TD-MPC2 on a CPU.

This script runs under a Python of its own and imports nothing from this repository. It needs the virtual environment of
``peers.py`` with tensordict added, and a clone of https://github.com/nicklashansen/tdmpc2 (measured at commit e9f5932 of
2026-07-13)::

    /path/to/peer/bin/pip install tensordict==0.10.0 pyyaml
    /path/to/peer/bin/python benchmarks/peers_tdmpc2.py /path/to/tdmpc2 --model-size 1 --threads 2
    python -m benchmarks.latent_cost --model-size 1 --threads 2

The official code requires CUDA, so two things are replaced: ``torch.device("cuda:0")`` is the CPU, and Adam is not
``capturable``. The code is not compiled, because its compiled mode captures CUDA graphs. The script prints one line of JSON,
measured on random numbers with the shapes of cheetah-run.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

OBS_DIM, ACTION_DIM, EPISODE_LENGTH, BATCH_SIZE = 17, 6, 500, 256


def settings(clone: pathlib.Path, model_size: int) -> SimpleNamespace:
    """
    :param clone: folder of the clone of the official repository
    :param model_size: size of the model in millions of parameters
    :return: the configuration of the official code, with the entries that its parser adds
    """
    yaml: Any = importlib.import_module("yaml")
    sizes: dict[int, dict[str, int]] = importlib.import_module("common").MODEL_SIZE
    own = yaml.safe_load((clone / "tdmpc2" / "config.yaml").read_text())
    derived = {
        "lr": float(own["lr"]),
        "entropy_coef": float(own["entropy_coef"]),
        "model_size": model_size,
        "bin_size": (own["vmax"] - own["vmin"]) / (own["num_bins"] - 1),
        "obs_shape": {"state": (OBS_DIM,)},
        "action_dim": ACTION_DIM,
        "episode_length": EPISODE_LENGTH,
        "multitask": False,
        "task_dim": 0,
        "compile": False,
        "vmax": float(own["vmax"]),
    }
    return SimpleNamespace(**{**own, **sizes[model_size], **derived})


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """
    :param work: the function to time
    :param repeats: number of timed calls, after three that are not timed
    :return: the median of the seconds
    """
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the official TD-MPC2 (run under the peer's own Python).")
    parser.add_argument("clone", type=pathlib.Path)
    parser.add_argument("--model-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sys.path.insert(0, str(args.clone / "tdmpc2"))

    device, adam = torch.device, torch.optim.Adam
    torch.optim.Adam = lambda *rest, capturable=False, **kwargs: adam(*rest, **kwargs)
    tdmpc2: Any = importlib.import_module("tdmpc2")
    scale: Any = importlib.import_module("common.scale")
    on_processor = SimpleNamespace(**{**vars(torch), "device": lambda *_: device("cpu")})
    tdmpc2.torch = scale.torch = on_processor
    sys.stdout, stdout = sys.stderr, sys.stdout  # its printed lines must not mix with the JSON
    agent = tdmpc2.TDMPC2(settings(args.clone, args.model_size))
    tdmpc2.torch = scale.torch = torch
    sys.stdout = stdout

    horizon = agent.cfg.horizon
    obs = torch.randn(horizon + 1, BATCH_SIZE, OBS_DIM)
    action = torch.rand(horizon, BATCH_SIZE, ACTION_DIM) * 2 - 1
    reward, terminated = torch.randn(horizon, BATCH_SIZE, 1), torch.zeros(horizon, BATCH_SIZE, 1)
    measured = {
        "seconds_per_plan": median_seconds(lambda: agent.act(obs[0, 0]), args.repeats),
        "seconds_per_update": median_seconds(lambda: agent._update(obs, action, reward, terminated), args.repeats),
    }
    about = {"peer": "tdmpc2", "model_size": args.model_size, "threads": args.threads, "torch": torch.__version__}
    print(json.dumps(about | {name: round(value, 4) for name, value in measured.items()}))


if __name__ == "__main__":
    main()
