"""Outputs that never change in the data do not change in imagination, and no noise is imagined for them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.actions import from_environment
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.figures import plot_one_step
from sb3_mbrl.diagnostics.one_step import one_step_error
from sb3_mbrl.dynamics import ProbabilisticEnsemble


def seeded(seed=0):
    return th.Generator().manual_seed(seed)


def random_transitions(env, n):
    """Transitions under uniformly random actions."""
    rows = []
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    for _ in range(n):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, from_environment(action, env.action_space), next_obs, reward))
        obs = env.reset()[0] if terminated or truncated else next_obs
    columns = [th.as_tensor(np.array(column), dtype=th.float32) for column in zip(*rows, strict=True)]
    return Transitions(*columns, th.zeros(n, dtype=th.bool))


def imagined(model, obs, n_steps):
    """The states and rewards of ``n_steps`` under random actions, (n_steps, B, O) and (n_steps, B)."""
    generator, states, rewards = seeded(1), [], []
    for _ in range(n_steps):
        action = th.rand(len(obs), model.action_dim, generator=generator) * 2 - 1
        obs, reward, *_ = model.step(obs, action, generator)
        states.append(obs)
        rewards.append(reward)
    return th.stack(states), th.stack(rewards)


@pytest.mark.parametrize("kwargs", [{}, {"nll_beta": 0.0}, {"normalize_targets": False}, {"probabilistic": False}])
def test_reachers_goal_stays_where_it_is(kwargs):
    env = gym.make("Reacher-v5")
    data = random_transitions(env, 500)
    model = ProbabilisticEnsemble(
        env.observation_space, env.action_space, 3, 2, (16, 16), generator=seeded(), device="cpu", **kwargs
    )
    model.fit(data, seeded(), max_gradient_steps=50)
    with th.no_grad():
        states, _ = imagined(model, data.observations[:100], 25)
    assert th.equal(states[-1, :, 4:6], data.observations[:100, 4:6])
    assert (states[-1, :, :4] != data.observations[:100, :4]).all()


@pytest.mark.parametrize("reward", [1.0, 0.0, 0.1])
@pytest.mark.parametrize("normalize_targets", [True, False])
def test_a_constant_reward_is_predicted_exactly_and_without_uncertainty(reward, normalize_targets):
    generator = seeded()
    obs, action = th.randn(200, 2, generator=generator), th.rand(200, 1, generator=generator) * 2 - 1
    data = Transitions(obs, action, obs + 0.1 * action, th.full((200,), reward), th.zeros(200, dtype=th.bool))
    model = ProbabilisticEnsemble(
        spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,)), 3, 2, (16, 16), generator=generator, device="cpu",
        normalize_targets=normalize_targets,
    )  # fmt: skip
    report = model.fit(data, generator, max_gradient_steps=20)
    step = model.step(obs, action, generator, uncertainty=True)
    assert th.equal(step.reward, data.rewards)
    assert step.epistemic_std[:, -1].unique().tolist() == step.aleatoric_std[:, -1].unique().tolist() == [0.0]
    assert report.reward_mse == 0.0


@pytest.mark.slow
def test_the_noise_predicted_on_hopper_decreases_during_a_fit():
    env = gym.make("Hopper-v5")
    data = random_transitions(env, 1000)
    model = ProbabilisticEnsemble(env.observation_space, env.action_space, 2, 2, (64, 64), generator=seeded(), device="cpu")
    generator, noise, floor = seeded(1), [], []
    for n_gradient_steps in (1000, 2000, 1000):
        model.fit(data, generator, max_gradient_steps=n_gradient_steps, patience=n_gradient_steps)
        with th.no_grad():
            std = model.predict(data.observations, data.actions).aleatoric_std / model.target_normalizer.divisor
        noise.append(std.mean().item())
        floor.append((model.min_logvar / 2).exp().mean().item())
    assert noise[1] < 0.7 * noise[0] and noise[2] < noise[1], noise
    assert floor[2] < 1.2 * floor[1], floor


def test_outputs_that_move_evenly_or_never_do_not_count_as_overconfident():
    generator = seeded()
    obs, action = th.randn(400, 3, generator=generator), th.rand(400, 1, generator=generator) * 2 - 1
    change = th.cat(
        [0.1 * action, th.full((400, 1), 0.01), th.zeros(400, 1)], dim=1
    )  # the second is a clock, the third a goal
    data = Transitions(obs, action, obs + change, th.ones(400), th.zeros(400, dtype=th.bool))
    model = ProbabilisticEnsemble(
        spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-1, 1, (1,)), 3, 2, (16, 16), generator=generator, device="cpu"
    )
    model.fit(data, generator, max_gradient_steps=20)
    error = one_step_error(model, data)
    assert (error.mean_squared_z < 4).all() and (error.coverage_90[1:] > 0.85).all(), error
    lines = plot_one_step(error).axes[1].lines
    assert [line.get_ydata()[45] > 0.85 for line in lines[1:4]] == [True] * 3  # those of the clock, the goal and the reward
