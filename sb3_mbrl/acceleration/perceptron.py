"""The networks of an SB3 policy, computed faster while they are trained: by oneDNN, in bfloat16 where asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, zip_longest
from typing import Any, ClassVar

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.acceleration import onednn

PRECISIONS: dict[str, th.dtype] = {"float32": th.float32, "bfloat16": th.bfloat16}

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.SiLU: "silu"}


@contextmanager
def accelerated(module: nn.Module, precision: str = "float32") -> Iterator[None]:
    """
    Within the context oneDNN computes the linear layers of a module, those in one ``nn.Sequential`` with ReLU, tanh or
    SiLU between as one operation. Parameters, their names and all results stay what they are, up to rounding. Where
    oneDNN cannot help (GPUs, other types than float32), layers compute as ever.

    :param module: a policy, whose layers change their class for that time, and nothing else
    :param precision: ``"bfloat16"`` computes products between hidden layers in it. Inputs and outputs, which may be of any
        magnitude and cost little, stay float32
    """
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for each in list(module.modules()):
            faster = _faster(each, precision)
            if faster is not None:
                changed.append((each, type(each)))
                each.__class__ = faster
        yield
    finally:
        for each, original in changed:
            each.__class__ = original


def check_precision(precision: str, device: th.device) -> None:
    """
    :param precision: of hidden layers
    :param device: that multiplies
    :raises ValueError: it is not known, or the device cannot do it
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}.")
    if precision == "bfloat16" and device.type == "cpu" and not HAS_BFLOAT16:
        raise ValueError(
            "precision='bfloat16': this processor has no such products (AVX512-BF16 or AMX) and would only be slower. Use "
            "'float32'; for a model saved elsewhere, load(..., precision='float32')."
        )


def _has_bfloat16() -> bool:
    try:
        # oneDNN supports more processors: those it emulates them on, three times slower than float32
        has_them = th.cpu._is_avx512_bf16_supported() or th.cpu._is_amx_tile_supported()
        return bool(has_them and th.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # PyTorch's own business
        return False


HAS_BFLOAT16 = _has_bfloat16()
"""Whether this processor multiplies such numbers itself."""


def _faster(module: nn.Module, precision: str) -> type[nn.Module] | None:
    # Not isinstance: subclasses may compute something else
    if type(module) is nn.Linear and module.bias is not None:
        return onednn.Linear
    if type(module) is nn.Sequential and is_perceptron(list(module)):
        return MLP if precision == "float32" else HalfMLP
    return None


def is_perceptron(layers: list[nn.Module]) -> bool:
    """
    :param layers: of a network
    :return: whether these are linear layers, each followed by an activation, the last one perhaps not, without hooks
    """
    linear, between = layers[::2], layers[1::2]
    return (
        len(layers) > 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        and all(type(layer) in ACTIVATIONS for layer in between)
        and not any(map(has_hooks, layers))
    )


def has_hooks(module: nn.Module) -> bool:
    """
    :param module: one that will not be called itself
    :return: whether somebody waits for its call
    """
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def has_gradient_hooks(parameter: th.Tensor) -> bool:
    """
    :param parameter: whose gradient autograd will not compute
    :return: whether somebody waits for that
    """
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)  # type: ignore[attr-defined]


def parameters_and_layout(layers: Iterable[nn.Module], hidden: th.dtype = th.float32) -> tuple[list[th.Tensor], "Layout"]:
    """
    :param layers: of a perceptron
    :param hidden: of its products between hidden layers
    :return: weight and bias of each linear layer in turn, and what is between them
    """
    each: list[Any] = [*layers]
    parameters = [parameter for layer in each[::2] for parameter in (layer.weight, layer.bias)]
    return parameters, Layout.of(len(each[::2]), [ACTIVATIONS[type(activation)] for activation in each[1::2]], hidden)


