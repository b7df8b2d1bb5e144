"""The networks of an ensemble and their loss."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.acceleration import ensemble as accelerated

ACTIVATIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "tanh": th.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
}


class Networks(nn.Module):
    """
    An ensemble of ``members`` networks, each of which predicts a Gaussian. All members are evaluated at once: there is one
    parameter tensor per layer, (members, inputs, outputs).

    :param n_inputs: inputs, I
    :param n_outputs: outputs, D
    :param members: number of networks
    :param net_arch: hidden units per layer
    :param activation: a key of ``ACTIVATIONS``
    :param probabilistic: also predict a log-variance
    :param nll_beta: see :meth:`loss`
    :param learn_logvar_bounds: whether the bounds of the log-variance are learned
    :param precision: number format of products between hidden layers while gradients are recorded
    :param generator: source of the initial weights; None draws from PyTorch's global stream
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        members: int,
        net_arch: Sequence[int],
        activation: str,
        probabilistic: bool,
        nll_beta: float,
        learn_logvar_bounds: bool,
        precision: str,
        generator: th.Generator | None,
    ):
        super().__init__()
        self.output_dim = n_outputs
        self.ensemble_size = members
        self.net_arch = tuple(net_arch)
        self.activation = activation
        self.probabilistic = probabilistic
        self.nll_beta = nll_beta
        self.learn_logvar_bounds = learn_logvar_bounds
        self.precision = precision
        shapes = weight_shapes(n_inputs, n_outputs, members, net_arch, probabilistic)
        self.weights = nn.ParameterList(_initial_weight(*shape, generator) for shape in shapes)
        self.biases = nn.ParameterList(nn.Parameter(th.zeros(members, 1, n_out)) for members, _, n_out in shapes)
        self.max_logvar = nn.Parameter(th.full((n_outputs,), 0.5), requires_grad=learn_logvar_bounds)
        self.min_logvar = nn.Parameter(th.full((n_outputs,), -10.0), requires_grad=learn_logvar_bounds)

    def forward(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Evaluate every member on its own rows.

        :param inputs: normalised inputs, (members, B, I)
        :return: mean and log-variance of the normalised outputs, (members, B, D) each
        """
        weights, biases, activation = [*self.weights], [*self.biases], ACTIVATIONS[self.activation]
        if accelerated.supports_own_rows(inputs, weights, activation, self.precision):
            return self._split_head(accelerated.forward_own_rows(inputs, weights, biases, activation, self.precision))
        return self._split_head(self._forward_all(inputs))

    def _forward_all(self, inputs: th.Tensor) -> th.Tensor:
        """Evaluate every member on its own rows: (members, B, I) -> outputs of the last layer, (members, B, head)."""
        hidden = inputs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = ACTIVATIONS[self.activation](th.baddbmm(bias, hidden, weight))
        return th.baddbmm(self.biases[-1], hidden, self.weights[-1])

    def _forward_rows(self, inputs: th.Tensor, members: th.Tensor) -> th.Tensor:
        """
        Evaluate each row with its own member.

        :param inputs: normalised inputs, (B, I)
        :param members: the member of each row, (B,) long; or K members for each row, (K, B)
        :return: outputs of the last layer, (B, head) or (K, B, head): D columns, 2 D if it is probabilistic
        """
        if accelerated.supports_rows(inputs):
            return accelerated.forward_rows(inputs, members, [*self.weights], [*self.biases], ACTIVATIONS[self.activation])
        of_all = self._forward_all(inputs.expand(self.ensemble_size, *inputs.shape))
        return of_all[members, th.arange(len(inputs), device=inputs.device)]

    def _split_head(self, head: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if not self.probabilistic:
            return head, th.full_like(head, -float("inf"))
        mean, logvar = head.chunk(2, dim=-1)
        logvar = self.max_logvar - F.softplus(self.max_logvar - logvar)
        logvar = self.min_logvar + F.softplus(logvar - self.min_logvar)
        return mean, logvar

    def _std(self, head: th.Tensor) -> th.Tensor:
        """Closed form of ``exp(logvar / 2)`` with :meth:`_split_head`'s ``logvar``: the exponential cancels both softplus."""
        logvar = head[:, self.output_dim :]
        return (self.min_logvar.exp() + self.max_logvar.exp() * th.sigmoid(logvar - self.max_logvar)).sqrt()

    def loss(self, inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        Gaussian negative log-likelihood up to constants, averaged over rows and outputs and summed over members; for a
        deterministic ensemble, the squared error. With ``nll_beta`` > 0 each row and output is weighted by its predicted
        variance to this power.

        A further term pulls the bounds of the log-variance together, with weight 0.01 (Chua et al. 2018, appendix A.1) times
        the weight that ``nll_beta`` gives a variance at the bound.

        :param inputs: normalised inputs, (members, B, I)
        :param targets: normalised outputs, (members, B, D)
        :return: scalar
        """
        mean, logvar = self(inputs)
        error = (mean - targets) ** 2
        if not self.probabilistic:
            return error.mean(dim=(1, 2)).sum()
        nll = error * th.exp(-logvar) + logvar
        upper: th.Tensor = self.max_logvar
        lower: th.Tensor = self.min_logvar
        if self.nll_beta > 0:
            nll = nll * th.exp(self.nll_beta * logvar.detach())
            # Each bound is weighted like a variance at the bound. With weight 1, the pull on the lower bound would outweigh
            # the likelihood, and the noise floor would rise however well the model predicts
            upper = upper * th.exp(self.nll_beta * upper.detach())
            lower = lower * th.exp(self.nll_beta * lower.detach())
        return nll.mean(dim=(1, 2)).sum() + 0.01 * (upper.sum() - lower.sum())


def weight_shapes(
    n_inputs: int, n_outputs: int, members: int, net_arch: Sequence[int], probabilistic: bool
) -> list[tuple[int, int, int]]:
    """
    :param n_inputs: inputs of each network
    :param n_outputs: outputs of each network
    :param members: number of networks
    :param net_arch: hidden units per layer
    :param probabilistic: whether the last layer also gives a log-variance for each output
    :return: (members, inputs, outputs) of each layer
    """
    dims = [n_inputs, *net_arch, n_outputs * (2 if probabilistic else 1)]
    return [(members, n_in, n_out) for n_in, n_out in pairwise(dims)]


def _initial_weight(members: int, n_in: int, n_out: int, generator: th.Generator | None) -> nn.Parameter:
    """
    :param members: number of networks
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
    :raises ValueError: the number of values is not the number of layers
    """
    if weight_decay is None:
        published = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
        return tuple(float(decay) for decay in np.interp(np.linspace(0, 4, n_layers), range(5), published))
    if np.ndim(weight_decay) == 0:
        return (float(weight_decay),) * n_layers  # type: ignore[arg-type]
    assert isinstance(weight_decay, (Sequence, np.ndarray))
    if len(weight_decay) != n_layers:
        raise ValueError(
            f"weight_decay must be one number or one for each of {n_layers} layers (the output layer counts), "
            f"got {len(weight_decay)} numbers."
        )
    return tuple(float(decay) for decay in weight_decay)
