"""
SAC's updates with explicit gradients. They compute what ``stable_baselines3.SAC.train`` computes: faster on the CPU, and on an
accelerator without waiting for it after each loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, ContinuousCritic
from torch import nn

from sb3_mbrl import acceleration
from sb3_mbrl.acceleration import onednn
from sb3_mbrl.acceleration.adam import adam_step
from sb3_mbrl.acceleration.perceptron import (
    Trace,
    backward,
    forward,
    has_gradient_hooks,
    has_hooks,
    is_perceptron,
    parameters_and_layout,
)
from sb3_mbrl.acceleration.precision import PRECISIONS

LOG_SQRT_2_PI = 0.5 * float(np.log(2 * np.pi))
EPSILON = 1e-6
"""SB3's epsilon in the tanh correction; avoids log(0)."""


def supports(agent: SAC) -> bool:
    """
    :param agent: the agent to update
    :return: whether :func:`train` can replace ``SAC.train``: acceleration is enabled (and oneDNN available on the CPU), and
        actor and critics are perceptrons as SB3 builds them, with all parameters trained and no hooks registered
    """
    if not acceleration.enabled or (agent.device.type == "cpu" and not onednn.AVAILABLE):
        return False
    critics = (agent.critic, agent.critic_target)
    trained = [*agent.actor.parameters(), *agent.critic.parameters()]
    return (
        _is_gaussian_perceptron(agent.actor)
        and all(type(critic) is ContinuousCritic for critic in critics)
        and all(type(critic.features_extractor) is FlattenExtractor for critic in critics)
        and all(type(each) is nn.Sequential and is_perceptron(list(each)) for critic in critics for each in critic.q_networks)
        and not any(has_hooks(module) for critic in critics for module in critic.modules())
        # Autograd would call hooks of parameters, but it does not compute these gradients
        and all(parameter.requires_grad and not has_gradient_hooks(parameter) for parameter in trained)
    )


def _is_gaussian_perceptron(actor: nn.Module) -> bool:
    """Whether this is SB3's actor of SAC without gSDE: a perceptron and two linear heads, without hooks."""
    return (
        type(actor) is Actor
        and not actor.use_sde
        and type(actor.features_extractor) is FlattenExtractor
        and type(actor.latent_pi) is nn.Sequential
        and is_perceptron(list(actor.latent_pi))
        and all(type(head) is nn.Linear and head.bias is not None for head in (actor.mu, actor.log_std))
        and not any(has_hooks(module) for module in actor.modules())
    )


def action_dist_params(actor: Any, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
    """
    ``actor.get_action_dist_params(obs)``, faster for SAC's actor on the CPU while no gradient is recorded.

    :param actor: actor of an SB3 algorithm
    :param obs: flat observations, (B, O) float32
    :return: mean and log standard deviation of a Gaussian, (B, A) each, and further arguments of the distribution
    """
    if th.is_grad_enabled() or not (_is_gaussian_perceptron(actor) and onednn.supports(obs, actor.mu.weight)):
        return actor.get_action_dist_params(obs)  # type: ignore[no-any-return]
    features, _ = _Network(actor.latent_pi)(obs)
    (mean, _), (log_std, _) = _Network([actor.mu])(features), _Network([actor.log_std])(features)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), {}


def train(agent: SAC, gradient_steps: int, batch_size: int, precision: str = "float32") -> None:
    """
    Do what ``SAC.train`` does, for an agent that is supported.

    :param agent: the agent to update
    :param gradient_steps: number of updates
    :param batch_size: transitions per update
    :param precision: number format of products between hidden layers, a key of ``PRECISIONS``
    """
    assert agent.replay_buffer is not None
    agent.policy.set_training_mode(True)
    optimizers = [agent.actor.optimizer, agent.critic.optimizer]
    agent._update_learning_rate(optimizers + ([agent.ent_coef_optimizer] if agent.ent_coef_optimizer is not None else []))
    updates, logged = SACUpdates(agent, precision), []
    for step in range(gradient_steps):
        batch = agent.replay_buffer.sample(batch_size, env=agent._vec_normalize_env)
        logged.append(updates.update(batch, update_targets=step % agent.target_update_interval == 0))
    agent._n_updates += gradient_steps
    agent.logger.record("train/n_updates", agent._n_updates, exclude="tensorboard")
    if logged:
        # Averaged on the device and read together, because the host waits for an accelerator at each read
        means = th.stack([th.stack([each[name].reshape(()) for each in logged]).mean() for name in logged[0]])
        for name, mean in zip(logged[0], means.tolist(), strict=True):
            agent.logger.record(f"train/{name}", mean)


