"""The actors and critics of Stable-Baselines3 as plain functions of raw observations."""

from collections.abc import Callable

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_mbrl.common.actions import action_bounds, action_dim, scale
from sb3_mbrl.common.normalization import normalize_obs

ObsFn = Callable[[th.Tensor], th.Tensor]
"""``f(raw observations (B, O)) -> (B, ...)``."""


def value_function(model: BaseAlgorithm) -> ObsFn:
    """
    The state value that a trained SB3 algorithm predicts: for SAC, TD3, CrossQ and MBPO the lowest of the critics' values of
    the actor's deterministic action, for TQC the mean of the quantiles of that action, for A2C and PPO the output of the value
    head, for DQN the highest Q-value. Values are in the unit of the critics: they are made of rewards as ``VecNormalize``
    scaled them, and SAC's include the entropy bonus.

    :param model: a trained algorithm; the statistics of its ``VecNormalize`` are applied to observations
    :return: ``f(raw observations (B, O)) -> values (B,)``; NaN where the observation has diverged
    :raises ValueError: it is not known how to read a value from the policy
    """
    policy, env = _policy_of(model), model.get_vec_normalize_env()

    known = isinstance(policy, (ActorCriticPolicy, DQNPolicy)) or (hasattr(policy, "actor") and hasattr(policy, "critic"))
    if not known:
        raise ValueError(
            f"It is not known how to read a state value from {type(policy).__name__}. Pass a function f(obs (B, O)) -> values "
            "(B,) instead of the algorithm."
        )

    def value(obs: th.Tensor) -> th.Tensor:
        policy.set_training_mode(False)  # as in SB3's predict
        diverged = _has_diverged(obs)
        values = of_network_input(_network_input(obs.masked_fill(diverged, 0.0), policy, env)).to(obs.device)
        return values.masked_fill(diverged.squeeze(1), th.nan)

    def of_network_input(obs: th.Tensor) -> th.Tensor:
        if isinstance(policy, ActorCriticPolicy):
            return policy.predict_values(obs).squeeze(1)
        if isinstance(policy, DQNPolicy):
            return policy.q_net(obs).amax(dim=1)
        q_values = policy.critic(obs, policy._predict(obs, deterministic=True))  # type: ignore[operator]
        if isinstance(q_values, th.Tensor):  # TQC's quantiles, (B, critics, quantiles)
            return q_values.mean(dim=(1, 2))
        return th.cat(q_values, dim=1).amin(dim=1)

    return value


def actor_function(model: BaseAlgorithm) -> ObsFn:
    """
    :param model: a trained SB3 algorithm; the statistics of its ``VecNormalize`` are applied to observations
    :return: ``f(raw observations (B, O)) -> deterministic actions (B, A)`` in [-1, 1], one-hot for discrete ones
    :raises ValueError: the policy is recurrent
    """
    policy, env = _policy_of(model), model.get_vec_normalize_env()
    space = model.action_space

    def act(obs: th.Tensor) -> th.Tensor:
        policy.set_training_mode(False)
        obs = obs.masked_fill(_has_diverged(obs), 0.0)
        action = policy._predict(_network_input(obs, policy, env), deterministic=True).to(obs.device)
        if isinstance(space, spaces.Discrete):
            return F.one_hot(action.flatten(), action_dim(space)).float()  # SB3 counts from 0, even if ``start`` is not 0
        action = action.reshape(len(obs), -1)
        if not policy.squash_output:  # then its actions are unbounded, in the environment's scale
            low, high = (bound.to(action.device) for bound in action_bounds(space))
            action = scale(action, low, high)
        return action.clamp(-1, 1)

    return act


def _network_input(obs: th.Tensor, policy: BasePolicy, env: VecNormalize | None) -> th.Tensor:
    """Normalised, on the policy's device: a simulator's states are on the CPU, while the agent may be on a GPU."""
    return normalize_obs(obs.float(), env).to(policy.device)


def _has_diverged(obs: th.Tensor) -> th.Tensor:
    """Observations for which a network, or the distribution that it parametrises, would fail, (B, 1) bool."""
    return ~(obs.abs() < 1e10).all(dim=1, keepdim=True)


def _policy_of(model: BaseAlgorithm) -> BasePolicy:
    policy = model.policy
    if not hasattr(policy, "_predict") or hasattr(policy, "lstm_actor"):
        raise ValueError(
            f"{type(policy).__name__} is not a function of the observation alone, so it cannot be used in a plan. Pass a "
            "policy that is not recurrent, or a function of the observation."
        )
    return policy
