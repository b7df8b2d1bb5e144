"""
Forward passes of an ensemble. A layer's weights and biases of all members are stacked: (members, n_in, n_out) and
(members, 1, n_out).
"""

from collections.abc import Sequence

import torch as th
import torch.nn.functional as F

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.onednn import Activation
from sb3_mbrl.acceleration.perceptron import BACKWARD, Layout, perceptron
from sb3_mbrl.acceleration.precision import PRECISIONS

BLOCK = 2048
"""
Rows of one member evaluated at a time: few enough that their activations stay in the CPU's cache, and enough for two threads.
"""

PADDING = 64
"""Blocks are padded to a multiple of this many rows, because oneDNN compiles a kernel for each number of rows it meets."""


def supports_own_rows(inputs: th.Tensor, weights: Sequence[th.Tensor], activation: Activation, precision: str) -> bool:
    """
    :param inputs: each member's own rows, (members, B, n_in)
    :param weights: weights of each layer
    :param activation: activation of the hidden layers
    :param precision: number format of products between hidden layers while gradients are recorded, a key of ``PRECISIONS``
    :return: whether to use :func:`forward_own_rows` rather than batched products in float32
    """
    if not acceleration.enabled:
        return False
    if _hidden_dtype(precision) != th.float32:
        return True
    # With several threads batched products are faster: threads split the members and synchronise less often
    pays = onednn.MKL_IS_SLOW and th.get_num_threads() == 1 and inputs.shape[1] >= PADDING
    return pays and activation in BACKWARD and onednn.supports(inputs, weights[0])


def forward_own_rows(
    inputs: th.Tensor, weights: Sequence[th.Tensor], biases: Sequence[th.Tensor], activation: Activation, precision: str
) -> th.Tensor:
    """
    Evaluate every member on its own rows, with gradients: in float32 one member at a time with oneDNN, in bfloat16 with
    batched products.

    :param inputs: (members, B, n_in)
    :param weights: weights of each layer
    :param biases: biases of each layer
    :param activation: activation of the hidden layers
    :param precision: number format of products between hidden layers while gradients are recorded, a key of ``PRECISIONS``
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
    """Batched products. The first and the output layer, whose operands may have any magnitude, compute in float32."""
    hidden = inputs
    for i, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        if i > 0:
            weight, bias, hidden = (each.to(hidden_dtype) for each in (weight, bias, hidden))
        hidden = activation(th.baddbmm(bias, hidden, weight))
    return th.baddbmm(biases[-1], hidden.float(), weights[-1])


def supports_rows(inputs: th.Tensor) -> bool:
    """
    :param inputs: (B, n_in)
    :return: whether to use :func:`forward_rows` rather than to evaluate all members on all rows: only on the CPU, as counting
        the rows of each member would make the host wait for an accelerator
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
    Evaluate each row with its own member, a block of rows of one member at a time: with five members, a fifth of the work of
    evaluating all of them on all rows. The result has gradients if they are recorded.

    :param inputs: (B, n_in)
    :param members: the member that evaluates each row, (B,) long; or K members for each row, (K, B)
    :param weights: weights of each layer
    :param biases: biases of each layer
    :param activation: activation of the hidden layers
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
    :param activation: activation of the hidden layers
    :return: (B, n_out)
    """
    *hidden_layers, (last_bias, last_weight) = layers
    # oneDNN's products record no gradients, and their overhead is too large for few rows
    if not th.is_grad_enabled() and len(rows) >= PADDING and onednn.supports(rows):
        hidden = F.pad(rows, (0, 0, 0, -len(rows) % PADDING))
        for bias, weight in hidden_layers:
            hidden = onednn.product(hidden, weight.t(), bias.squeeze(0), activation)
        return onednn.product(hidden, last_weight.t(), last_bias.squeeze(0))[: len(rows)]
    hidden = rows
    for bias, weight in hidden_layers:
        hidden = activation(th.addmm(bias, hidden, weight))
    return th.addmm(last_bias, hidden, last_weight)