class MLP(nn.Sequential):
    """``nn.Sequential`` of linear layers and activations, as one operation where oneDNN does it."""

    hidden_dtype: ClassVar[th.dtype] = th.float32

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: (B, n_in)
        :return: (B, n_out)
        """
        parameters, layout = parameters_and_layout(self, self.hidden_dtype)
        if input.dim() == 2 and onednn.fits(input, *parameters):
            return perceptron(input, parameters, layout)
        return differentiable(input, parameters, layout)


class HalfMLP(MLP):
    """With products of hidden layers in bfloat16."""

    hidden_dtype = th.bfloat16


def perceptron(x: th.Tensor, parameters: Sequence[th.Tensor], layout: "Layout") -> th.Tensor:
    """
    Linear layers and activations as one operation, with gradients.

    :param x: (B, n_in), float32
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param layout: of the layers
    :return: (B, n_out), float32
    """
    return _Perceptron.apply(x, layout, *parameters)  # type: ignore[no-any-return]


def differentiable(x: th.Tensor, parameters: Sequence[th.Tensor], layout: "Layout") -> th.Tensor:
    """
    The same by PyTorch, layer by layer, with derivatives of any order.

    :param x: (..., n_in)
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param layout: of the layers
    :return: (..., n_out), float32
    """
    for dtype, weight, bias, activation in zip_longest(layout.dtypes, parameters[::2], parameters[1::2], layout.activations):
        x = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
        x = x if activation is None else FUNCTIONS[activation](x)
    return x.float()


@dataclass(frozen=True)
class Layout:
    """
    :param activations: keys of ``DERIVATIVES``, one after each layer; after the last one perhaps none
    :param dtypes: of the layers' products
    """

    activations: tuple[str, ...]
    dtypes: tuple[th.dtype, ...]

    @classmethod
    def of(cls, n_layers: int, activations: Sequence[str], hidden: th.dtype = th.float32) -> "Layout":
        """
        :param n_layers: linear ones
        :param activations: after them
        :param hidden: of the products between hidden layers. Inputs and outputs may be of any magnitude: float32
        """
        # What ends in an activation has hidden layers alone, its heads come after it; but a last tanh squashes actions
        n_hidden = n_layers if len(activations) == n_layers and activations[-1] != "tanh" else n_layers - 1
        dtypes = [hidden if 0 < i < n_hidden else th.float32 for i in range(n_layers)]
        return cls(tuple(activations), tuple(dtypes))


@dataclass(frozen=True)
class Trace:
    """
    What the derivatives of a pass through a perceptron follow from.

    :param layout: of its layers
    :param inputs: of each layer, (B, n_in)
    :param weights: of each layer, (n_out, n_in)
    :param sources: for ``DERIVATIVES``, of each activation, (B, n_out)
    """

    layout: Layout
    inputs: Sequence[th.Tensor]
    weights: Sequence[th.Tensor]
    sources: Sequence[th.Tensor]

    def __getitem__(self, rows: slice) -> "Trace":
        """
        :param rows: of the batch
        :return: what the derivatives of these rows follow from
        """
        inputs, sources = ([each[rows] for each in tensors] for tensors in (self.inputs, self.sources))
        return Trace(self.layout, inputs, self.weights, sources)


def forward(x: th.Tensor, parameters: Sequence[th.Tensor], layout: Layout) -> tuple[th.Tensor, Trace]:
    """
    :param x: (B, n_in), float32
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param layout: of the layers
    :return: (B, n_out), float32, without a gradient; and what :func:`backward` needs
    """
    inputs, weights, sources = [], [], []
    for dtype, weight, bias, activation in zip_longest(layout.dtypes, parameters[::2], parameters[1::2], layout.activations):
        inputs.append(x.to(dtype))
        weights.append(weight.to(dtype))
        fused = activation if activation in FUSED else "none"
        x = onednn.product(inputs[-1], weights[-1], bias.to(dtype), fused)
        if activation is not None:
            sources.append(x)
        if activation == "silu":
            x = F.silu(x)
    return x.float(), Trace(layout, inputs, weights, sources)


def backward(
    trace: Trace, gradient: th.Tensor, of_input: bool = True, of_parameters: Sequence[bool] | None = None
) -> tuple[th.Tensor | None, list[th.Tensor | None]]:
    """
    :param trace: of the forward pass
    :param gradient: in its output, (B, n_out)
    :param of_input: whether its input has one
    :param of_parameters: which parameters have one; None: all
    :return: gradients in the input, (B, n_in), and in the parameters
    """
    n = len(trace.inputs)
    needed = [True] * (2 * n) if of_parameters is None else of_parameters
    gradients: list[th.Tensor | None] = [None] * (2 * n)
    for i in reversed(range(n)):
        gradient = gradient.to(trace.weights[i].dtype)
        if i < len(trace.sources):
            gradient = DERIVATIVES[trace.layout.activations[i]](gradient, trace.sources[i])
        if needed[2 * i]:
            gradients[2 * i] = onednn.weight_gradient(gradient, trace.inputs[i]).float()
        if needed[2 * i + 1]:
            gradients[2 * i + 1] = gradient.sum(dim=0, dtype=th.float32)
        if i > 0 or of_input:
            gradient = onednn.product(gradient, trace.weights[i].t())
    return gradient.float() if of_input else None, gradients


FUSED = ("relu", "tanh")
"""Activations that oneDNN applies to what it has multiplied."""

FUNCTIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {"relu": F.relu, "tanh": th.tanh, "silu": F.silu}

DERIVATIVES: dict[str, Callable[[th.Tensor, th.Tensor], th.Tensor]] = {
    "relu": lambda gradient, value: th.ops.aten.threshold_backward(gradient, value, 0),
    "tanh": th.ops.aten.tanh_backward,
    "silu": th.ops.aten.silu_backward,
}
"""Derivatives of activations: from the value of an activation that is fused, otherwise from its argument."""


class _Perceptron(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, layout: Layout, *parameters: th.Tensor) -> th.Tensor:
        output, trace = forward(x, parameters, layout)
        ctx.layout = layout
        ctx.save_for_backward(*trace.inputs, *trace.weights, *trace.sources, x, *parameters)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        n, saved = len(ctx.layout.dtypes), ctx.saved_tensors
        of_input, _, *of_parameters = ctx.needs_input_grad
        x, *parameters = saved[-1 - 2 * n :]
        if th.is_grad_enabled():  # a second derivative will be asked for
            wanted = compress([x, *parameters], [of_input, *of_parameters])
            output = differentiable(x, parameters, ctx.layout)
            found = iter(th.autograd.grad(output, [*wanted], gradients, create_graph=True))
            in_input, *in_parameters = [next(found) if needed else None for needed in (of_input, *of_parameters)]
        else:
            trace = Trace(ctx.layout, saved[:n], saved[n : 2 * n], saved[2 * n : -1 - 2 * n])
            in_input, in_parameters = backward(trace, gradients[0], of_input, of_parameters)
        return in_input, None, *in_parameters
