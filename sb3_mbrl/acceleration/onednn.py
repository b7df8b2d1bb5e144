"""Matrix products by oneDNN. PyTorch uses MKL, which reaches only half the speed on AMD CPUs since Zen 5."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_mbrl import acceleration

ZEN_5 = 26
"""The first family of AMD CPUs that multiplies 512 bits at once, of which MKL's code for AMD uses only 256."""


def _mkl_is_slow(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """
    Decided by the CPU's family rather than by a measurement, so that runs on the same machine always round in the same way.
    """
    try:
        info = pathlib.Path(cpuinfo).read_text()
    except OSError:  # not Linux
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)", info, re.MULTILINE)
    return "AuthenticAMD" in info and family is not None and int(family[1]) >= ZEN_5


MKL_IS_SLOW = _mkl_is_slow()
"""If True, oneDNN computes every product; otherwise PyTorch keeps batched and narrow ones."""

Activation = Callable[[th.Tensor], th.Tensor]

ACTIVATIONS: dict[Activation | None, str] = {None: "none", F.silu: "swish", F.relu: "relu", th.tanh: "tanh"}
"""PyTorch's activations that oneDNN can fuse with a product, and oneDNN's names for them."""

NARROW = 16
"""A product with at most this many inputs takes less time than oneDNN's overhead."""


def product(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None, activation: Activation | None = None) -> th.Tensor:
    """
    A linear layer and its activation, fused into one operation of oneDNN where possible. No gradient is recorded. On an
    accelerator PyTorch computes both.

    :param x: (..., n_in), float32 or bfloat16
    :param weight: (n_out, n_in)
    :param bias: (n_out,)
    :param activation: any elementwise function of tensors; None: no activation
    :return: ``activation(F.linear(x, weight, bias))``, (..., n_out)
    """
    n_out, n_in = weight.shape
    narrow = n_in <= NARROW or n_out == 1
    if x.device.type != "cpu" or (narrow and not MKL_IS_SLOW and x.dtype == th.float32 and activation in (None, F.relu)):
        multiplied = F.linear(x, weight, bias)
    elif activation in ACTIVATIONS:
        return _linear_pointwise(x, weight, bias, ACTIVATIONS[activation])
    else:
        multiplied = _linear_pointwise(x, weight, bias, "none")
    if activation is F.relu:
        return multiplied.relu_()
    return multiplied if activation is None else activation(multiplied)


def weight_gradient(gradient: th.Tensor, x: th.Tensor) -> th.Tensor:
    """
    The gradient with respect to the weight of a linear layer. No gradient is recorded.

    :param gradient: gradient with respect to the layer's output, (B, n_out)
    :param x: the layer's input, (B, n_in)
    :return: ``gradient.t() @ x``, (n_out, n_in), contiguous
    """
    if x.device.type != "cpu":
        return th.mm(gradient.t(), x)
    n_in, n_out = x.shape[1], gradient.shape[1]
    # Transposing copies, so transpose the narrower operand
    if n_in <= NARROW < n_out:
        return product(x.t(), gradient.t()).t().contiguous()
    if x.dtype == th.bfloat16:  # PyTorch calls oneDNN itself, without the copy
        return th.mm(gradient.t(), x)
    return product(gradient.t(), x.t())


def _linear_pointwise(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None, activation: str) -> th.Tensor:
    return th.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")  # type: ignore[no-any-return]


def _works() -> bool:
    """Try the operator: it is private to PyTorch, so it may be missing or have another signature."""
    try:
        with th.no_grad():
            return bool((_linear_pointwise(th.ones(1, 3), th.ones(2, 3), th.ones(2), "relu") == 4).all())
    except Exception:
        return False


AVAILABLE = _works()
"""Whether this PyTorch has the operator."""


def supports(*tensors: th.Tensor) -> bool:
    """
    :param tensors: operands of a product
    :return: whether oneDNN computes it instead of PyTorch: the operands are float32, on the CPU and not empty, outside of
        autocast
    """
    return (
        acceleration.enabled
        and AVAILABLE
        and all(each.device.type == "cpu" and each.dtype == th.float32 and each.numel() > 0 for each in tensors)
        and not th.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """``torch.nn.Linear`` with its forward and backward pass computed by oneDNN where that is supported."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: (..., in_features)
        :return: (..., out_features)
        """
        if not supports(input, self.weight):
            return super().forward(input)
        if not th.is_grad_enabled():
            return product(input, self.weight, self.bias)
        return _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]


class _Linear(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        gradient, rows = gradients[0].flatten(0, -2), x.flatten(0, -2)
        differentiable = th.is_grad_enabled()  # as with create_graph=True, for a second derivative
        grad_x = grad_weight = None
        if needs_x:
            flat = gradient @ weight if differentiable else product(gradient, weight.t())
            grad_x = flat.view(x.shape)
        if needs_weight:
            grad_weight = gradient.t() @ rows if differentiable else weight_gradient(gradient, rows)
        return grad_x, grad_weight, gradient.sum(dim=0) if needs_bias else None
