"""The direct call of Adam's kernel makes the same step, and is not used for unsupported options."""

import copy

import pytest
import torch as th

from sb3_mbrl.acceleration.adam import adam_step


def parameters(*shapes):
    generator = th.Generator().manual_seed(0)
    return [th.nn.Parameter(th.randn(shape, generator=generator)) for shape in shapes]


def with_gradients(optimizer, seed):
    generator = th.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.randn(parameter.shape, generator=generator)
    return optimizer


def after_a_step(cls=th.optim.Adam, **kwargs):
    optimizer = cls(parameters((5, 3), (3,), ()), **kwargs)
    with_gradients(optimizer, 0).step()
    return with_gradients(optimizer, 1)


@pytest.mark.parametrize(
    "kwargs", [{}, {"fused": True}, {"foreach": True}, {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}]
)
@th.no_grad()
def test_the_step_equals_pytorchs(kwargs):
    ours, theirs = after_a_step(lr=0.1, **kwargs), after_a_step(lr=0.1, **kwargs)
    step = adam_step(ours)
    assert step != ours.step
    for seed in range(5):
        with_gradients(ours, seed), with_gradients(theirs, seed)
        step()
        theirs.step()
    mine, others = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == others["param_groups"]
    for key, state in others["state"].items():
        th.testing.assert_close(mine["state"][key], state)
    for mine, other in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        th.testing.assert_close(mine, other)
    # Both ways can take turns
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    with_gradients(ours, 9), with_gradients(theirs, 9)
    adam_step(theirs)()
    ours.step()
    th.testing.assert_close(ours.state_dict()["state"], theirs.state_dict()["state"])


@th.no_grad()
def test_groups_keep_their_own_options():
    def in_groups():
        groups = [{"params": parameters((2, 3)), "weight_decay": 0.1}, {"params": parameters((3,), ()), "lr": 0.01}]
        optimizer = th.optim.Adam(groups, lr=0.1)
        with_gradients(optimizer, 0).step()
        return with_gradients(optimizer, 1)

    ours, theirs = in_groups(), in_groups()
    step = adam_step(ours)
    assert step != ours.step
    step()
    theirs.step()
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        th.testing.assert_close(mine["params"], other["params"])


def test_a_changed_learning_rate_takes_effect():
    optimizer = after_a_step(lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]
    with th.no_grad():
        adam_step(optimizer)()
    th.testing.assert_close(before, [parameter.detach() for parameter in optimizer.param_groups[0]["params"]])


def scheduled():
    optimizer = after_a_step()
    th.optim.lr_scheduler.ConstantLR(optimizer)
    return optimizer


def hooked():
    optimizer = after_a_step()
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def partly_frozen():
    optimizer = after_a_step()
    optimizer.param_groups[0]["params"][0].requires_grad_(False)
    return optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: with_gradients(th.optim.Adam(parameters((2,))), 0),
        lambda: after_a_step(amsgrad=True),
        lambda: after_a_step(maximize=True),
        lambda: after_a_step(lr=th.tensor(0.1)),
        lambda: after_a_step(th.optim.AdamW),
        lambda: after_a_step(th.optim.SGD),
        scheduled,
        hooked,
        partly_frozen,
    ],
    ids=[
        "the first step",
        "amsgrad",
        "maximize",
        "a tensor for a rate",
        "AdamW",
        "SGD",
        "a scheduler",
        "a hook",
        "a frozen parameter",
    ],
)
def test_unsupported_options_are_left_to_pytorch(optimizer):
    optimizer = optimizer()
    assert adam_step(optimizer) == optimizer.step
