"""Accelerated layers give PyTorch's values and gradients, and are only there for a while."""

import pytest
import torch as th
from torch import nn

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration import perceptron as accelerated_module
from sb3_mbrl.acceleration.perceptron import HAS_BFLOAT16, MLP, HalfMLP, accelerated, check_precision

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


def value_and_gradients(net, needs_input=True, create_graph=False):
    x = th.randn(32, 5, generator=th.Generator().manual_seed(1)).requires_grad_(needs_input)
    output = net(x)
    parameters = [p for p in net.parameters() if p.requires_grad]
    direction = th.randn(output.shape, generator=th.Generator().manual_seed(2))
    wanted = [x, *parameters] if needs_input else parameters
    return [output, *th.autograd.grad(output, wanted, direction, create_graph=create_graph)]


@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE}))
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_pytorchs(monkeypatch, available, name):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    net = network(name)
    expected = value_and_gradients(net)
    with accelerated(net):
        assert type(net) is MLP
        given = value_and_gradients(net)
    for ours, pytorchs in zip(given, expected, strict=True):
        assert th.allclose(ours, pytorchs, atol=1e-5)


@pytest.mark.parametrize("name", [*NETWORKS, "no activation"])
def test_second_derivatives_are_pytorchs(name):
    """As a penalty on the size of gradients asks for."""
    th.manual_seed(0)
    net = nn.Linear(5, 2) if name == "no activation" else network(name)

    def of_the_gradients_size():
        net.zero_grad()
        first = value_and_gradients(net, create_graph=True)
        sum(each.pow(2).sum() for each in first[1:]).backward()
        return [each.grad for each in net.parameters() if each.grad is not None]

    expected = of_the_gradients_size()
    with accelerated(net):
        given = of_the_gradients_size()
    assert any((each != 0).any() for each in expected)
    th.testing.assert_close(given, expected, atol=1e-3, rtol=1e-4)


@needs_bfloat16
def test_bfloat16_leaves_squashed_actions_alone():
    net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1), nn.Tanh())
    with th.no_grad(), accelerated(net, "bfloat16"):
        net[4].bias += 3.0
        actions = net(th.linspace(0, 1, 500)[:, None])
    assert len(actions.unique()) > 100  # bfloat16 has four values between 0.98 and 1


@pytest.mark.parametrize("available", sorted({False, onednn.AVAILABLE and HAS_BFLOAT16}))
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near(monkeypatch, available, name):
    monkeypatch.setattr(onednn, "AVAILABLE", available)
    net = network(name)
    expected = value_and_gradients(net)
    with accelerated(net, "bfloat16"):
        assert type(net) is HalfMLP
        given = value_and_gradients(net)
    for ours, pytorchs in zip(given, expected, strict=True):
        assert ours.dtype == th.float32
        assert th.linalg.norm(ours - pytorchs) < 0.02 * th.linalg.norm(pytorchs)
    # Hidden products are rounded, where there are any
    assert th.equal(given[0], expected[0]) is False or name == "one layer"


def test_only_gradients_that_are_needed_are_computed(monkeypatch):
    net = network("critic")
    products = []
    monkeypatch.setattr(onednn, "MKL_IS_SLOW", True)  # the product that is counted makes all of them
    product = onednn.product
    monkeypatch.setattr(onednn, "product", lambda *args: products.append(args) or product(*args))
    if not onednn.AVAILABLE:
        pytest.skip("no oneDNN")
    with accelerated(net):
        value_and_gradients(net, needs_input=False)
        assert len(products) == 3 + 3 + 2
        products.clear()
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        value_and_gradients(net)
        assert len(products) == 3 + 3


def test_classes_come_back_after_an_error():
    net = nn.ModuleList([network("critic"), nn.Linear(3, 3)])
    with pytest.raises(KeyboardInterrupt), accelerated(net):
        assert type(net[0]) is MLP and type(net[1]) is onednn.Linear
        raise KeyboardInterrupt
    assert type(net[0]) is nn.Sequential and type(net[1]) is nn.Linear and type(net[0][0]) is nn.Linear


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
def test_other_networks_are_left_alone(layers):
    net = nn.Sequential(*layers)
    x = th.ones(2, 5)
    expected = net(x)
    with accelerated(net, "bfloat16"):
        assert type(net) is nn.Sequential
        assert th.allclose(net(x), expected, atol=1e-6)


def test_hooks_are_called():
    net, called = network("critic"), []
    net.register_forward_hook(lambda *_: called.append(True))
    with accelerated(net):
        net(th.ones(2, 5))
    assert called


def test_hooks_between_layers_are_called():
    net, x = network("critic"), th.ones(2, 5)
    net[1].register_forward_hook(lambda module, args, output: 2 * output)
    expected = net(x)
    with accelerated(net):
        assert th.allclose(net(x), expected, atol=1e-5)


def test_precisions_are_checked(monkeypatch):
    with pytest.raises(ValueError, match=r"precision must be one of \['float32', 'bfloat16'\], got 'half'"):
        check_precision("half", th.device("cpu"))
    monkeypatch.setattr(accelerated_module, "HAS_BFLOAT16", False)
    with pytest.raises(ValueError, match="this processor has no"):
        check_precision("bfloat16", th.device("cpu"))
    check_precision("float32", th.device("cpu"))
