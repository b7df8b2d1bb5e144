"""The fast forward passes of an ensemble on the CPU equal those of the plain code."""

from itertools import pairwise

import pytest
import torch as th
import torch.nn.functional as F

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import ensemble, onednn
from sb3_mbrl.acceleration.ensemble import forward_own_rows, forward_rows, supports_own_rows, supports_rows

MEMBERS, N_IN, N_OUT = 4, 5, 3
ACTIVATIONS = {"silu": F.silu, "relu": F.relu, "tanh": th.tanh, "elu": F.elu, "gelu": F.gelu}


def parameters(dtype=th.float32):
    generator = th.Generator().manual_seed(0)
    sizes = [N_IN, 16, 12, N_OUT]
    weights = [th.randn(MEMBERS, *size, generator=generator) / size[0] ** 0.5 for size in pairwise(sizes)]
    biases = [0.3 * th.randn(MEMBERS, 1, n_out, generator=generator) for n_out in sizes[1:]]
    return [[each.to(dtype).requires_grad_() for each in tensors] for tensors in (weights, biases)]


def inputs(*shape, dtype=th.float32):
    return th.randn(*shape, N_IN, generator=th.Generator().manual_seed(1)).to(dtype)


def plain(x, weights, biases, activation):
    """(members, B, n_in) -> (members, B, n_out)"""
    *hidden, last = zip(weights, biases, strict=True)
    for weight, bias in hidden:
        x = activation(x @ weight + bias)
    return x @ last[0] + last[1]


def gradients(output, tensors):
    direction = th.randn(output.shape, generator=th.Generator().manual_seed(2))
    return th.autograd.grad(output, tensors, direction)


# ---------------------------------------------------------------- every member on its own rows


@pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN")
@pytest.mark.parametrize("activation", [F.silu, F.relu, th.tanh], ids=["silu", "relu", "tanh"])
def test_values_and_gradients_computed_per_member_equal_those_of_batched_products(monkeypatch, activation):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", True)
    weights, biases = parameters()
    x = inputs(MEMBERS, 100).requires_grad_()
    assert supports_own_rows(x, weights, activation, "float32")
    outputs = forward_own_rows(x, weights, biases, activation, "float32"), plain(x, weights, biases, activation)
    th.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    th.testing.assert_close(*(gradients(each, [x, *weights, *biases]) for each in outputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_bfloat16_is_near_while_gradients_are_recorded(activation):
    weights, biases = parameters()
    x = inputs(MEMBERS, 100).requires_grad_()
    assert supports_own_rows(x, weights, activation, "bfloat16")
    rounded, exact = forward_own_rows(x, weights, biases, activation, "bfloat16"), plain(x, weights, biases, activation)
    assert rounded.dtype == th.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    for ours, pytorchs in zip(*(gradients(each, [*weights, *biases]) for each in (rounded, exact)), strict=True):
        assert (ours - pytorchs).norm() < 0.05 * pytorchs.norm()


def test_batched_products_are_used_where_they_are_faster(monkeypatch):
    weights, _ = parameters()
    x = inputs(MEMBERS, 100)
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", False)
    assert not supports_own_rows(x, weights, F.silu, "float32")
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", True)
    assert not supports_own_rows(x[:, :10], weights, F.silu, "float32")
    assert not supports_own_rows(x, weights, F.gelu, "float32")
    assert not supports_own_rows(x.double(), weights, F.silu, "float32")
    with th.no_grad():
        assert supports_own_rows(x, weights, F.silu, "bfloat16") == onednn.AVAILABLE  # in float32
    with acceleration.disabled():
        assert not supports_own_rows(x, weights, F.silu, "float32")
        assert not supports_own_rows(x, weights, F.silu, "bfloat16")


# ---------------------------------------------------------------- each row by its own member


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE}))
def test_one_member_per_row_equals_the_same_rows_of_all_members(monkeypatch, available, activation):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    weights, biases = parameters()
    # Blocks that are whole, filled up, too small for oneDNN, and empty
    members = th.tensor([0] * 130 + [1] * 64 + [3] * 3)[th.randperm(197, generator=th.Generator().manual_seed(2))]
    x = inputs(197).requires_grad_()
    expected = plain(x.expand(MEMBERS, -1, -1), weights, biases, activation)[members, th.arange(197)]
    in_x = gradients(expected, [x])
    for block in (ensemble.BLOCK, 100):
        monkeypatch.setattr(ensemble, "BLOCK", block)
        output = forward_rows(x, members, weights, biases, activation)
        th.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
        th.testing.assert_close(gradients(output, [x]), in_x, atol=1e-4, rtol=1e-4)
        with th.no_grad():
            found = forward_rows(x, members, weights, biases, activation)
        th.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)


def test_several_members_for_each_row():
    weights, biases = parameters()
    x, members = inputs(70), th.tensor([[3] * 70, [0] * 70])
    with th.no_grad():
        output = forward_rows(x, members, weights, biases, F.silu)
        expected = plain(x.expand(MEMBERS, -1, -1), weights, biases, F.silu)[[3, 0]]
    th.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_double_precision_does_not_use_onednn():
    weights, biases = parameters(th.float64)
    x, members = inputs(200, dtype=th.float64), th.zeros(200, dtype=th.long)
    with th.no_grad():
        output = forward_rows(x, members, weights, biases, F.silu)
        expected = plain(x.expand(MEMBERS, -1, -1), weights, biases, F.silu)[0]
    assert output.dtype == th.float64
    th.testing.assert_close(output, expected)


def test_only_the_cpu_evaluates_one_member_per_row(accelerator):
    assert supports_rows(inputs(3))
    assert not supports_rows(inputs(3).to("lazy"))
    with acceleration.disabled():
        assert not supports_rows(inputs(3))
