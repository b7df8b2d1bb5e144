"""Adam's step without its ceremony: of small networks that is most of it."""

from collections.abc import Callable
from typing import Any

import torch as th

UNUSUAL = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
"""Options of Adam that are left to PyTorch."""


def adam_step(optimizer: th.optim.Optimizer) -> Callable[[], object]:
    """
    :param optimizer: whose options and parameters, all with a gradient, stay what they are while the result is in use
    :return: what ``optimizer.step`` does, up to rounding: of a usual Adam on a processor that has made its first step,
        PyTorch's fused kernel, called right away, whatever ``fused`` says; otherwise ``optimizer.step`` itself
    """
    if not _is_usual(optimizer):
        return optimizer.step
    steps = [_fused_step(optimizer, group) for group in optimizer.param_groups]

    @th.no_grad()
    def step() -> None:
        for each in steps:
            each()

    return step


def _fused_step(optimizer: th.optim.Optimizer, group: dict[str, Any]) -> Callable[[], None]:
    parameters: list[th.Tensor] = group["params"]
    means, squares, counts = ([optimizer.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step"))
    # One addition counts for all of them
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


def _is_usual(optimizer: th.optim.Optimizer) -> bool:
    # Not isinstance: subclasses may compute something else. A step of its own is what learning rate schedulers leave behind
    if type(optimizer) is not th.optim.Adam or "step" in vars(optimizer):
        return False
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return (
        not hooks and hasattr(th, "_fused_adam_") and all(_is_usual_group(optimizer, each) for each in optimizer.param_groups)
    )


def _is_usual_group(optimizer: th.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether all its parameters are trained, lie on a processor, and have been updated before."""
    return (
        not any(group.get(option) for option in UNUSUAL)
        and isinstance(group["lr"], float)
        and all(p.requires_grad and optimizer.state.get(p) and p.device.type == "cpu" for p in group["params"])
    )
