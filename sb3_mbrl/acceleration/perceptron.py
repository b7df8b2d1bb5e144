"""
Multi-layer perceptrons as functions of tensors, with explicit backward passes: these take fewer operations than autograd, and
oneDNN computes the products.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.onednn import Activation

ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: F.relu, nn.Tanh: th.tanh, nn.SiLU: F.silu}

FUSED = (F.relu, th.tanh)
"""Activations whose derivative can be computed from their value alone, so that oneDNN may fuse them with a product."""

BACKWARD: dict[Activation, Callable[[th.Tensor, th.Tensor], th.Tensor]] = {
    F.relu: lambda gradient, value: th.ops.aten.threshold_backward(gradient, value, 0),
    th.tanh: th.ops.aten.tanh_backward,
    F.silu: th.ops.aten.silu_backward,
}
"""
``f(gradient of the output, saved) -> gradient of the input``. What is saved is the value of a fused activation, and the
argument of any other.
"""


def is_perceptron(layers: Sequence[nn.Module]) -> bool:
    """
    :param layers: layers of a network, in order
    :return: whether they are linear layers, each followed by an activation (the last one need not be), without hooks
    """
    linear, between = layers[::2], layers[1::2]
    # Exact types, because a subclass may compute something else
    return (
        len(layers) > 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        and all(type(layer) in ACTIVATIONS for layer in between)
        and not any(map(has_hooks, layers))
    )


def has_hooks(module: nn.Module) -> bool:
    """
    :param module: a module
    :return: whether hooks are registered or its ``forward`` was replaced, which code that bypasses its ``forward`` would skip
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def has_gradient_hooks(parameter: th.Tensor) -> bool:
    """
    :param parameter: a parameter
    :return: whether hooks are registered, which code that bypasses autograd would skip
    """
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Layout:
    """
    The structure of a perceptron, without its parameters.

    :param activations: keys of ``BACKWARD``, one for each layer; none for the last one if it is linear
    :param dtypes: number format of each layer's product
    """

    activations: tuple[Activation, ...]
    dtypes: tuple[th.dtype, ...]

    @classmethod
    def of(cls, n_layers: int, activations: Sequence[Activation], hidden: th.dtype = th.float32) -> "Layout":
        """
        :param n_layers: number of linear layers
        :param activations: activations after them, as many or one fewer: then the last layer is an output layer
        :param hidden: number format of products between hidden layers. The network's inputs and outputs may have any
            magnitude, so the first layer and an output layer compute in float32
        :return: the layout
        """
        has_output_layer = len(activations) < n_layers
        n_hidden = n_layers - 1 if has_output_layer else n_layers
        dtypes = [hidden if 0 < i < n_hidden else th.float32 for i in range(n_layers)]
        return cls(tuple(activations), tuple(dtypes))


def parameters_and_layout(layers: Sequence[nn.Module], hidden: th.dtype = th.float32) -> tuple[list[th.Tensor], Layout]:
    """
    :param layers: layers of a perceptron, see :func:`is_perceptron`
    :param hidden: number format of products between hidden layers
    :return: weight and bias of each linear layer in turn, and the layout
    """
    linear: Sequence[Any] = layers[::2]
    parameters = [parameter for layer in linear for parameter in (layer.weight, layer.bias)]
    return parameters, Layout.of(len(linear), [ACTIVATIONS[type(activation)] for activation in layers[1::2]], hidden)


@dataclass(frozen=True)
class Trace:
    """
    What the backward pass needs from a forward pass.

    :param layout: layout of the perceptron
    :param inputs: input of each layer, (B, n_in)
    :param weights: weight of each layer, (n_out, n_in), in the number format of its product
    :param saved: the ``saved`` argument of each activation's function in ``BACKWARD``, (B, n_out)
    """

    layout: Layout
    inputs: Sequence[th.Tensor]
    weights: Sequence[th.Tensor]
    saved: Sequence[th.Tensor]

    def __getitem__(self, rows: slice) -> "Trace":
        """
        :param rows: rows of the batch
        :return: the trace of these rows
        """
        inputs, saved = ([each[rows] for each in tensors] for tensors in (self.inputs, self.saved))
        return Trace(self.layout, inputs, self.weights, saved)


