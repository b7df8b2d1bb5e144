"""Written-out gradients equal those of SB3's SAC: same losses, parameters, moments and random numbers."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, SACPolicy
from torch import nn

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration import sac as fused_sac
from sb3_mbrl.acceleration.precision import HAS_BFLOAT16
from sb3_mbrl.mbpo import MBPO

pytestmark = pytest.mark.skipif(not onednn.AVAILABLE, reason="oneDNN's product is not in this PyTorch")


class Noise(gym.Env):
    """An environment with random observations, rewards and terminations."""

    action_space = spaces.Box(-2.0, 1.0, (2,), np.float32)

    def __init__(self, dtype=np.float32):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype)

    def _observation(self):
        return self.np_random.normal(size=3).astype(self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        ends = self.np_random.random(2) < 0.1
        return self._observation(), float(self.np_random.normal() - action[0]), bool(ends[0]), bool(ends[1]), {}


def collected(env=None, **kwargs):
    """An agent that has data but has made no update yet."""
    kwargs = {"policy_kwargs": {"net_arch": [32, 32]}, "batch_size": 64, "seed": 0, "device": "cpu", **kwargs}
    return SAC("MlpPolicy", env or Noise(), learning_starts=300, **kwargs).learn(300)


def state(agent):
    optimizers = [agent.actor.optimizer, agent.critic.optimizer]
    moments = [each["exp_avg_sq"] for optimizer in optimizers for each in optimizer.state_dict()["state"].values()]
    entropy = [agent.log_ent_coef] if agent.log_ent_coef is not None else []
    return [*agent.policy.state_dict().values(), *entropy, *moments]


# Adam makes full steps of gradients that are nothing but rounding
SGD = {"net_arch": [32, 32], "optimizer_class": th.optim.SGD}

VARIANTS = {
    "defaults": {},
    "entropy coefficient": {"ent_coef": 0.2},
    "n-step": {"n_steps": 3},
    "targets follow seldom": {"target_update_interval": 3},
    "tanh": {"policy_kwargs": {"net_arch": [16, 24, 32], "activation_fn": nn.Tanh}},
    "silu": {"policy_kwargs": {"net_arch": [24, 16], "activation_fn": nn.SiLU}},
    "networks of their own": {"policy_kwargs": {"net_arch": {"pi": [16], "qf": [32, 16]}, "n_critics": 3}},
    "one critic": {"policy_kwargs": {"net_arch": [16], "n_critics": 1}},
    "float64": {"env": Noise(np.float64)},
    "clamped deviations": {},
    "a schedule": {"learning_rate": lambda left: 1e-3 * left},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_equal_sb3s(variant):
    ours, theirs = collected(**VARIANTS[variant]), collected(**VARIANTS[variant])
    if variant == "clamped deviations":
        for agent in (ours, theirs):
            agent.actor.log_std.bias.data += LOG_STD_MAX
        current, _ = fused_sac.SACUpdates(ours)._sample(ours.replay_buffer.sample(64).observations, 32)
        assert 0.1 < current.clamped.float().mean() < 0.9
    assert fused_sac.supports(ours)
    np.random.seed(1)
    th.manual_seed(1)
    for _ in range(2):  # Adam's later steps are made otherwise than its first
        fused_sac.train(ours, 5, 64)
    drawn = th.get_rng_state(), np.random.get_state()[1]
    np.random.seed(1)
    th.manual_seed(1)
    for _ in range(2):
        theirs.train(5, 64)
    assert th.equal(th.get_rng_state(), drawn[0]) and (np.random.get_state()[1] == drawn[1]).all()
    for mine, sb3s in zip(state(ours), state(theirs), strict=True):
        th.testing.assert_close(mine, sb3s, atol=2e-5, rtol=2e-3)
    assert ours.logger.name_to_value.keys() == theirs.logger.name_to_value.keys()
    for name, value in theirs.logger.name_to_value.items():
        assert ours.logger.name_to_value[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.skipif(not HAS_BFLOAT16, reason="no such products on this processor")
def test_bfloat16_is_near():
    rounded, exact, before = (collected(policy_kwargs=SGD) for _ in range(3))
    for agent, precision in ((rounded, "bfloat16"), (exact, "float32")):
        np.random.seed(1)
        th.manual_seed(1)
        fused_sac.train(agent, 10, 64, precision)
    parameters = (agent.policy.parameters() for agent in (rounded, exact, before))
    for mine, full, initial in zip(*parameters, strict=True):
        assert (mine - full).norm() <= 0.05 * (full - initial).norm() + 1e-6


class Deeper(FlattenExtractor):
    def forward(self, observations):
        return 2 * super().forward(observations)


class OwnPolicy(SACPolicy):
    def make_actor(self, features_extractor=None):
        actor = super().make_actor(features_extractor)
        actor.latent_pi = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU())
        actor.mu, actor.log_std = nn.Linear(8, 2), nn.Linear(8, 2)
        return actor


@pytest.mark.parametrize(
    ("policy", "kwargs"),
    [
        ("MlpPolicy", {"use_sde": True}),
        ("MlpPolicy", {"policy_kwargs": {"activation_fn": nn.ELU}}),
        ("MlpPolicy", {"policy_kwargs": {"net_arch": []}}),
        ("MlpPolicy", {"policy_kwargs": {"features_extractor_class": Deeper}}),
        (OwnPolicy, {}),
    ],
)
def test_other_networks_are_left_to_sb3(policy, kwargs):
    assert not fused_sac.supports(SAC(policy, Noise(), device="cpu", **kwargs))


def freeze(agent):
    agent.actor.latent_pi[0].weight.requires_grad_(False)


def clip_gradients(agent):
    for parameter in agent.critic.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))


def reparametrise(agent):
    nn.utils.parametrizations.spectral_norm(agent.actor.mu)


def head_of_two_layers(agent):
    agent.actor.mu = nn.Sequential(nn.Linear(256, 8), nn.Linear(8, 2))


def after_gradients(agent):
    agent.critic.qf0[0].weight.register_post_accumulate_grad_hook(lambda _: None)


def watch_a_layer(agent):
    agent.critic.qf0[0].register_forward_hook(lambda *_: None)


def watch_the_actor(agent):
    agent.actor.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change", [freeze, clip_gradients, reparametrise, head_of_two_layers, after_gradients, watch_a_layer, watch_the_actor]
)
def test_networks_that_need_autograd_are_left_to_sb3(change):
    agent = SAC("MlpPolicy", Noise(), device="cpu")
    assert fused_sac.supports(agent)
    change(agent)
    assert not fused_sac.supports(agent)


def test_a_class_between_mbpo_and_sac_keeps_its_own_updates():
    calls = []

    class Own(SAC):
        def train(self, gradient_steps, batch_size=64):
            calls.append(gradient_steps)
            super().train(gradient_steps, batch_size)

    class ModelBasedOwn(MBPO, Own): ...

    ModelBasedOwn("MlpPolicy", Noise(), learning_starts=20, gradient_steps=2, termination_fn="learned").learn(24)
    assert calls == [2] * 4


def test_without_onednn_updates_are_left_to_sb3(monkeypatch):
    agent = collected()
    monkeypatch.setattr(onednn, "AVAILABLE", False)
    assert not fused_sac.supports(agent)


def test_mbpo_uses_the_fused_updates(monkeypatch):
    trained = []
    train = fused_sac.train
    monkeypatch.setattr(fused_sac, "train", lambda *args: trained.append(args[1:]) or train(*args))
    precision = "bfloat16" if HAS_BFLOAT16 else "float32"
    model = MBPO("MlpPolicy", Noise(), learning_starts=20, gradient_steps=2, precision=precision, termination_fn="learned")
    model.learn(24)
    assert trained == [(2, 256, precision)] * 4
    assert model.dynamics.precision == precision
