"""oneDNN's products and their gradients equal PyTorch's."""

import pytest
import torch as th
import torch.nn.functional as F

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.onednn import Linear


def layer_and_input(shape, dtype=th.float32):
    generator = th.Generator().manual_seed(0)
    layer, x = Linear(5, 3), th.randn(*shape, 5, generator=generator, dtype=dtype).requires_grad_()
    for parameter in layer.parameters():
        parameter.data = th.randn(parameter.shape, generator=generator, dtype=dtype)
    return layer, x


@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE}))
@pytest.mark.parametrize("shape", [(7,), (1,), (4, 7), (2, 3, 7), (0,)])
def test_value_and_gradients_equal_pytorchs(monkeypatch, available, shape):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    layer, x = layer_and_input(shape)
    inputs = (x, layer.weight, layer.bias)
    output, expected = layer(x), F.linear(*inputs)
    assert th.allclose(output, expected, atol=1e-6)
    direction = th.randn(output.shape, generator=th.Generator().manual_seed(1))
    gradients = th.autograd.grad(output, inputs, direction)
    for gradient, by_pytorch in zip(gradients, th.autograd.grad(expected, inputs, direction), strict=True):
        assert th.allclose(gradient, by_pytorch, atol=1e-5)
    with th.no_grad():
        assert th.allclose(layer(x), expected, atol=1e-6)


def test_second_derivatives_equal_pytorchs():
    layer, x = layer_and_input((7,))
    found = []
    for function in (layer, lambda rows: F.linear(rows, layer.weight, layer.bias)):
        slope = th.autograd.grad(function(x).pow(2).sum(), (x, layer.weight), create_graph=True)
        found.append(th.autograd.grad(sum(each.pow(2).sum() for each in slope), (x, layer.weight, layer.bias)))
    th.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN")
@pytest.mark.parametrize("mkl_is_slow", [False, True])
@pytest.mark.parametrize("n_in, n_out", [(5, 3), (5, 40), (40, 1), (1, 40), (40, 3), (40, 40), (16, 17), (17, 16)])
def test_products_of_all_widths(monkeypatch, mkl_is_slow, n_in, n_out):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    generator = th.Generator().manual_seed(0)
    x, weight, bias, gradient = (
        th.randn(*size, generator=generator) for size in ((30, n_in), (n_out, n_in), (n_out,), (30, n_out))
    )
    multiplied = F.linear(x, weight, bias)
    for activation in (None, th.relu, F.relu, th.tanh, F.silu, F.elu):
        expected = multiplied if activation is None else activation(multiplied)
        th.testing.assert_close(onednn.product(x, weight, bias, activation), expected, atol=1e-4, rtol=1e-4)
    th.testing.assert_close(onednn.product(gradient, weight.t()), gradient @ weight, atol=1e-4, rtol=1e-4)
    in_weight = onednn.weight_gradient(gradient, x)
    th.testing.assert_close(in_weight, gradient.t() @ x, atol=1e-4, rtol=1e-4)
    assert in_weight.is_contiguous()


def test_gradients_that_are_not_needed_are_not_computed():
    layer, x = layer_and_input((7,))
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None and layer.bias.grad is None


def test_other_precisions_do_not_use_onednn():
    layer, x = layer_and_input((7,), th.float64)
    assert th.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert th.autograd.gradcheck(layer, x)


def test_what_is_supported():
    x = th.ones(2, 3)
    assert onednn.supports(x) == onednn.AVAILABLE
    assert not onednn.supports(x, x.double())
    assert not onednn.supports(x[:0])
    with th.autocast("cpu"):
        assert not onednn.supports(x)
    with acceleration.disabled():
        assert not onednn.supports(x)


@pytest.mark.parametrize(
    "vendor, family, slow",
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 6, False), ("GenuineIntel", 30, False)],
)
def test_newer_amd_cpus_are_recognised(tmp_path, vendor, family, slow):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n\n"
    (tmp_path / "cpuinfo").write_text(one + one.replace(": 0", ": 1"))
    assert onednn._mkl_is_slow(str(tmp_path / "cpuinfo")) is slow


def test_an_unknown_cpu_keeps_mkl(tmp_path):
    (tmp_path / "cpuinfo").write_text("Processor: ARMv8")
    assert not onednn._mkl_is_slow(str(tmp_path / "cpuinfo"))
    assert not onednn._mkl_is_slow(str(tmp_path / "missing"))
