"""
Tensors in files. Fused kernels take all sizes from the parameters and check nothing: with an optimizer state of another size
they write outside of its memory. Therefore names, shapes, types and layouts are compared here before anything is restored.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import torch as th
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_mbrl.common.files import write_atomically

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
"""The state of Adam for each parameter: a scalar, and two tensors of the parameter's shape."""


def save_tensors(path: str | pathlib.Path, tensors: Mapping[str, th.Tensor], format_name: str, config: str) -> None:
    """
    Save as one safetensors file whose header carries a configuration and a digest of everything. Atomic.

    :param path: the file; its folder is created if needed
    :param tensors: tensors by name
    :param format_name: name of the format, which :func:`load_tensors` compares
    :param config: the configuration as text
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": format_name, "config": config, "digest": _digest(contiguous, format_name, config)}
    write_atomically(path, tensors_to_bytes(contiguous, metadata=metadata))


def load_tensors(path: str | pathlib.Path, format_name: str) -> tuple[dict[str, th.Tensor], str]:
    """
    :param path: a file that :func:`save_tensors` wrote
    :param format_name: the format with which it was written
    :return: the tensors, on the CPU, and the configuration, exactly as they were saved
    :raises ValueError: the file is damaged or has another format
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, truncated or not a safetensors file: {error}") from error
    if metadata.get("format") != format_name or not metadata.keys() >= {"config", "digest"}:
        writer = format_name.rpartition(".")[2]
        raise ValueError(f"{path} is damaged, or was not written by {writer}.save: format {metadata.get('format')!r}.")
    if metadata["digest"] != _digest(tensors, format_name, metadata["config"]):
        raise ValueError(f"{path} is damaged: it does not hold what was saved. Restore it from a copy, or save it again.")
    return tensors, metadata["config"]


def _digest(tensors: Mapping[str, th.Tensor], *texts: str) -> str:
    digest = hashlib.sha256(json.dumps(texts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(tensor.cpu().reshape(-1).view(th.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(given: Mapping[str, Any], expected: Mapping[str, th.Tensor], source: str) -> None:
    """
    :param given: tensors from a file, by name
    :param expected: tensors of a new object, by name
    :param source: where the tensors come from, for the message
    :raises ValueError: a name, a shape, a type or a layout in memory differs
    """
    if given.keys() != expected.keys():
        lacking, unknown = (sorted(map(str, names))[:3] for names in (expected.keys() - given, given.keys() - expected))
        raise ValueError(f"{source} does not fit: it lacks {lacking} and holds the unknown {unknown}.")
    for name, tensor in expected.items():
        form, right = _form(given[name]), _form(tensor)
        if form != right:
            what = "type" if getattr(given[name], "shape", tensor.shape) == tensor.shape else "size"
            raise ValueError(f"{source} does not fit: {what} mismatch for {name!r}, which is {form} instead of {right}.")
        if _strides(given[name]) != _strides(tensor):
            raise ValueError(f"{source} does not fit: {name!r} has another layout in memory.")


def _form(tensor: Any) -> str:
    if not isinstance(tensor, th.Tensor):
        return f"a {type(tensor).__name__}"
    layout = "" if tensor.layout == th.strided else f" as {tensor.layout}"
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}{layout}"


def _strides(tensor: th.Tensor) -> list[int]:
    """The strides, without those of axes of length 1, which have no meaning."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def check_finite_tensors(tensors: Mapping[str, th.Tensor], source: str, except_for: Collection[str] = ()) -> None:
    """
    :param tensors: tensors by name
    :param source: the object or file that they belong to, for the message
    :param except_for: names of tensors that are not checked
    :raises ValueError: one of the others contains NaN or infinity
    """
    for name, tensor in tensors.items():
        if name not in except_for and not th.isfinite(tensor).all():
            raise ValueError(f"{source} holds NaN or infinity in {name!r}: it has diverged.")


def check_optimizer_state(optimizer: th.optim.Optimizer, given: Any, source: str) -> None:
    """
    :param optimizer: the optimizer that will get the state
    :param given: the ``state_dict()`` of such an optimizer
    :param source: where it comes from, for the message
    :raises ValueError: the state belongs to other parameters, or to another kind of optimizer
    """
    try:
        saved = [(options, index) for options in given["param_groups"] for index in options["params"]]
        sizes = [len(options["params"]) for options in given["param_groups"]]
        states = dict(given["state"])
        unknown = set(states) - {index for _, index in saved}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} does not fit: it is not the state of an optimizer.") from error
    if unknown or sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise ValueError(f"{source} does not fit: it belongs to other parameters.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for (options, index), parameter in zip(saved, parameters, strict=True):
        if states.get(index):  # a parameter that never had a gradient has no state
            _check_state(type(optimizer), options, states[index], parameter, f"{source}, parameter {index},")


def _check_state(kind: type, options: Mapping[str, Any], state: Any, parameter: th.Tensor, source: str) -> None:
    usual = kind in (th.optim.Adam, th.optim.AdamW)
    if not usual and not options.get("fused"):
        return  # PyTorch's other kernels compare sizes themselves
    if not isinstance(state, Mapping):
        raise ValueError(f"{source} does not fit: it is a {type(state).__name__}.")
    names = [*ADAM_STATE, *(["max_exp_avg_sq"] if options.get("amsgrad") else [])] if usual else list(state)
    step = state.get("step", th.zeros(()))
    if _form(step) not in (_form(th.zeros(())), _form(th.zeros((), dtype=th.float64))):
        raise ValueError(f"{source} does not fit: 'step' is {_form(step)} instead of a scalar.")
    check_tensors(state, {name: step if name == "step" else parameter for name in names}, source)


def check_optimizers(algorithm: BaseAlgorithm) -> None:
    """
    :param algorithm: an algorithm that was just loaded
    :raises ValueError: the state of an optimizer does not fit its parameters
    """
    for name in algorithm._get_torch_save_params()[0]:
        optimizer = recursive_getattr(algorithm, name)
        if isinstance(optimizer, th.optim.Optimizer):
            check_optimizer_state(optimizer, optimizer.state_dict(), f"The state of {name}")
