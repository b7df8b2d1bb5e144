"""Files of :class:`~sb3_mbrl.MPCPolicy`: zip archives of JSON and, if the model is an ensemble, its safetensors."""

import inspect
import io
import json
import operator
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_mbrl.common.config import Kind, check_config, read_json
from sb3_mbrl.common.files import ZIP_ERRORS, write_atomically
from sb3_mbrl.dynamics import DynamicsModel, ProbabilisticEnsemble
from sb3_mbrl.dynamics.files import functions_of_user
from sb3_mbrl.planning import PLANNER_CLASSES, Planner

FILE_FORMAT = "sb3_mbrl.MPCPolicy.1"

ARGUMENTS: dict[str, Kind] = {
    "action_repeat": int,
    "replan_freq": int,
    "n_proposals": int,
    "proposal_noise": float,
    "max_plan_seconds": (float, None),
    "seed": (int, None),
    "discount": float,
    "n_particles": int,
    "propagation": str,
    "value_mode": str,
    "kappa": float,
    "uncertainty_penalty": float,
}
"""Arguments of the policy that a file holds."""

FUNCTIONS = ("reward_fn", "termination_fn", "terminal_value", "actor", "vec_normalize")
"""Arguments of the policy that a file cannot hold."""

_CONFIG: dict[str, Kind] = {
    "format": {FILE_FORMAT},
    "planner": str,
    "planner_kwargs": (dict, None),
    "arguments": ARGUMENTS,
    "functions": [{*FUNCTIONS, "model_reward_fn", "model_termination_fn"}],
}


def write_policy(
    path: str | pathlib.Path,
    model: DynamicsModel,
    planner: Planner,
    arguments: Mapping[str, Any],
    functions: Sequence[str],
) -> None:
    """
    :param path: the file
    :param model: written if it is an ensemble
    :param planner: written if its class is one of ours
    :param arguments: values of :data:`ARGUMENTS`
    :param functions: which of :data:`FUNCTIONS` the policy has
    """
    ensemble = model if isinstance(model, ProbabilisticEnsemble) else None
    model_functions = [] if ensemble is None else [f"model_{name}" for name in functions_of_user(ensemble)]
    is_ours = PLANNER_CLASSES.get(type(planner).__name__) is type(planner)
    config = {
        "format": FILE_FORMAT,
        "planner": type(planner).__name__,
        "planner_kwargs": _arguments(planner) if is_ours else None,
        "arguments": dict(arguments),
        "functions": [*functions, *model_functions],
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        numpy_to_python = operator.methodcaller("item")
        archive.writestr("policy.json", json.dumps(config, indent=4, default=numpy_to_python))
        if ensemble is not None:
            archive.writestr("model.safetensors", _bytes_of(ensemble))
    write_atomically(path, content.getvalue())


def read_policy(
    path: str | pathlib.Path,
    device: th.device | str,
    model: DynamicsModel | BaseAlgorithm | None,
    planner: Planner | None,
    functions: Mapping[str, Any],
) -> tuple[DynamicsModel | BaseAlgorithm, Planner, dict[str, Any]]:
    """
    :param path: the file
    :param device: device of a model that is read from the file
    :param model: replaces the model in the file; None: read it
    :param planner: replaces the planner in the file; None: make it again
    :param functions: functions that are passed again, by their names in the file
    :return: the model, the planner, and values of :data:`ARGUMENTS`
    :raises ValueError: the file is damaged or holds something else, or an argument is missing
    """
    config, weights = _contents(path)
    _check_nothing_is_missing(path, config["functions"], functions, has_model=model is not None)
    if model is None:
        if weights is None:
            raise ValueError(
                f"{path} was saved without its model, which is not a ProbabilisticEnsemble: pass it again, load(..., "
                "model=...)."
            )
        model = _model_of(weights, device, functions)
    return model, planner or _planner_of(path, config), config["arguments"]


def _contents(path: str | pathlib.Path) -> tuple[dict[str, Any], bytes | None]:
    """The configuration, and the bytes of the model; None if the archive holds no model."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:  # testzip also compares the names of files with those in the directory
                    raise zipfile.BadZipFile("a checksum does not match")
                text = archive.read("policy.json")
                weights = archive.read("model.safetensors") if "model.safetensors" in archive.namelist() else None
        except (*ZIP_ERRORS, KeyError) as error:
            raise ValueError(f"{path} is damaged or was not written by MPCPolicy.save: {error}") from error
    config = read_json(text, str(path))
    check_config(config, _CONFIG, str(path))
    return config, weights


def _check_nothing_is_missing(
    path: str | pathlib.Path, saved: Sequence[str], given: Mapping[str, Any], has_model: bool
) -> None:
    """
    :param saved: functions that the policy had
    :param given: functions that are passed again
    :param has_model: whether a model is passed, which has its own functions
    :raises ValueError: a function is missing
    """
    missing = [name for name in saved if given.get(name) is None and not (has_model and name.startswith("model_"))]
    if missing:
        raise ValueError(f"{path} was saved with {missing}, which a file cannot hold: pass them again to load.")


def _bytes_of(model: ProbabilisticEnsemble) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.safetensors"
        model.save(file)
        return file.read_bytes()


def _model_of(weights: bytes, device: th.device | str, functions: Mapping[str, Any]) -> ProbabilisticEnsemble:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.safetensors"
        file.write_bytes(weights)
        return ProbabilisticEnsemble.load(
            file, device, functions.get("model_reward_fn"), functions.get("model_termination_fn")
        )


def _arguments(planner: Planner) -> dict[str, Any]:
    """The constructor arguments of a planner, each of which it stores under the same name."""
    return {name: getattr(planner, name) for name in inspect.signature(type(planner)).parameters}


def _planner_of(path: str | pathlib.Path, config: Mapping[str, Any]) -> Planner:
    name, arguments = config["planner"], config["planner_kwargs"]
    if name not in PLANNER_CLASSES or arguments is None:
        raise ValueError(
            f"{path} was saved with your own planner {name}, which a file cannot hold: pass it again, load(..., planner=...)."
        )
    try:
        return PLANNER_CLASSES[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{path} is damaged: it holds arguments that {name} does not have.") from error
