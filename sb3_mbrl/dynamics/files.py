"""An ensemble as a file: tensors as safetensors, the configuration as JSON in the header. Nothing is pickled."""

import json
import operator
import pathlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.actions import action_dim
from sb3_mbrl.common.config import Kind, check_config, read_json
from sb3_mbrl.common.spaces import space_from_json, space_to_json
from sb3_mbrl.common.tensors import ADAM_STATE, check_finite_tensors, check_tensors, load_tensors, save_tensors
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.dynamics.learned_termination import LearnedTermination
from sb3_mbrl.dynamics.networks import ACTIVATIONS, weight_shapes
from sb3_mbrl.tasks.termination_rules import termination_from_json, termination_to_json

FILE_FORMAT = "sb3_mbrl.ProbabilisticEnsemble"

ARGUMENTS: dict[str, Kind] = {
    "ensemble_size": int,
    "n_elites": int,
    "net_arch": [int],
    "activation": ACTIVATIONS.keys(),
    "learning_rate": float,
    "weight_decay": [float],
    "probabilistic": bool,
    "nll_beta": float,
    "learn_logvar_bounds": bool,
    "normalize_targets": bool,
}
"""Arguments of the ensemble that a file holds, and the JSON types of their values."""
TERMINATION_ARGUMENTS: dict[str, Kind] = {"net_arch": [int], "learning_rate": float}
"""Arguments of a learned termination that a file holds, and the JSON types of their values."""


class SavableModel(Protocol):
    """What saving needs from a model, in addition to the attributes that ``ARGUMENTS`` names."""

    observation_space: spaces.Space
    action_space: spaces.Space
    reward_fn: Any
    termination_fn: Any
    optimizer: Any

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by name, those of a learned termination included."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Restore what ``state_dict`` returned."""


Model = TypeVar("Model", bound=SavableModel)


def save_model(model: SavableModel, path: str | pathlib.Path) -> None:
    """
    Save as one safetensors file whose header carries the configuration as JSON and a digest of everything. Atomic.

    :param model: the model
    :param path: the file; its folder is created if needed
    :raises ValueError: the model has diverged; an existing file is left unchanged
    """
    tensors = dict(model.state_dict())
    for prefix, optimizer in _optimizers(model).items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors.update({f"{prefix}.{index}.{key}": value for key, value in state.items()})
    check_finite_tensors(tensors, "The model was not saved: it", _may_be_infinite(model))
    save_tensors(path, tensors, FILE_FORMAT, json.dumps(_configuration(model), default=operator.methodcaller("item")))


def load_model(
    make: Callable[..., Model],
    path: str | pathlib.Path,
    device: th.device | str,
    reward_fn: RewardFn | None,
    termination_fn: TerminationFn | None,
) -> Model:
    """
    Load what :func:`save_model` wrote. A file that was changed since is refused.

    :param make: the class of the model
    :param path: the file
    :param device: device of the parameters
    :param reward_fn: needed again if the model was saved with a user's reward function
    :param termination_fn: needed again if the model was saved with a user's termination function; otherwise it replaces
        the one that was saved
    :return: the model
    :raises ValueError: the file is damaged or holds something else, or a function is missing
    """
    tensors, text = load_tensors(path, FILE_FORMAT)
    config = _read_configuration(text, tensors, str(path))
    termination_kwargs = config.pop("termination_kwargs")
    given = {"reward_fn": reward_fn, "termination_fn": termination_fn}
    saved = {name: config.pop(name) for name in given}
    for name, function in given.items():
        if saved[name] == "user" and function is None:
            raise ValueError(
                f"{path} was saved with your own {name}, which is which is not saved: pass it again, load(..., {name}=f)."
            )
    learned = saved["termination_fn"] == "learned"
    if termination_fn is None:
        given["termination_fn"] = (
            LearnedTermination(*_dimensions(config), **termination_kwargs) if learned else saved["termination_fn"]
        )
    elif learned:  # the function that was given replaces the learned one
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("termination_")}
    # The initial weights are overwritten below, so drawing them must not advance the global stream
    model = make(**config, **given, generator=th.Generator(), device=device)
    _restore(model, tensors, str(path))
    return model


def functions_of_user(model: SavableModel) -> list[str]:
    """
    :param model: the model
    :return: the arguments, among ``reward_fn`` and ``termination_fn``, that a file cannot hold: functions of the user
    """
    config = _configuration(model)
    return [name for name in ("reward_fn", "termination_fn") if config[name] == "user"]


def _configuration(model: SavableModel) -> dict[str, Any]:
    """The configuration from which :func:`load_model` makes the model, in JSON types; a user's function is marked "user"."""
    head = model.termination_fn if isinstance(model.termination_fn, LearnedTermination) else None
    return {
        "observation_space": space_to_json(model.observation_space),
        "action_space": space_to_json(model.action_space),
        **{name: getattr(model, name) for name in ARGUMENTS},
        "reward_fn": "user" if model.reward_fn is not None else None,
        "termination_fn": "learned" if head is not None else termination_to_json(model.termination_fn) or "user",
        "termination_kwargs": None if head is None else {name: getattr(head, name) for name in TERMINATION_ARGUMENTS},
    }


