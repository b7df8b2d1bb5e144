"""Perceptrons with gradients written out give PyTorch's values and gradients."""

import pytest
import torch as th
from torch import nn

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.perceptron import backward, forward, is_perceptron, parameters_and_layout, perceptron
from sb3_mbrl.acceleration.precision import HAS_BFLOAT16

pytestmark = pytest.mark.skipif(not onednn.AVAILABLE, reason="oneDNN's product is not in this PyTorch")
needs_bfloat16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="no such products on this processor")

NETWORKS = {
    "critic": lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
    "latent": lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
    "tanh": lambda: nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)),
    "silu": lambda: nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2)),
    "one layer": lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU()),
}


def network(name):
    th.manual_seed(0)
    return NETWORKS[name]()


def random_input():
    return th.randn(32, 5, generator=th.Generator().manual_seed(1))


def value_and_gradients(net, function, needs_input=True, create_graph=False):
    x = random_input().requires_grad_(needs_input)
    output = function(x)
    parameters = [p for p in net.parameters() if p.requires_grad]
    direction = th.randn(output.shape, generator=th.Generator().manual_seed(2))
    wanted = [x, *parameters] if needs_input else parameters
    return [output, *th.autograd.grad(output, wanted, direction, create_graph=create_graph)]


def as_one_operation(net, dtype=th.float32):
    parameters, layout = parameters_and_layout(list(net), dtype)
    return lambda x: perceptron(x, parameters, layout)


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_equal_pytorchs(name):
    net = network(name)
    expected = value_and_gradients(net, net)
    given = value_and_gradients(net, as_one_operation(net))
    th.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_equal_pytorchs(name):
    """A penalty on the size of gradients needs second derivatives."""
    net = network(name)

    def of_the_gradients_size(function):
        net.zero_grad()
        first = value_and_gradients(net, function, create_graph=True)
        sum(each.pow(2).sum() for each in first[1:]).backward()
        return [each.grad for each in net.parameters() if each.grad is not None]

    expected = of_the_gradients_size(net)
    given = of_the_gradients_size(as_one_operation(net))
    assert any((each != 0).any() for each in expected)
    th.testing.assert_close(given, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backward_pass_of_a_part_of_the_rows(name):
    net, rows = network(name), slice(10, 20)
    x, parameters = random_input().requires_grad_(), list(net.parameters())
    output, trace = forward(x.detach(), *parameters_and_layout(list(net)))
    gradient = th.randn(output[rows].shape, generator=th.Generator().manual_seed(2))
    expected = th.autograd.grad(net(x)[rows], [x, *parameters], gradient)
    grad_input, grad_parameters = backward(trace[rows], gradient)
    th.testing.assert_close([grad_input, *grad_parameters], [expected[0][rows], *expected[1:]], atol=1e-5, rtol=1e-4)


@needs_bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near(name):
    net = network(name)
    expected = value_and_gradients(net, net)
    given = value_and_gradients(net, as_one_operation(net, th.bfloat16))
    for ours, pytorchs in zip(given, expected, strict=True):
        assert ours.dtype == th.float32
        assert th.linalg.norm(ours - pytorchs) < 0.02 * th.linalg.norm(pytorchs)
    # Hidden products are rounded, where there are any
    assert th.equal(given[0], expected[0]) is False or name == "one layer"


@needs_bfloat16
def test_bfloat16_does_not_round_outputs():
    net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    with th.no_grad():
        net[4].bias += 1000.0
        values = as_one_operation(net, th.bfloat16)(th.linspace(-1, 1, 500)[:, None])
    assert len(values.unique()) > 50  # bfloat16 has no value between 1000 and 1004


def test_only_gradients_that_are_needed_are_computed(monkeypatch):
    net = network("critic")
    products = []
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", True)  # so that the product that is counted makes all of them
    product = onednn.product
    monkeypatch.setattr(onednn, "product", lambda *args: products.append(args) or product(*args))
    value_and_gradients(net, as_one_operation(net), needs_input=False)
    assert len(products) == 3 + 3 + 2
    products.clear()
    net.requires_grad_(False)
    value_and_gradients(net, as_one_operation(net))
    assert len(products) == 3 + 3


class OwnLinear(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 1)],
        [nn.Linear(5, 4, bias=False), nn.ReLU()],
        [nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.0)],
        [OwnLinear(5, 4), nn.ReLU()],
        [nn.Flatten()],
        [],
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers) or "empty",
)
def test_other_networks_are_not_supported(layers):
    assert not is_perceptron(layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_hooks_is_not_supported(name):
    net = network(name)
    assert is_perceptron(list(net))
    net[1].register_forward_hook(lambda *_: None)
    assert not is_perceptron(list(net))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_whose_forward_was_replaced_is_not_supported(name):
    net = network(name)
    net[0].forward = lambda x: x
    assert not is_perceptron(list(net))
