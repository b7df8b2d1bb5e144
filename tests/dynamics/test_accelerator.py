"""On an accelerator, the ensemble computes the same as on the CPU, and the host does not wait in between."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.rollouts import branched_rollouts

DEVICE = "lazy"


@pytest.fixture
def both(accelerator):
    """The same ensemble on the CPU and on the accelerator."""
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
    models = [
        ProbabilisticEnsemble(
            observation_space, action_space, 4, 3, net_arch=(16, 12), generator=th.Generator().manual_seed(0), device=device
        )
        for device in ("cpu", DEVICE)
    ]
    for model in models:
        model.holdout_mse.copy_(th.tensor([0.4, 0.1, 0.3, 0.2]))
        model.input_normalizer.std.fill_(0.7)
        model.target_normalizer.std.fill_(1.3)
    models[1].load_state_dict(models[0].state_dict())
    return models


def rows(device, n=150):
    generator = th.Generator().manual_seed(1)
    return th.randn(n, 3, generator=generator).to(device), (th.rand(n, 2, generator=generator) * 2 - 1).to(device)


@pytest.mark.parametrize("members", ["random", "expectation", "in order"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_step_equals_that_of_the_cpu_and_does_not_wait(both, accelerator, members, grad):
    steps = []
    for model in both:
        generator, chosen = th.Generator(model.device).manual_seed(3), members
        if members == "in order":
            chosen = th.arange(150, device=model.device) // 50 + 1
        with accelerator.read() as readings, th.set_grad_enabled(grad):
            steps.append(model.step(*rows(model.device), generator, chosen, uncertainty=True))
        assert sum(readings.values()) == 0
    for on_device, on_cpu in zip(steps[1], steps[0], strict=True):
        th.testing.assert_close(on_device.detach().cpu(), on_cpu.detach(), atol=1e-5, rtol=1e-4)


def test_a_rollout_waits_once_per_step(both, accelerator):
    rewards = []
    for model in both:
        obs, _ = rows(model.device)
        model.termination_fn = lambda obs, action, next_obs: next_obs[:, 0] > 1
        generator = th.Generator(model.device).manual_seed(3)
        with accelerator.read() as readings:
            stats = branched_rollouts(model, lambda obs: obs[:, :2].tanh(), obs, 5, lambda _: None, generator)
        rewards.append(stats.reward_sum)
    assert readings["copy to the host"] == 6  # how many go on, five times, and at the end the sum of rewards
    assert readings["mask"] <= 5 and sum(readings.values()) <= 11
    assert rewards[1] == pytest.approx(rewards[0], rel=1e-4)
    assert stats.n_terminated > 0


def test_a_fit_only_waits_for_the_errors_of_each_epoch(both, accelerator):
    model = both[1]
    obs, action = rows(DEVICE)
    transitions = Transitions(obs, action, obs + 0.1, obs[:, 0], th.zeros(len(obs), dtype=th.bool, device=DEVICE))
    n_readings = []
    for batch_size in (120, 10):  # one gradient step an epoch, or twelve
        with accelerator.read() as readings:
            model.fit(transitions, th.Generator(DEVICE).manual_seed(0), max_epochs=3, batch_size=batch_size)
        n_readings.append(sum(readings.values()))
    assert n_readings[0] == n_readings[1]
