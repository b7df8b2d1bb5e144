"""The pieces that the networks of TD-MPC and TD-MPC2 are made of."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn


class SimNorm(nn.Module):
    """
    Simplicial normalisation (Lavoie et al. 2022, https://arxiv.org/abs/2204.00616): a softmax within each group of entries.

    :param group_size: V, entries of a group (TD-MPC2: 8)
    """

    def __init__(self, group_size: int = 8):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., D), D a multiple of V
        :return: the same shape, not negative, each group sums to 1
        """
        return x.unflatten(-1, (-1, self.group_size)).softmax(dim=-1).flatten(-2)


class Mish(nn.Module):
    """x tanh(softplus(x)): what ``torch.nn.Mish`` computes, several times as fast on a processor."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: any shape
        :return: the same shape
        """
        return _Mish.apply(x)  # type: ignore[no-any-return]


class _Mish(th.autograd.Function):
    """
    By way of u = sigmoid(-x), which processors compute in large strides and which cannot overflow::

        tanh(softplus(x)) = (1 - u^2) / (1 + u^2)
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x)
        square = th.neg(x).sigmoid_().square_()
        return th.addcdiv(x, x * square, square + 1, value=-2.0)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> th.Tensor:
        (x,), (gradient,) = ctx.saved_tensors, gradients
        u = th.neg(x).sigmoid_()
        square = u * u
        below = square + 1
        slope = (1 - square).div_(below).addcdiv_(square.mul_(x).mul_(1 - u), below.square(), value=4.0)
        return slope.mul_(gradient)


def normed_mlp(sizes: Sequence[int], n_out: int, last: nn.Module | None = None) -> nn.Sequential:
    """
    Linear layers, each followed by layer normalisation and Mish.

    :param sizes: of the input, then of each hidden layer
    :param n_out: of the output
    :param last: applied to a normalised output (SimNorm); None: the output is linear
    :return: the network
    """
    layers: list[nn.Module] = []
    for n_in, n_hidden in pairwise(sizes):
        layers += [nn.Linear(n_in, n_hidden), nn.LayerNorm(n_hidden), Mish()]
    layers.append(nn.Linear(sizes[-1], n_out))
    if last is not None:
        layers += [nn.LayerNorm(n_out), last]
    return nn.Sequential(*layers)


class Critics(nn.Module):
    """
    E networks of two hidden layers with layer normalisation and Mish, evaluated as one.

    :param n_critics: E
    :param n_in: size of the input
    :param n_hidden: of both hidden layers
    :param n_out: size of the output
    :param dropout: of the first layer, in training mode
    """

    def __init__(self, n_critics: int, n_in: int, n_hidden: int, n_out: int, dropout: float = 0.0):
        super().__init__()
        sizes = [n_in, n_hidden, n_hidden, n_out]
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList([th.empty(n_critics, *shape) for shape in shapes])
        self.biases = nn.ParameterList([th.zeros(n_critics, 1, n) for _, n in shapes])
        self.scales = nn.ParameterList([th.ones(n_critics, 1, n_hidden) for _ in range(2)])
        self.shifts = nn.ParameterList([th.zeros(n_critics, 1, n_hidden) for _ in range(2)])
        self.dropout = dropout
        for weight in self.weights:
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: the same for all, (B, n_in), or each one's own, (K, B, n_in)
        :param members: which of the critics, (K,) long; None: all, K = E
        :return: (K, B, n_out)
        """
        n_critics = len(self.weights[0]) if members is None else len(members)
        x = x.expand(n_critics, *x.shape[-2:])
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = th.baddbmm(_of(bias, members), x, _of(weight, members))
            if layer == len(self.weights) - 1:
                return x
            if layer == 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            x = F.layer_norm(x, x.shape[-1:]) * _of(self.scales[layer], members) + _of(self.shifts[layer], members)
            x = _Mish.apply(x)
        raise AssertionError


def _of(parameter: th.Tensor, members: th.Tensor | None) -> th.Tensor:
    return parameter if members is None else parameter[members]


def symlog(x: th.Tensor) -> th.Tensor:
    """
    :param x: any number
    :return: sign(x) ln(1 + abs(x)) (Hafner et al. 2023)
    """
    return x.sign() * x.abs().log1p()


def symexp(x: th.Tensor) -> th.Tensor:
    """
    :param x: of :func:`symlog`
    :return: its inverse
    """
    return x.sign() * x.abs().expm1()


class TwoHot:
    """
    Scalars as distributions over bins in symlog space, to be learned by cross-entropy (TD-MPC2, section 3.1).

    :param n_bins: K (TD-MPC2: 101)
    :param low: symlog of the lowest scalar (TD-MPC2: -10)
    :param high: symlog of the highest scalar (TD-MPC2: 10)
    """

    def __init__(self, n_bins: int = 101, low: float = -10.0, high: float = 10.0):
        self.n_bins, self.low, self.high = n_bins, low, high
        self.width = (high - low) / (n_bins - 1)

    def encode(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: scalars, (...)
        :return: their two neighbouring bins share the probability 1, (..., K)
        """
        position = (symlog(x).clamp(self.low, self.high) - self.low) / self.width
        lower = position.floor().clamp(max=self.n_bins - 2)
        share = (position - lower).unsqueeze(-1)
        two_hot = th.zeros(*x.shape, self.n_bins, device=x.device)
        two_hot.scatter_(-1, lower.long().unsqueeze(-1), 1 - share)
        return two_hot.scatter_(-1, lower.long().unsqueeze(-1) + 1, share)

    def decode(self, logits: th.Tensor) -> th.Tensor:
        """
        :param logits: (..., K)
        :return: the scalar at their mean bin, (...)
        """
        bins = th.linspace(self.low, self.high, self.n_bins, device=logits.device)
        return symexp(logits.softmax(dim=-1) @ bins)

    def loss(self, logits: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        :param logits: (..., K)
        :param x: scalars, (...), which may lack leading dimensions of the logits
        :return: cross-entropy, (...)
        """
        return -(self.encode(x) * logits.log_softmax(dim=-1)).sum(dim=-1)
