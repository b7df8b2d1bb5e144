"""On an accelerator, MBPO's updates equal those of the CPU, and the host waits once per ``train`` call."""

import pytest
import torch as th

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import sac as fused_sac

DEVICE = "lazy"


@pytest.fixture
def both(make_mbpo, accelerator):
    """The same algorithm on the CPU and on the accelerator."""
    kwargs = {"policy_kwargs": {"net_arch": [16], "optimizer_class": th.optim.SGD}, "ent_coef": "auto_0.3"}
    models = [make_mbpo("Line-v0", device=device, **kwargs) for device in ("cpu", DEVICE)]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    return models


def moved(batch, device):
    return type(batch)(*(None if each is None else each.to(device) for each in batch))


def random_batch(model, n=32):
    generator = th.Generator().manual_seed(0)
    for _ in range(n):
        obs, next_obs = th.randn(2, 1, 2, generator=generator).numpy()
        action, reward = th.rand(2, 1, 1, generator=generator).numpy()
        model.replay_buffer.add(obs, next_obs, action, reward[0], th.zeros(1).numpy(), [{}])
    return model.replay_buffer.sample(n)


def test_updates_equal_those_of_the_cpu(both):
    batch, losses = random_batch(both[0]), []
    for model in both:
        th.manual_seed(0)
        losses.append(fused_sac.SACUpdates(model).update(moved(batch, model.device)))
    for name, value in losses[0].items():
        th.testing.assert_close(losses[1][name].detach().cpu(), value.detach(), atol=1e-4, rtol=1e-3)
    for on_device, on_cpu in zip(both[1].policy.parameters(), both[0].policy.parameters(), strict=True):
        th.testing.assert_close(on_device.detach().cpu(), on_cpu.detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n_updates", [1, 5])
def test_the_host_waits_once_for_all_losses_of_a_call(monkeypatch, both, accelerator, n_updates):
    monkeypatch.setattr(acceleration, "enabled", True)
    model = both[1]
    random_batch(model)
    model._setup_learn(10)
    with accelerator.read() as readings, model._mixed_batches(n_updates):
        model._update(n_updates, 32)
    assert dict(readings) == {"copy to the host": 1}


def test_it_learns_without_mixing_devices(make_mbpo, accelerator):
    model = make_mbpo(termination_fn=None, fit_kwargs={"max_epochs": 1}, device=DEVICE).learn(43)
    assert len(model.model_buffer) > 0 and model._n_updates > 0
