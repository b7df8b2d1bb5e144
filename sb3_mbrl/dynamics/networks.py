"""The networks of an ensemble: their sizes, their initial weights and their activations."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch as th
import torch.nn.functional as F
from torch import nn

ACTIVATIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "tanh": th.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
}


def weight_shapes(
    observation_dim: int, action_dim: int, members: int, net_arch: Sequence[int], probabilistic: bool
) -> list[tuple[int, int, int]]:
    """
    :param observation_dim: O
    :param action_dim: A
    :param members: networks of the ensemble
    :param net_arch: hidden units per layer
    :param probabilistic: whether the output layer also gives a log-variance for each mean
    :return: (members, inputs, outputs) of each layer; the last one predicts the change of the observation and the reward
    """
    head_dim = (observation_dim + 1) * (2 if probabilistic else 1)
    dims = [observation_dim + action_dim, *net_arch, head_dim]
    return [(members, n_in, n_out) for n_in, n_out in pairwise(dims)]


def initial_weight(members: int, n_in: int, n_out: int, generator: th.Generator | None) -> nn.Parameter:
    """
    :param members: networks of the ensemble
    :param n_in: inputs of the layer
    :param n_out: outputs of the layer
    :param generator: draws the weights, on its own device; None draws from PyTorch's global stream
    :return: truncated normal with standard deviation 1 / (2 sqrt(n_in)), as in the official code of PETS and MBPO,
        (members, n_in, n_out)
    """
    std = 1.0 / (2.0 * n_in**0.5)
    weight = th.empty(members, n_in, n_out, device=None if generator is None else generator.device)
    return nn.Parameter(nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator))


def decay_per_layer(weight_decay: float | Sequence[float] | None, n_layers: int) -> tuple[float, ...]:
    """
    :param weight_decay: one number for all layers or a number for each; None: the five numbers of MBPO's code, interpolated
    :param n_layers: layers of a network, the output layer included
    :return: a number for each layer
    :raises ValueError: there are not as many numbers as layers
    """
    if weight_decay is None:
        published = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
        return tuple(float(decay) for decay in np.interp(np.linspace(0, 4, n_layers), range(5), published))
    if np.ndim(weight_decay) == 0:
        return (float(weight_decay),) * n_layers  # type: ignore[arg-type]
    assert isinstance(weight_decay, (Sequence, np.ndarray))
    if len(weight_decay) != n_layers:
        raise ValueError(f"weight_decay lists {len(weight_decay)} values for {n_layers} layers (the output layer counts).")
    return tuple(float(decay) for decay in weight_decay)
