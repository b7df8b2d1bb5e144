"""oneDNN's products are PyTorch's, and so are their gradients."""

import pytest
import torch as th
import torch.nn.functional as F

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.onednn import Linear, linear


def problem(shape, dtype=th.float32):
    generator = th.Generator().manual_seed(0)
    tensors = [th.randn(*size, generator=generator, dtype=dtype) for size in ((*shape, 5), (3, 5), (3,))]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE}))
@pytest.mark.parametrize("shape", [(7,), (1,), (4, 7), (2, 3, 7), (0,)])
def test_value_and_gradients_are_pytorchs(monkeypatch, available, shape):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    x, weight, bias = problem(shape)
    output, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert th.allclose(output, expected, atol=1e-6)
    direction = th.randn(output.shape, generator=th.Generator().manual_seed(1))
    gradients = th.autograd.grad(output, (x, weight, bias), direction)
    for gradient, by_pytorch in zip(gradients, th.autograd.grad(expected, (x, weight, bias), direction), strict=True):
        assert th.allclose(gradient, by_pytorch, atol=1e-5)
    with th.no_grad():
        assert th.allclose(linear(x, weight, bias), expected, atol=1e-6)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN")
@pytest.mark.parametrize("mkl_is_slow", [False, True])
@pytest.mark.parametrize("n_in, n_out", [(5, 3), (5, 40), (40, 1), (1, 40), (40, 3), (40, 40), (16, 17), (17, 16)])
def test_products_of_all_widths(monkeypatch, mkl_is_slow, n_in, n_out):
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", mkl_is_slow)
    generator = th.Generator().manual_seed(0)
    rows, weight, bias, gradient = (
        th.randn(*size, generator=generator) for size in ((30, n_in), (n_out, n_in), (n_out,), (30, n_out))
    )
    expected = F.linear(rows, weight, bias)
    for activation, function in (("none", lambda x: x), ("relu", th.relu), ("tanh", th.tanh), ("swish", F.silu)):
        th.testing.assert_close(onednn.product(rows, weight, bias, activation), function(expected), atol=1e-4, rtol=1e-4)
    th.testing.assert_close(onednn.product(gradient, weight.t()), gradient @ weight, atol=1e-4, rtol=1e-4)
    in_weight = onednn.weight_gradient(gradient, rows)
    th.testing.assert_close(in_weight, gradient.t() @ rows, atol=1e-4, rtol=1e-4)
    assert in_weight.is_contiguous()


def test_a_gradient_that_nobody_needs_is_not_computed():
    x, weight, bias = problem((7,))
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert x.grad is not None and weight.grad is None and bias.grad is None


def test_other_precisions_do_without_onednn():
    x, weight, bias = problem((7,), th.float64)
    assert th.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert th.autograd.gradcheck(linear, (x, weight, bias))


def test_the_layer_is_pytorchs():
    layer = Linear(5, 3)
    assert isinstance(layer, th.nn.Linear)
    x = problem((7,))[0]
    assert th.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6)


@pytest.mark.parametrize(
    "vendor, family, slow",
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 6, False), ("GenuineIntel", 30, False)],
)
def test_mkl_is_slow_on_amds_newer_processors(tmp_path, vendor, family, slow):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n\n"
    (tmp_path / "cpuinfo").write_text(one + one.replace(": 0", ": 1"))
    assert onednn._mkl_is_slow(str(tmp_path / "cpuinfo")) is slow


def test_elsewhere_nobody_knows(tmp_path):
    (tmp_path / "cpuinfo").write_text("Processor: ARMv8")
    assert not onednn._mkl_is_slow(str(tmp_path / "cpuinfo"))
    assert not onednn._mkl_is_slow(str(tmp_path / "missing"))