def forward(x: th.Tensor, parameters: Sequence[th.Tensor], layout: Layout) -> tuple[th.Tensor, Trace]:
    """
    :param x: (B, n_in), float32
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param layout: layout of the perceptron
    :return: the output, (B, n_out) float32, without a gradient, and what :func:`backward` needs
    """
    inputs, weights, saved = [], [], []
    for dtype, weight, bias, activation in zip_longest(layout.dtypes, parameters[::2], parameters[1::2], layout.activations):
        inputs.append(x.to(dtype))
        weights.append(weight.to(dtype))
        fused = activation if activation in FUSED else None
        x = onednn.product(inputs[-1], weights[-1], bias.to(dtype), fused)
        if activation is not None:
            saved.append(x)
            x = x if activation is fused else activation(x)
    return x.float(), Trace(layout, inputs, weights, saved)


def backward(
    trace: Trace, gradient: th.Tensor, needs_input: bool = True, needs_parameters: Sequence[bool] | None = None
) -> tuple[th.Tensor | None, list[th.Tensor | None]]:
    """
    :param trace: trace of the forward pass
    :param gradient: gradient of the output, (B, n_out)
    :param needs_input: whether the gradient of the input is needed
    :param needs_parameters: for each parameter whether its gradient is needed; None: all are
    :return: the gradient of the input, (B, n_in), and those of the parameters; None for each one that is not needed
    """
    n = len(trace.inputs)
    needed = [True] * (2 * n) if needs_parameters is None else needs_parameters
    gradients: list[th.Tensor | None] = [None] * (2 * n)
    for i in reversed(range(n)):
        gradient = gradient.to(trace.weights[i].dtype)
        if i < len(trace.saved):
            gradient = BACKWARD[trace.layout.activations[i]](gradient, trace.saved[i])
        if needed[2 * i]:
            gradients[2 * i] = onednn.weight_gradient(gradient, trace.inputs[i]).float()
        if needed[2 * i + 1]:
            gradients[2 * i + 1] = gradient.sum(dim=0, dtype=th.float32)
        if i > 0 or needs_input:
            gradient = onednn.product(gradient, trace.weights[i].t())
    return gradient.float() if needs_input else None, gradients


def perceptron(x: th.Tensor, parameters: Sequence[th.Tensor], layout: Layout) -> th.Tensor:
    """
    A perceptron as one operation for autograd.

    :param x: (B, n_in), float32
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param layout: layout of the perceptron
    :return: (B, n_out), float32
    """
    return _Perceptron.apply(x, layout, *parameters)  # type: ignore[no-any-return]


class _Perceptron(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, layout: Layout, *parameters: th.Tensor) -> th.Tensor:
        output, trace = forward(x, parameters, layout)
        ctx.layout = layout
        ctx.save_for_backward(*trace.inputs, *trace.weights, *trace.saved, x, *parameters)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        n, saved = len(ctx.layout.dtypes), ctx.saved_tensors
        needs_input, _, *needs_parameters = ctx.needs_input_grad
        x, *parameters = saved[-1 - 2 * n :]
        if th.is_grad_enabled():  # as with create_graph=True, for a second derivative
            needed = [needs_input, *needs_parameters]
            output = _by_autograd(x, parameters, ctx.layout)
            found = iter(th.autograd.grad(output, [*compress([x, *parameters], needed)], gradients, create_graph=True))
            grad_input, *grad_parameters = [next(found) if each else None for each in needed]
        else:
            trace = Trace(ctx.layout, saved[:n], saved[n : 2 * n], saved[2 * n : -1 - 2 * n])
            grad_input, grad_parameters = backward(trace, gradients[0], needs_input, needs_parameters)
        return grad_input, None, *grad_parameters


def _by_autograd(x: th.Tensor, parameters: Sequence[th.Tensor], layout: Layout) -> th.Tensor:
    """The same as :func:`perceptron`, layer by layer in plain PyTorch, with derivatives of any order."""
    for dtype, weight, bias, activation in zip_longest(layout.dtypes, parameters[::2], parameters[1::2], layout.activations):
        x = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
        x = x if activation is None else activation(x)
    return x.float()
