"""Building blocks of the networks of TD-MPC and TD-MPC2."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.acceleration.activations import group_softmax, mish_
from sb3_mbrl.acceleration.onednn import Linear

GROUP_SIZE = 8
"""Number of entries in each group in which a latent state is normalised."""


class SimNorm(nn.Module):
    """
    Simplicial normalisation (Lavoie et al. 2022, https://arxiv.org/abs/2204.00616): a softmax within each group of entries.

    :param group_size: V, entries of a group (TD-MPC2: 8)
    """

    def __init__(self, group_size: int = GROUP_SIZE):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (..., D), D a multiple of V
        :return: tensor of the same shape; entries are not negative, and each group sums to 1
        """
        return group_softmax(x.unflatten(-1, (-1, self.group_size))).flatten(-2)


class NormMish(nn.LayerNorm):
    """Layer normalisation, then Mish."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: (..., D)
        :return: the same shape
        """
        return mish_(super().forward(input))


def normed_mlp(sizes: Sequence[int], n_out: int, last: nn.Module | None = None, dropout: float = 0.0) -> nn.Sequential:
    """
    Linear layers, each followed by layer normalisation and Mish.

    :param sizes: units of the input, then of each hidden layer
    :param n_out: units of the output
    :param last: module applied to the normalised output (SimNorm); None: the output is linear
    :param dropout: dropout of the first layer, in training mode
    :return: the network
    """
    layers: list[nn.Module] = []
    for n_in, n_hidden in pairwise(sizes):
        drop = [nn.Dropout(dropout)] if dropout > 0 and not layers else []
        layers += [Linear(n_in, n_hidden), *drop, NormMish(n_hidden)]
    layers.append(Linear(sizes[-1], n_out))
    if last is not None:
        layers += [nn.LayerNorm(n_out), last]
    return nn.Sequential(*layers)


class Critics(nn.ModuleList):
    """An ensemble of networks with the same layers, as :func:`normed_mlp` makes them."""

    def forward(self, x: th.Tensor, members: th.Tensor | None = None) -> th.Tensor:
        """
        :param x: input of all networks, (B, n_in), or an input for each, (K, B, n_in)
        :param members: the networks to evaluate, (K,) long; None: all
        :return: (K, B, n_out)
        """
        if members is not None and members.device.type != "cpu":
            return self._gathered(x, members)
        chosen = range(len(self)) if members is None else members.tolist()
        inputs = x if x.dim() == 3 else len(chosen) * [x]
        return th.stack([self[member](own) for member, own in zip(chosen, inputs, strict=True)])

    def _gathered(self, x: th.Tensor, members: th.Tensor) -> th.Tensor:
        """The same with indexed weights, because reading ``members`` would wait until an accelerator has done all its work."""
        x = x.expand(len(members), *x.shape[-2:])
        for layers in zip(*self, strict=True):
            first = layers[0]
            if isinstance(first, nn.Dropout):
                x = first(x)
                continue
            weight, bias = (th.stack([getattr(layer, name) for layer in layers])[members] for name in ("weight", "bias"))
            if isinstance(first, nn.Linear):
                x = th.baddbmm(bias.unsqueeze(1), x, weight.mT)
            else:
                normed = F.layer_norm(x, first.normalized_shape, eps=first.eps)
                x = mish_(th.addcmul(bias.unsqueeze(1), normed, weight.unsqueeze(1)))
        return x


def symlog(x: th.Tensor) -> th.Tensor:
    """
    :param x: any number
    :return: sign(x) ln(1 + abs(x)) (Hafner et al. 2023)
    """
    return x.sign() * x.abs().log1p()


def symexp(x: th.Tensor) -> th.Tensor:
    """
    :param x: any number
    :return: the inverse of :func:`symlog`
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
        :return: distributions, (..., K): the probability is shared by the two bins next to each scalar; NaN for NaN
        """
        position = (symlog(x).clamp(self.low, self.high) - self.low) / self.width
        lower = position.long().clamp_(0, self.n_bins - 2).unsqueeze(-1)  # NaN maps to an arbitrary bin; its share stays NaN
        share = position.unsqueeze(-1) - lower
        two_hot = th.zeros(*x.shape, self.n_bins, device=x.device)
        two_hot.scatter_(-1, lower, 1 - share)
        return two_hot.scatter_(-1, lower + 1, share)

    def decode(self, logits: th.Tensor) -> th.Tensor:
        """
        :param logits: (..., K)
        :return: the scalar at the mean of the predicted distribution in symlog space, (...)
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
