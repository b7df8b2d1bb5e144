"""
SAC's updates with their gradients written out: what ``stable_baselines3.SAC.train`` computes, faster on a processor, and on an
accelerator without waiting for it after each loss.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, ContinuousCritic
from torch import nn

from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.adam import adam_step
from sb3_mbrl.acceleration.perceptron import (
    PRECISIONS,
    Trace,
    backward,
    forward,
    has_gradient_hooks,
    has_hooks,
    is_perceptron,
    parameters_and_layout,
)

LOG_SQRT_2_PI = 0.5 * float(np.log(2 * np.pi))
EPSILON = 1e-6
"""SB3's epsilon in the correction of its squashed Gaussian, which avoids the logarithm of 0."""


def fits(agent: SAC) -> bool:
    """
    :param agent: to be updated
    :return: whether its networks are perceptrons as SB3 makes them, all of them trained; on a processor, with oneDNN
    """
    actor, critics = agent.actor, (agent.critic, agent.critic_target)
    if (agent.device.type == "cpu" and not onednn.AVAILABLE) or agent.use_sde:
        return False
    networks = (actor.latent_pi, *(network for critic in critics for network in critic.q_networks))
    heads = (actor.mu, actor.log_std)
    trained = [*actor.parameters(), *agent.critic.parameters()]
    return (
        type(actor) is Actor
        and all(type(critic) is ContinuousCritic for critic in critics)
        and all(type(each.features_extractor) is FlattenExtractor for each in (actor, *critics))
        and all(type(head) is nn.Linear and head.bias is not None for head in heads)
        and all(type(network) is nn.Sequential and is_perceptron(list(network)) for network in networks)
        and not any(has_hooks(module) for each in (actor, *critics) for module in each.modules())
        # Hooks on parameters see gradients that autograd computes; these are written into .grad
        and all(parameter.requires_grad and not has_gradient_hooks(parameter) for parameter in trained)
    )


@dataclass
class Sample:
    """
    Actions of the policy, and what their derivatives follow from, B rows each.

    :param action: in [-1, 1], (B, A)
    :param log_prob: (B, 1)
    :param noise: standard normal, (B, A)
    :param std: before the action is squashed, (B, A)
    :param clamped: where the network's standard deviation was out of its range, (B, A) bool
    :param traces: of the features, the mean and the standard deviation
    """

    action: th.Tensor
    log_prob: th.Tensor
    noise: th.Tensor
    std: th.Tensor
    clamped: th.Tensor
    traces: tuple[Trace, Trace, Trace]


