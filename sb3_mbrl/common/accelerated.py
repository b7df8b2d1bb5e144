"""The networks of an SB3 policy, computed faster while they are trained: by oneDNN, in bfloat16 where asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, ClassVar

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl.common import onednn

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
    if precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
        raise ValueError("precision='bfloat16': this processor has no such products and would only be slower. Use 'float32'.")


def _has_bfloat16() -> bool:
    try:
        return bool(th.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # PyTorch's own business
        return False


def _faster(module: nn.Module, precision: str) -> type[nn.Module] | None:
    # Not isinstance: subclasses may compute something else
    if type(module) is nn.Linear and module.bias is not None:
        return onednn.Linear
    if type(module) is nn.Sequential and _is_perceptron(list(module)):
        return MLP if precision == "float32" else HalfMLP
    return None


def _is_perceptron(layers: list[nn.Module]) -> bool:
    """Linear layers, each followed by an activation, the last one perhaps not."""
    linear, between = layers[::2], layers[1::2]
    return (
        len(layers) > 1
        and all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        and all(type(layer) in ACTIVATIONS for layer in between)
    )


class MLP(nn.Sequential):
    """``nn.Sequential`` of linear layers and activations, as one operation where oneDNN does it."""

    hidden_dtype: ClassVar[th.dtype] = th.float32

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: (B, n_in)
        :return: (B, n_out)
        """
        layers: list[Any] = list(self)
        linear, activations = layers[::2], layers[1::2]
        parameters = [parameter for layer in linear for parameter in (layer.weight, layer.bias)]
        # The inputs and the outputs, or the features of the heads behind, are of any magnitude
        dtypes = [self.hidden_dtype if 0 < i < len(activations) else th.float32 for i in range(len(linear))]
        if input.dim() == 2 and onednn.fits(input, *parameters):
            names = [ACTIVATIONS[type(activation)] for activation in activations]
            return perceptron(input, parameters, names, dtypes)
        for layer, dtype, activation in zip_longest(linear, dtypes, activations):
            input = F.linear(input.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
            input = input if activation is None else activation(input)
        return input.float()


class HalfMLP(MLP):
    """With products of hidden layers in bfloat16."""

    hidden_dtype = th.bfloat16


def perceptron(
    x: th.Tensor, parameters: Sequence[th.Tensor], activations: Sequence[str], dtypes: Sequence[th.dtype] | None = None
) -> th.Tensor:
    """
    Linear layers and activations as one operation of oneDNN, with gradients.

    :param x: (B, n_in), float32
    :param parameters: weight (n_out, n_in) and bias (n_out,) of each layer in turn
    :param activations: keys of ``DERIVATIVES``, after each layer; after the last one perhaps none
    :param dtypes: of each layer's product; None: float32
    :return: (B, n_out), float32
    """
    dtypes = dtypes or [th.float32] * (len(parameters) // 2)
    return _Perceptron.apply(x, dtypes, activations, *parameters)  # type: ignore[no-any-return]


DERIVATIVES: dict[str, Callable[[th.Tensor, th.Tensor], th.Tensor]] = {
    "relu": lambda gradient, value: th.ops.aten.threshold_backward(gradient, value, 0),
    "tanh": th.ops.aten.tanh_backward,
    "silu": th.ops.aten.silu_backward,
}
"""Of an activation, from its value; of SiLU, which oneDNN does not fuse with a product here, from its argument."""


class _Perceptron(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: th.Tensor, dtypes: Sequence[th.dtype], activations: Sequence[str], *parameters: th.Tensor
    ) -> th.Tensor:
        inputs, weights, sources = [], [], []
        for dtype, weight, bias, activation in zip_longest(dtypes, parameters[::2], parameters[1::2], activations):
            inputs.append(x.to(dtype))
            weights.append(weight.to(dtype))
            fused = activation if activation in ("relu", "tanh") else "none"
            x = onednn.product(inputs[-1], weights[-1], bias.to(dtype), fused)
            if activation is not None:
                sources.append(x)
            if activation == "silu":
                x = F.silu(x)
        ctx.activations = activations
        ctx.save_for_backward(*weights, *inputs, *sources)
        return x.float()

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        needs_x, _, _, *needs = ctx.needs_input_grad
        n = len(needs) // 2
        weights, inputs, sources = ctx.saved_tensors[:n], ctx.saved_tensors[n : 2 * n], ctx.saved_tensors[2 * n :]
        gradient = gradients[0]
        of_parameters: list[th.Tensor | None] = []
        for i in reversed(range(n)):
            gradient = gradient.to(weights[i].dtype)
            if i < len(sources):
                gradient = DERIVATIVES[ctx.activations[i]](gradient, sources[i])
            bias = gradient.sum(dim=0, dtype=th.float32) if needs[2 * i + 1] else None
            weight = onednn.product(gradient.t(), inputs[i].t()).float() if needs[2 * i] else None
            of_parameters = [weight, bias, *of_parameters]
            if i > 0 or needs_x:
                gradient = onednn.product(gradient, weights[i].t())
        return gradient if needs_x else None, None, None, *of_parameters
