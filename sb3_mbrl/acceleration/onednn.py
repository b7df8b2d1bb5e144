"""Products of matrices by oneDNN. PyTorch takes MKL, which leaves AMD's processors since Zen 5 at half their speed."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

ZEN_5 = 26
"""The first family of AMD's processors that multiply 512 bits at a time, where MKL's products for AMD have 256."""


def _mkl_is_slow(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Not measured: the same run on the same machine must round in the same way."""
    try:
        info = pathlib.Path(cpuinfo).read_text()
    except OSError:  # not Linux
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)", info, re.MULTILINE)
    return "AuthenticAMD" in info and family is not None and int(family[1]) >= ZEN_5


MKL_IS_SLOW = _mkl_is_slow()
"""Then oneDNN makes all products, elsewhere PyTorch the batched ones of an ensemble's fit, and narrow ones."""

ACTIVATIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "none": lambda multiplied: multiplied,
    "swish": F.silu,
    "relu": F.relu,
    "tanh": th.tanh,
}
"""Activations by their names in oneDNN, for devices that do not use it."""

NARROW = 16
"""Columns of a matrix for which oneDNN takes longer to begin than to multiply."""


def product(rows: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None, activation: str = "none") -> th.Tensor:
    """
    :param rows: (B, n_in)
    :param weight: (n_out, n_in)
    :param bias: (n_out,)
    :param activation: ``"swish"``, ``"relu"`` or ``"tanh"``, applied to what was just multiplied; ``"none"``
    :return: ``activation(F.linear(rows, weight, bias))``, (B, n_out), without a gradient
    """
    if rows.device.type != "cpu":
        return ACTIVATIONS[activation](F.linear(rows, weight, bias))
    n_out, n_in = weight.shape
    narrow = n_in <= NARROW or n_out == 1
    if narrow and activation in ("none", "relu") and not MKL_IS_SLOW and rows.dtype == th.float32:
        multiplied = F.linear(rows, weight, bias)
        return multiplied.relu_() if activation == "relu" else multiplied
    return _pointwise(rows, weight, bias, activation)


def weight_gradient(gradient: th.Tensor, rows: th.Tensor) -> th.Tensor:
    """
    :param gradient: in the output of a linear layer, (B, n_out)
    :param rows: its input, (B, n_in)
    :return: ``gradient.t() @ rows``, (n_out, n_in), without a gradient
    """
    if rows.device.type != "cpu":
        return th.mm(gradient.t(), rows)
    n_in, n_out = rows.shape[1], gradient.shape[1]
    # Rows that are transposed are copied: better the narrow ones
    if n_in <= NARROW < n_out:
        return product(rows.t(), gradient.t()).t().contiguous()
    if rows.dtype == th.bfloat16:  # PyTorch leaves it to oneDNN itself, without that copy
        return th.mm(gradient.t(), rows)
    return product(gradient.t(), rows.t())


def _pointwise(rows: th.Tensor, weight: th.Tensor, bias: th.Tensor | None, activation: str) -> th.Tensor:
    return th.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "")  # type: ignore[no-any-return]


def _works() -> bool:
    """The operator is PyTorch's own business: another version may not have it, or call it otherwise."""
    try:
        with th.no_grad():
            return bool((_pointwise(th.ones(1, 3), th.ones(2, 3), th.ones(2), "relu") == 4).all())
    except Exception:
        return False


AVAILABLE = _works()


def fits(*tensors: th.Tensor) -> bool:
    """
    :param tensors: to multiply
    :return: whether oneDNN can
    """
    ours = all(each.device.type == "cpu" and each.dtype == th.float32 and each.numel() > 0 for each in tensors)
    return AVAILABLE and ours and not th.is_autocast_enabled("cpu")


def linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """
    :param x: (..., n_in)
    :param weight: (n_out, n_in)
    :param bias: (n_out,)
    :return: ``F.linear(x, weight, bias)``, by oneDNN where that is possible, its gradient too
    """
    if not fits(x, weight):
        return F.linear(x, weight, bias)
    if not th.is_grad_enabled():
        return product(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return]


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
        again = th.is_grad_enabled()  # a second derivative will be asked for
        in_x = (gradient @ weight if again else product(gradient, weight.t())).view(x.shape) if needs_x else None
        in_weight = (gradient.t() @ rows if again else weight_gradient(gradient, rows)) if needs_weight else None
        return in_x, in_weight, gradient.sum(dim=0) if needs_bias else None


class Linear(nn.Linear):
    """``torch.nn.Linear`` by :func:`linear`."""

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: (..., in_features)
        :return: (..., out_features)
        """
        return linear(input, self.weight, self.bias)
