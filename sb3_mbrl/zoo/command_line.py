"""RL Zoo's scripts with the algorithms of sb3_mbrl: python -m sb3_mbrl.zoo train --algo mbpo --env Hopper-v5."""

import argparse
import runpy
import sys
from collections.abc import Sequence

from sb3_mbrl.acceleration import keep_freed_memory
from sb3_mbrl.zoo.algorithms import ALGORITHMS
from sb3_mbrl.zoo.hyperparams import hyperparams_file, load_env_kwargs
from sb3_mbrl.zoo.registration import register

SCRIPTS = {
    "train": "train",
    "optimize": "train",
    "enjoy": "enjoy",
    "record": "record_video",
    "push": "push_to_hub",
    "pull": "load_from_hub",
}
"""The module of RL Zoo for each verb."""


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: a verb and RL Zoo's arguments; None: those of the command line
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_mbrl.zoo", description=__doc__)
    parser.add_argument("verb", choices=SCRIPTS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of RL Zoo; `VERB --help` lists them")
    parsed = parser.parse_args(arguments)
    try:
        register()
    except ImportError as error:
        parser.exit(1, f"{error}\n")

    script = SCRIPTS[parsed.verb]
    # If an argument is given twice, RL Zoo takes the last one, so the user's arguments come after the defaults
    defaults = _tuned(parsed.arguments) if script == "train" else []
    if parsed.verb == "optimize":
        defaults.append("--optimize")
    keep_freed_memory()
    sys.argv = [f"sb3_mbrl.zoo {parsed.verb}", *defaults, *parsed.arguments]
    runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")


def _tuned(arguments: list[str]) -> list[str]:
    """
    :param arguments: the user's arguments for RL Zoo
    :return: arguments with which RL Zoo reads our hyperparameters; none for its own algorithms, or if the user names a file
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--env", default="default")
    parser.add_argument("-conf", "--conf-file")
    user, _ = parser.parse_known_args(arguments)
    if user.algo not in ALGORITHMS or user.conf_file is not None:
        return []
    defaults = ["-conf", str(hyperparams_file(user.algo))]
    # RL Zoo passes env_kwargs from a file only to the training environment, not to evaluations and videos
    env_kwargs = load_env_kwargs(user.algo, user.env)
    if env_kwargs:
        defaults += ["--env-kwargs", *(f"{name}:{value!r}" for name, value in env_kwargs.items())]
    return defaults