def _optimizers(model: SavableModel) -> dict[str, th.optim.Optimizer]:
    """The optimizers whose states a file holds, by the prefix of their tensors."""
    optimizers: dict[str, th.optim.Optimizer] = {"optimizer": model.optimizer}
    if isinstance(model.termination_fn, LearnedTermination):
        optimizers["termination_optimizer"] = model.termination_fn.optimizer
    return optimizers


def _may_be_infinite(model: SavableModel) -> list[str]:
    """Names of tensors that need not be finite: the holdout error, infinite before a fit, and those of a user's modules."""
    users = [name for name in ("reward_fn", "termination_fn") if not isinstance(getattr(model, name), LearnedTermination)]
    return ["holdout_mse", *(name for name in model.state_dict() if name.split(".")[0] in users)]


def _read_configuration(text: str, tensors: Mapping[str, th.Tensor], source: str) -> dict[str, Any]:
    """
    :param text: the configuration in a file
    :param tensors: the tensors in the file
    :param source: the file, for the message
    :return: what :func:`_configuration` returned, with its spaces and termination rule as objects; its sizes match the tensors
    :raises ValueError: it is not what :func:`save_model` writes
    """
    config = read_json(text, source)
    known = isinstance(config.get("termination_fn"), dict)
    learned = config.get("termination_fn") == "learned"
    kinds: dict[str, Kind] = {
        "observation_space": dict,
        "action_space": dict,
        **ARGUMENTS,
        "reward_fn": ({"user"}, None),
        "termination_fn": dict if known else {"user", "learned"},
        "termination_kwargs": TERMINATION_ARGUMENTS if learned else (dict, None),
    }
    check_config(config, kinds, source)
    for name in ("observation_space", "action_space"):
        config[name] = space_from_json(config[name], source)
    if known:
        config["termination_fn"] = _read_rule(config["termination_fn"], _dimensions(config)[0], source)
    _check_sizes(config, tensors, source)
    return config


def _read_rule(data: dict[str, Any], observation_dim: int, source: str) -> TerminationFn:
    """The termination rule of a known task, whose bounds must lie within the observation."""
    rule = termination_from_json(data)
    if not all(bound.start < (bound.stop or observation_dim) <= observation_dim for bound in getattr(rule, "bounds", ())):
        raise ValueError(f"{source} is damaged: its termination rule refers to dimensions that its observations do not have.")
    return rule


def _dimensions(config: Mapping[str, Any]) -> tuple[int, int]:
    """O and A, the dimensions of the spaces of a configuration."""
    return int(np.prod(config["observation_space"].shape)), action_dim(config["action_space"])


def _check_sizes(config: Mapping[str, Any], tensors: Mapping[str, th.Tensor], source: str) -> None:
    """Compare sizes before the networks are made: those of a damaged file might not fit into memory."""
    dims = _dimensions(config)
    shapes = weight_shapes(sum(dims), dims[0] + 1, config["ensemble_size"], config["net_arch"], config["probabilistic"])
    expected: dict[str, tuple[int, ...]] = {f"weights.{i}": shape for i, shape in enumerate(shapes)}
    if config["termination_fn"] == "learned":
        sizes = [2 * dims[0] + dims[1], *config["termination_kwargs"]["net_arch"], 1]
        expected |= {f"termination_fn.network.{2 * i}.weight": pair[::-1] for i, pair in enumerate(pairwise(sizes))}
    for name, shape in expected.items():
        if min(shape) < 1 or name not in tensors or tensors[name].shape != shape:
            raise ValueError(f"{source} is damaged: its networks do not have the sizes that its configuration states.")


def _restore(model: SavableModel, tensors: dict[str, th.Tensor], source: str) -> None:
    """Restore parameters, buffers and optimizers, once their names, shapes, types and values have been checked."""
    expected = dict(model.state_dict())
    for prefix, optimizer in _optimizers(model).items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(name.startswith(f"{prefix}.") for name in tensors):  # it has made a step
            expected |= {
                f"{prefix}.{index}.{key}": th.zeros(()) if key == "step" else parameter
                for index, parameter in enumerate(parameters)
                for key in ADAM_STATE
            }
    check_tensors(tensors, expected, source)
    check_finite_tensors(tensors, source, _may_be_infinite(model))
    for prefix, optimizer in _optimizers(model).items():
        state: dict[int, dict[str, th.Tensor]] = {}
        for name in [name for name in tensors if name.startswith(f"{prefix}.")]:
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensors.pop(name)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    model.load_state_dict(tensors)