class SACUpdates:
    """
    The steps of SB3's ``train``, in its order and with its random numbers.

    :param agent: whose networks and entropy coefficient are updated, by its optimisers
    :param precision: of the products between hidden layers, a key of ``PRECISIONS``
    """

    def __init__(self, agent: SAC, precision: str = "float32"):
        hidden = PRECISIONS[precision]
        actor: Any = agent.actor
        critics: Any = agent.critic.q_networks
        targets: Any = agent.critic_target.q_networks
        self.agent = agent
        self.features = _Network(actor.latent_pi, hidden)
        self.mean, self.log_std = _Network([actor.mu]), _Network([actor.log_std])
        self.critics = [_Network(network, hidden) for network in critics]
        self.targets = [_Network(network, hidden) for network in targets]
        self.of_critics: list[th.Tensor] = [*agent.critic.parameters()]
        self.of_targets: list[th.Tensor] = [*agent.critic_target.parameters()]
        self.step_actor, self.step_critics = adam_step(agent.actor.optimizer), adam_step(agent.critic.optimizer)
        self.step_entropy_coefficient = None if agent.ent_coef_optimizer is None else adam_step(agent.ent_coef_optimizer)

    @th.no_grad()
    def update(self, batch: ReplayBufferSamples, targets_follow: bool = True) -> dict[str, th.Tensor]:
        """
        :param batch: B transitions
        :param targets_follow: whether the target critics are updated too
        :return: losses and the entropy coefficient, one number each
        """
        agent, n = self.agent, len(batch.observations)
        obs, next_obs = batch.observations.float(), batch.next_observations.float()
        # Sampled together, as the actor is updated last
        now, later = self._sample(th.cat([obs, next_obs]), n)
        ent_coef, logged = self._update_entropy_coefficient(now.log_prob)

        next_pairs = th.cat([next_obs, later.action], dim=1)
        next_value = th.cat([critic(next_pairs)[0] for critic in self.targets], dim=1).amin(dim=1, keepdim=True)
        discounts = agent.gamma if batch.discounts is None else batch.discounts
        target = batch.rewards + (1 - batch.dones) * discounts * (next_value - ent_coef * later.log_prob)

        logged["critic_loss"] = self._update_critics(th.cat([obs, batch.actions], dim=1), target)
        logged["actor_loss"] = self._update_actor(obs, now, ent_coef)
        if targets_follow:
            th._foreach_lerp_(self.of_targets, self.of_critics, agent.tau)
        return logged

    def _sample(self, obs: th.Tensor, n: int) -> tuple[Sample, Sample]:
        """For the first n rows, and for the others."""
        features, features_trace = self.features(obs)
        (mean, mean_trace), (free, log_std_trace) = self.mean(features), self.log_std(features)
        log_std = free.clamp(LOG_STD_MIN, LOG_STD_MAX)
        noise = th.cat([th.randn_like(mean[:n]), th.randn_like(mean[n:])])
        std = log_std.exp()
        action = th.tanh(mean + std * noise)
        gaussian = -0.5 * noise**2 - log_std - LOG_SQRT_2_PI
        log_prob = (gaussian - th.log(1 - action**2 + EPSILON)).sum(dim=1, keepdim=True)

        def part(rows: slice) -> Sample:
            traces = features_trace[rows], mean_trace[rows], log_std_trace[rows]
            return Sample(action[rows], log_prob[rows], noise[rows], std[rows], (free != log_std)[rows], traces)

        return part(slice(n)), part(slice(n, None))

    def _update_entropy_coefficient(self, log_prob: th.Tensor) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """The coefficient before the update, and what is logged."""
        agent = self.agent
        if self.step_entropy_coefficient is None:
            return agent.ent_coef_tensor, {"ent_coef": agent.ent_coef_tensor}
        assert agent.log_ent_coef is not None
        ent_coef, missing = agent.log_ent_coef.exp(), log_prob.mean() + float(agent.target_entropy)
        loss = -agent.log_ent_coef * missing
        agent.log_ent_coef.grad = -missing.expand_as(agent.log_ent_coef)
        self.step_entropy_coefficient()
        return ent_coef, {"ent_coef": ent_coef, "ent_coef_loss": loss}

    def _update_critics(self, pairs: th.Tensor, target: th.Tensor) -> th.Tensor:
        loss = th.zeros(())
        for critic in self.critics:
            value, trace = critic(pairs)
            error = value - target
            critic.set_gradients(backward(trace, error / len(error), of_input=False)[1])
            loss = loss + 0.5 * (error**2).mean()
        self.step_critics()
        return loss

    def _update_actor(self, obs: th.Tensor, sample: Sample, ent_coef: th.Tensor) -> th.Tensor:
        n, action = len(obs), sample.action
        passes = [critic(th.cat([obs, action], dim=1)) for critic in self.critics]
        value, lowest = th.cat([value for value, _ in passes], dim=1).min(dim=1, keepdim=True)
        # Gradient of the mean of ent_coef * log_prob - value: in the action,
        in_action = 2 * ent_coef / n * action / (1 - action**2 + EPSILON)
        for i, (_, trace) in enumerate(passes):
            in_action += self._in_input(trace, (lowest == i) / -n)[:, obs.shape[1] :]
        # in the mean and the logarithm of the standard deviation,
        in_mean = in_action * (1 - action**2)
        in_log_std = (in_mean * sample.std * sample.noise - ent_coef / n).masked_fill_(sample.clamped, 0)
        # and in the parameters
        features_trace, mean_trace, log_std_trace = sample.traces
        by_mean, of_mean = backward(mean_trace, in_mean)
        by_log_std, of_log_std = backward(log_std_trace, in_log_std)
        assert by_mean is not None and by_log_std is not None
        self.mean.set_gradients(of_mean)
        self.log_std.set_gradients(of_log_std)
        self.features.set_gradients(backward(features_trace, by_mean + by_log_std, of_input=False)[1])
        self.step_actor()
        return (ent_coef * sample.log_prob - value).mean()

    @staticmethod
    def _in_input(trace: Trace, gradient: th.Tensor) -> th.Tensor:
        in_input, _ = backward(trace, gradient, of_parameters=[False] * (2 * len(trace.inputs)))
        assert in_input is not None
        return in_input


class _Network:
    """
    A perceptron of the agent.

    :param layers: linear ones and activations
    :param hidden: of products between hidden layers
    """

    def __init__(self, layers: Iterable[nn.Module], hidden: th.dtype = th.float32):
        self.parameters, self.layout = parameters_and_layout(layers, hidden)

    def __call__(self, x: th.Tensor) -> tuple[th.Tensor, Trace]:
        return forward(x, self.parameters, self.layout)

    def set_gradients(self, gradients: Sequence[th.Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def train(agent: SAC, gradient_steps: int, batch_size: int, precision: str) -> None:
    """
    In the place of ``agent``'s ``train``, if it ``fits``.

    :param agent: to be updated
    :param gradient_steps: number of updates
    :param batch_size: rows per update
    :param precision: of the products between hidden layers, a key of ``PRECISIONS``
    """
    assert agent.replay_buffer is not None
    agent.policy.set_training_mode(True)
    optimizers = [agent.actor.optimizer, agent.critic.optimizer]
    agent._update_learning_rate(optimizers + ([agent.ent_coef_optimizer] if agent.ent_coef_optimizer is not None else []))
    updates, logged = SACUpdates(agent, precision), []
    for step in range(gradient_steps):
        batch = agent.replay_buffer.sample(batch_size, env=agent._vec_normalize_env)
        logged.append(updates.update(batch, targets_follow=step % agent.target_update_interval == 0))
    agent._n_updates += gradient_steps
    agent.logger.record("train/n_updates", agent._n_updates, exclude="tensorboard")
    if logged:
        # Averaged on the device, and read at once
        means = th.stack([th.stack([each[name].reshape(()) for each in logged]).mean() for name in logged[0]])
        for name, mean in zip(logged[0], means.tolist(), strict=True):
            agent.logger.record(f"train/{name}", mean)
