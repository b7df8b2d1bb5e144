"""The forward passes of an ensemble, on the parameters of all its members: (members, n_in, n_out) and (members, 1, n_out)."""

from collections.abc import Sequence

import torch as th
import torch.nn.functional as F

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.onednn import Activation
from sb3_mbrl.acceleration.perceptron import BACKWARD, Layout, perceptron
from sb3_mbrl.acceleration.precision import PRECISIONS

BLOCK = 2048
"""Rows of a member evaluated at a time: their activations stay in the processor's cache, and two threads have work."""

PADDING = 64
"""Blocks are padded to a multiple of this many rows, because oneDNN compiles a kernel for each number of rows it meets."""


def supports_own_rows(inputs: th.Tensor, weights: Sequence[th.Tensor], activation: Activation, precision: str) -> bool:
    """
    :param inputs: each member's own rows, (members, B, n_in)
    :param weights: of each layer
    :param activation: of the hidden layers
    :param precision: of products between hidden layers while gradients are recorded
    :return: whether :func:`forward_own_rows` is faster than batched products in float32
    """
    if not acceleration.enabled:
        return False
    if _hidden_dtype(precision) != th.float32:
        return True
    # Several threads share the members of a batched product, which synchronises them less often than product by product
    pays = onednn.MKL_IS_SLOW and th.get_num_threads() == 1 and inputs.shape[1] >= PADDING
    return pays and activation in BACKWARD and onednn.supports(inputs, weights[0])


def forward_own_rows(
    inputs: th.Tensor, weights: Sequence[th.Tensor], biases: Sequence[th.Tensor], activation: Activation, precision: str
) -> th.Tensor:
    """
    Every member on its own rows, with gradients: member by member with oneDNN, or in bfloat16.

    :param inputs: (members, B, n_in)
    :param weights: of each layer
    :param biases: of each layer
    :param activation: of the hidden layers
    :param precision: of products between hidden layers while gradients are recorded
    :return: the output layer's output, (members, B, n_out)
    """
    hidden_dtype = _hidden_dtype(precision)
    if hidden_dtype != th.float32:
        return _batched(inputs, weights, biases, activation, hidden_dtype)
    layout = Layout.of(len(weights), [activation] * (len(weights) - 1))
    layers = zip(weights, biases, strict=True)
    parameters = [each.unbind() for weight, bias in layers for each in (weight.mT, bias.squeeze(1))]
    return th.stack([perceptron(rows, member, layout) for rows, *member in zip(inputs, *parameters, strict=True)])


def _hidden_dtype(precision: str) -> th.dtype:
    return PRECISIONS[precision] if th.is_grad_enabled() else th.float32


def _batched(
    inputs: th.Tensor,
    weights: Sequence[th.Tensor],
    biases: Sequence[th.Tensor],
    activation: Activation,
    hidden_dtype: th.dtype,
) -> th.Tensor:
    """The first and the output layer, whose operands may have any magnitude, in float32."""
    hidden = inputs
    for i, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        if i > 0:
            weight, bias, hidden = (each.to(hidden_dtype) for each in (weight, bias, hidden))
        hidden = activation(th.baddbmm(bias, hidden, weight))
    return th.baddbmm(biases[-1], hidden.float(), weights[-1])


def supports_rows(inputs: th.Tensor) -> bool:
    """
    :param inputs: (B, n_in)
    :return: whether :func:`forward_rows` is faster than evaluating all members on all rows: on a processor. Looking up which
        rows belong to which member would make the host wait for an accelerator
    """
    return acceleration.enabled and inputs.device.type == "cpu"


def forward_rows(
    inputs: th.Tensor,
    members: th.Tensor,
    weights: Sequence[th.Tensor],
    biases: Sequence[th.Tensor],
    activation: Activation,
) -> th.Tensor:
    """
    Each row by its own member, a block of rows of one member at a time: a fifth of the work of evaluating five members on all
    rows. With gradients if they are recorded.

    :param inputs: (B, n_in)
    :param members: the member that evaluates each row, (B,) long; or several, (K, B)
    :param weights: of each layer
    :param biases: of each layer
    :param activation: of the hidden layers
    :return: the output layer's output, (B, n_out) or (K, B, n_out)
    """
    if members.dim() == 2:
        repeated = inputs.repeat(len(members), 1)
        return forward_rows(repeated, members.flatten(), weights, biases, activation).unflatten(0, members.shape)
    if (members[1:] < members[:-1]).any():
        order = members.argsort()
        in_order = forward_rows(inputs.index_select(0, order), members[order], weights, biases, activation)
        return in_order.index_select(0, order.argsort())
    counts = th.bincount(members, minlength=len(weights[0])).tolist()
    outputs: list[th.Tensor] = []
    for member, rows in enumerate(inputs.split(counts)):
        layers = [(bias[member], weight[member]) for bias, weight in zip(biases, weights, strict=True)]
        outputs += [_forward_block(block, layers, activation) for block in rows.split(BLOCK)]
    return th.cat(outputs)


def _forward_block(rows: th.Tensor, layers: Sequence[tuple[th.Tensor, th.Tensor]], activation: Activation) -> th.Tensor:
    """
    :param rows: (B, n_in)
    :param layers: bias (1, n_out) and weight (n_in, n_out) of each layer of one member
    :param activation: of the hidden layers
    :return: (B, n_out)
    """
    *hidden_layers, (last_bias, last_weight) = layers
    # oneDNN's products have no gradient, and their overhead is too large for few rows
    if not th.is_grad_enabled() and len(rows) >= PADDING and onednn.supports(rows):
        hidden = F.pad(rows, (0, 0, 0, -len(rows) % PADDING))
        for bias, weight in hidden_layers:
            hidden = onednn.product(hidden, weight.t(), bias.squeeze(0), activation)
        return onednn.product(hidden, last_weight.t(), last_bias.squeeze(0))[: len(rows)]
    hidden = rows
    for bias, weight in hidden_layers:
        hidden = activation(th.addmm(bias, hidden, weight))
    return th.addmm(last_bias, hidden, last_weight)