@dataclass
class Sample:
    """
    Actions drawn from the policy for B rows, and what the backward pass needs.

    :param action: in [-1, 1], (B, A)
    :param log_prob: (B, 1)
    :param noise: standard normal, (B, A)
    :param std: standard deviation before the action is squashed, (B, A)
    :param clamped: where the network's log standard deviation was out of range, (B, A) bool
    :param traces: traces of the features, the mean and the log standard deviation
    """

    action: th.Tensor
    log_prob: th.Tensor
    noise: th.Tensor
    std: th.Tensor
    clamped: th.Tensor
    traces: tuple[Trace, Trace, Trace]


class SACUpdates:
    """
    The steps of ``SAC.train``, in its order and with its random numbers.

    :param agent: the agent; its own optimizers update its networks and entropy coefficient
    :param precision: number format of products between hidden layers, a key of ``PRECISIONS``
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
        self.critic_parameters: list[th.Tensor] = [*agent.critic.parameters()]
        self.target_parameters: list[th.Tensor] = [*agent.critic_target.parameters()]
        self.step_actor, self.step_critics = adam_step(agent.actor.optimizer), adam_step(agent.critic.optimizer)
        self.step_entropy_coefficient = None if agent.ent_coef_optimizer is None else adam_step(agent.ent_coef_optimizer)

    @th.no_grad()
    def update(self, batch: ReplayBufferSamples, update_targets: bool = True) -> dict[str, th.Tensor]:
        """
        :param batch: B transitions
        :param update_targets: whether the target critics are updated too
        :return: losses and the entropy coefficient, one number each
        """
        agent, n = self.agent, len(batch.observations)
        obs, next_obs = batch.observations.float(), batch.next_observations.float()
        # Both are sampled in one pass, which is possible because the actor is updated last
        current, following = self._sample(th.cat([obs, next_obs]), n)
        ent_coef, logged = self._update_entropy_coefficient(current.log_prob)

        next_pairs = th.cat([next_obs, following.action], dim=1)
        next_value = th.cat([critic(next_pairs)[0] for critic in self.targets], dim=1).amin(dim=1, keepdim=True)
        discounts = agent.gamma if batch.discounts is None else batch.discounts
        target = batch.rewards + (1 - batch.dones) * discounts * (next_value - ent_coef * following.log_prob)

        logged["critic_loss"] = self._update_critics(th.cat([obs, batch.actions], dim=1), target)
        logged["actor_loss"] = self._update_actor(obs, current, ent_coef)
        if update_targets:
            th._foreach_lerp_(self.target_parameters, self.critic_parameters, agent.tau)
        return logged

    def _sample(self, obs: th.Tensor, n: int) -> tuple[Sample, Sample]:
        """The samples of the first n rows, and those of the others."""
        features, features_trace = self.features(obs)
        (mean, mean_trace), (unclamped, log_std_trace) = self.mean(features), self.log_std(features)
        log_std = unclamped.clamp(LOG_STD_MIN, LOG_STD_MAX)
        # Drawn separately, as SB3 draws them
        noise = th.cat([th.randn_like(mean[:n]), th.randn_like(mean[n:])])
        std = log_std.exp()
        action = th.tanh(mean + std * noise)
        gaussian = -0.5 * noise**2 - log_std - LOG_SQRT_2_PI
        log_prob = (gaussian - th.log(1 - action**2 + EPSILON)).sum(dim=1, keepdim=True)

        def part(rows: slice) -> Sample:
            traces = features_trace[rows], mean_trace[rows], log_std_trace[rows]
            return Sample(action[rows], log_prob[rows], noise[rows], std[rows], (unclamped != log_std)[rows], traces)

        return part(slice(n)), part(slice(n, None))

    def _update_entropy_coefficient(self, log_prob: th.Tensor) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Update the entropy coefficient; return it as it was before, and what is logged."""
        agent = self.agent
        if self.step_entropy_coefficient is None:
            return agent.ent_coef_tensor, {"ent_coef": agent.ent_coef_tensor}
        assert agent.log_ent_coef is not None
        ent_coef, missing_entropy = agent.log_ent_coef.exp(), log_prob.mean() + float(agent.target_entropy)
        loss = -agent.log_ent_coef * missing_entropy
        agent.log_ent_coef.grad = -missing_entropy.expand_as(agent.log_ent_coef)
        self.step_entropy_coefficient()
        return ent_coef, {"ent_coef": ent_coef, "ent_coef_loss": loss}

    def _update_critics(self, pairs: th.Tensor, target: th.Tensor) -> th.Tensor:
        """Update the critics; return the loss, 0.5 times the mean squared error, summed over the critics."""
        loss = th.zeros(())
        for critic in self.critics:
            value, trace = critic(pairs)
            error = value - target
            critic.set_gradients(backward(trace, error / len(error), needs_input=False)[1])
            loss = loss + 0.5 * (error**2).mean()
        self.step_critics()
        return loss

    def _update_actor(self, obs: th.Tensor, sample: Sample, ent_coef: th.Tensor) -> th.Tensor:
        """Update the actor; return the loss, the mean of ``ent_coef * log_prob - value``."""
        n, action = len(obs), sample.action
        passes = [critic(th.cat([obs, action], dim=1)) for critic in self.critics]
        value, lowest = th.cat([value for value, _ in passes], dim=1).min(dim=1, keepdim=True)
        # The gradient of the loss goes through the log-probability and the lower critic into the action, ...
        grad_action = 2 * ent_coef / n * action / (1 - action**2 + EPSILON)
        for i, (_, trace) in enumerate(passes):
            grad_action += self._gradient_of_input(trace, (lowest == i) / -n)[:, obs.shape[1] :]
        # ... through the tanh into mean and log standard deviation, ...
        grad_mean = grad_action * (1 - action**2)
        grad_log_std = (grad_mean * sample.std * sample.noise - ent_coef / n).masked_fill_(sample.clamped, 0)
        # ... and through both heads into the features
        features_trace, mean_trace, log_std_trace = sample.traces
        through_mean, mean_gradients = backward(mean_trace, grad_mean)
        through_log_std, log_std_gradients = backward(log_std_trace, grad_log_std)
        assert through_mean is not None and through_log_std is not None
        self.mean.set_gradients(mean_gradients)
        self.log_std.set_gradients(log_std_gradients)
        self.features.set_gradients(backward(features_trace, through_mean + through_log_std, needs_input=False)[1])
        self.step_actor()
        return (ent_coef * sample.log_prob - value).mean()

    @staticmethod
    def _gradient_of_input(trace: Trace, gradient: th.Tensor) -> th.Tensor:
        grad_input, _ = backward(trace, gradient, needs_parameters=[False] * (2 * len(trace.inputs)))
        assert grad_input is not None
        return grad_input


class _Network:
    """
    A perceptron of the agent.

    :param layers: its linear layers and activations, in order
    :param hidden: number format of products between hidden layers
    """

    def __init__(self, layers: Any, hidden: th.dtype = th.float32):
        self.parameters, self.layout = parameters_and_layout([*layers], hidden)

    def __call__(self, x: th.Tensor) -> tuple[th.Tensor, Trace]:
        return forward(x, self.parameters, self.layout)

    def set_gradients(self, gradients: Sequence[th.Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
