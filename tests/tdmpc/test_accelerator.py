"""On an accelerator, the algorithms compute the same as on the CPU, and the host does not wait in between."""

from copy import deepcopy

import numpy as np
import pytest
import torch as th

from sb3_mbrl import TDMPC2
from sb3_mbrl.tdmpc.layers import Critics, normed_mlp
from sb3_mbrl.tdmpc.planner import LatentMPPI

DEVICE = "lazy"


def moved(batch):
    """A batch of sequences on the device."""
    return type(batch)(*(each.to(DEVICE) if isinstance(each, th.Tensor) else each for each in batch))


@pytest.fixture
def obs():
    return np.array([[0.3, 0.1], [-0.5, 0.0]], np.float32)


@pytest.fixture
def both(trained, make, algorithms, accelerator):
    """The same algorithm on the CPU and on the accelerator. Its episodes may terminate."""
    kind = next(name for name, each in algorithms.items() if type(trained) is each)
    models = [make(kind, "Cliff-v0", device=device) for device in ("cpu", DEVICE)]
    for model in models:
        model.policy.load_state_dict(trained.policy.state_dict())
        model.model.terminates.fill_(1)
        model.policy.set_training_mode(False)
        model.num_timesteps, model.replay_buffer = trained.num_timesteps, deepcopy(trained.replay_buffer)
    return models


def test_plans_equal_those_of_the_cpu(both, obs):
    plans = []
    for model in both:
        model.predict(obs, deterministic=True)
        plans.append(model.policy.last_plan)
    th.testing.assert_close(plans[1].actions.cpu(), plans[0].actions, atol=1e-4, rtol=1e-3)
    th.testing.assert_close(plans[1].value.cpu(), plans[0].value, atol=1e-4, rtol=1e-3)


def test_updates_equal_those_of_the_cpu(both):
    batch = both[0].replay_buffer.sample(8)
    on_cpu, on_device = both[0]._update(batch), both[1]._update(moved(batch))
    for name, value in on_cpu.items():
        th.testing.assert_close(on_device[name].detach().cpu(), value.detach(), atol=1e-4, rtol=1e-3, msg=name)


def test_a_plan_waits_only_for_one_flag(both, obs, accelerator, monkeypatch):
    model = both[1]
    _, state = model.predict(obs)
    plan, read = LatentMPPI.plan, []

    def counted(*args):
        with accelerator.read() as readings:
            result = plan(*args)
        read.append(dict(readings))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(LatentMPPI, "plan", counted)
        model.predict(obs, state)
    assert read == [{}]
    with accelerator.read() as readings:
        model.predict(obs, state)
    readings.pop("copy to the host")  # the action and the state, at the end
    assert readings.pop("_local_scalar_dense") == 1
    assert sum(readings.values()) == 0


def test_an_update_waits_only_for_priorities(both, accelerator):
    batch = moved(both[0].replay_buffer.sample(8))
    with accelerator.read() as readings:
        both[1]._update(batch)
    assert dict(readings) == ({} if isinstance(both[1], TDMPC2) else {"copy to the host": 1})


def test_the_host_waits_once_for_all_losses(both, accelerator):
    model = both[1]
    with accelerator.read() as readings:
        model._finite({"loss": th.ones((), device=DEVICE), "norm": th.zeros((), device=DEVICE)})
    assert sum(readings.values()) == 1


def test_it_learns_without_mixing_devices(make, kind, accelerator):
    model = make(kind, "Cliff-v0", device=DEVICE, planner_kwargs={"population_size": 4, "n_elites": 2, "n_iterations": 1})
    assert model.learn(22)._n_updates == 4 and model.policy.last_plan is not None


def test_critics_drawn_by_index_have_the_gradients_of_those_drawn_by_number(accelerator):
    members, x = th.tensor([2, 0]), th.randn(2, 5, 3)
    outputs, gradients = [], []
    for device in ("cpu", DEVICE):
        th.manual_seed(0)
        critics = Critics(normed_mlp([3, 8, 8], 4, dropout=0.01) for _ in range(3)).eval().to(device)
        rows = x.to(device, copy=True).requires_grad_()
        outputs.append(critics(rows, members.to(device)))
        (outputs[-1] ** 2).sum().backward()
        gradients.append([rows.grad, *(each.grad for each in critics[2].parameters())])
    th.testing.assert_close(outputs[1].cpu(), outputs[0])
    for on_device, on_cpu in zip(gradients[1], gradients[0], strict=True):
        th.testing.assert_close(on_device.cpu(), on_cpu, atol=1e-5, rtol=1e-4)
