"""Adam's step without Python overhead, which dominates for small networks."""

from collections.abc import Callable
from typing import Any

import torch as th

from sb3_mbrl import acceleration

UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
"""Options of Adam that only PyTorch's own ``step`` supports."""


def adam_step(optimizer: th.optim.Optimizer) -> Callable[[], object]:
    """
    :param optimizer: the optimizer. While the result is in use its options must not change, and all of its parameters must
        have gradients
    :return: if the optimizer is supported, a function that does the same as ``optimizer.step`` up to rounding by calling
        PyTorch's fused kernel directly; otherwise ``optimizer.step`` itself
    """
    if not supports(optimizer):
        return optimizer.step
    steps = [_fused_step(optimizer, group) for group in optimizer.param_groups]

    @th.no_grad()
    def step() -> None:
        for each in steps:
            each()

    return step


def supports(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: any optimizer
    :return: whether it is a plain Adam on the CPU that has made its first step
    """
    # The exact type, because a subclass may compute something else. Learning rate schedulers replace ``step`` on the instance
    if not acceleration.enabled or type(optimizer) is not th.optim.Adam or "step" in vars(optimizer):
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    return hasattr(th, "_fused_adam_") and all(_supports_group(optimizer, group) for group in optimizer.param_groups)


def _supports_group(optimizer: th.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether the options are plain, and all parameters are trained, are on the CPU, and have been updated before."""
    return (
        not any(group.get(option) for option in UNUSUAL)
        and isinstance(group["lr"], float)
        and all(p.requires_grad and optimizer.state.get(p) and p.device.type == "cpu" for p in group["params"])
    )


def _fused_step(optimizer: th.optim.Optimizer, group: dict[str, Any]) -> Callable[[], None]:
    parameters: list[th.Tensor] = group["params"]
    means, squares, counts = ([optimizer.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step"))
    # The step counts become views of one tensor, so that a single addition increments all of them
    all_counts = th.stack(counts)
    counts = list(all_counts.unbind())
    for parameter, count in zip(parameters, counts, strict=True):
        optimizer.state[parameter]["step"] = count
    beta1, beta2 = group["betas"]
    options = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"], "eps": group["eps"]}

    def step() -> None:
        all_counts.add_(1)
        gradients = [parameter.grad for parameter in parameters]
        th._fused_adam_(parameters, gradients, means, squares, [], counts, **options, amsgrad=False, maximize=False)  # type: ignore[arg-type]

    return step
