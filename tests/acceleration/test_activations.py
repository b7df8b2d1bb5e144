"""Activations and their derivatives equal PyTorch's."""

import pytest
import torch as th
import torch.nn.functional as F

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration.activations import group_softmax, mish_, supports

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def random(*shape, seed=0):
    return th.randn(*shape, generator=th.Generator().manual_seed(seed))


def value_and_gradient(function, x, weights):
    x = x.clone().requires_grad_()
    output = function(x)
    return output, *th.autograd.grad((weights * output).sum(), x)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_mish(scale):
    x, weights = scale * random(1_000), random(1_000, seed=1)
    ours, theirs = (value_and_gradient(function, x, weights) for function in (mish_, F.mish))
    th.testing.assert_close(ours, theirs, **CLOSE)
    th.testing.assert_close(mish_(x.clone()), F.mish(x), **CLOSE)


def test_mish_far_from_zero():
    x = th.tensor([-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4])
    value, slope = value_and_gradient(mish_, x, th.ones(7))
    th.testing.assert_close(value, th.tensor([0.0, 0.0, 0.0, 0.0, 30.0, 100.0, 1e4]), **CLOSE)
    th.testing.assert_close(slope, th.tensor([0.0, 0.0, 0.0, 0.6, 1.0, 1.0, 1.0]), **CLOSE)


def test_the_derivative_of_mish_matches_autograd():
    assert th.autograd.gradcheck(mish_, th.linspace(-5, 5, 21, dtype=th.float64).requires_grad_())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_softmax_of_groups(scale):
    x, weights = scale * random(5, 4, 8), random(5, 4, 8, seed=1)
    ours, theirs = (value_and_gradient(function, x, weights) for function in (group_softmax, lambda x: x.softmax(dim=-1)))
    th.testing.assert_close(ours, theirs, **CLOSE)


def test_the_derivative_of_the_softmax_of_groups_matches_autograd():
    assert th.autograd.gradcheck(group_softmax, random(3, 8).double().requires_grad_())


def test_on_an_accelerator_and_without_acceleration_pytorchs_functions_run(accelerator):
    x = random(3, 8)
    assert supports(x) and not supports(x.to("lazy"))
    with acceleration.disabled():
        assert not supports(x)
        assert th.equal(mish_(x.clone()), F.mish(x))
        assert th.equal(group_softmax(x), x.softmax(dim=-1))
