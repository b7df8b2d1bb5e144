"""The base class of the latent models of TD-MPC and TD-MPC2: it encodes observations, and is stepped like any model."""

from abc import abstractmethod

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_mbrl.common.actions import action_bounds, action_dim, executed, unscale
from sb3_mbrl.common.model import Members, ModelStep
from sb3_mbrl.common.random import Generators


class LatentModel(nn.Module):
    """
    A :class:`~sb3_mbrl.dynamics.DynamicsModel` that steps latent states.

    :param observation_space: observation space of the environment
    :param action_space: action space of the environment, Box with finite bounds
    :param features_extractor: SB3's features extractor, applied to preprocessed observations
    :param normalize_images: whether images are divided by 255 first
    :param width: units of the widest layers that a plan evaluates
    """

    encoder: nn.Module
    dynamics: nn.Module
    termination_head: nn.Module
    critics: nn.Module
    prior: nn.Module
    terminates: th.Tensor
    """A float, (): 1 once a termination was seen. While it is 0, plans skip the prediction of terminations."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: nn.Module,
        normalize_images: bool,
        width: int,
    ):
        super().__init__()
        self.width = width
        self.register_buffer("terminates", th.zeros(()))
        self.observation_space = observation_space
        self.action_space = action_space
        self.features_extractor = features_extractor
        self.features_dim: int = features_extractor.features_dim  # type: ignore[assignment]
        self.normalize_images = normalize_images
        self.action_dim = action_dim(action_space)
        low, high = action_bounds(action_space)
        self.action_low: th.Tensor
        self.action_high: th.Tensor
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)

    def __repr__(self) -> str:
        """The sizes, instead of all modules and parameters."""
        space = self.observation_space
        shapes = {name: each.shape for name, each in space.items()} if isinstance(space, spaces.Dict) else space.shape
        latent_dim = self.termination_head[0].in_features  # type: ignore[index]
        n_parameters = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return (
            f"{type(self).__name__}(observation={shapes}, action_dim={self.action_dim}, latent_dim={latent_dim}, "
            f"width={self.width}, n_critics={len(self.critics)}, n_parameters={n_parameters})"  # type: ignore[arg-type]
        )

    @property
    def elites(self) -> th.Tensor:
        """``[0]``, because a latent model is not an ensemble."""
        return th.zeros(1, dtype=th.long, device=self.device)

    @property
    def device(self) -> th.device:
        """The device of the networks."""
        return self.action_low.device

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, (B, \\*obs), or a dict of them
        :return: latent states, (B, Z)
        """
        return self.encoder(self.features_extractor(self.preprocess(obs)))  # type: ignore[no-any-return]

    def preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: observations, (B, \\*obs), or a dict of them
        :return: the observations as SB3 gives them to a features extractor
        """
        return preprocess_obs(counted_from_zero(obs, self.observation_space), self.observation_space, self.normalize_images)

    def next(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states, (..., Z)
        :param action: in [-1, 1], (..., A)
        :return: next latent states, (..., Z)
        """
        return self.dynamics(th.cat([z, action], dim=-1))  # type: ignore[no-any-return]

    def termination_logit(self, z: th.Tensor) -> th.Tensor:
        """
        :param z: latent states, (..., Z)
        :return: log-odds that the task ended there, (...)
        """
        return self.termination_head(z).squeeze(-1)  # type: ignore[no-any-return]

    @abstractmethod
    def reward(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states, (B, Z)
        :param action: in [-1, 1], (B, A)
        :return: predicted rewards, (B,)
        """

    @abstractmethod
    def act(self, z: th.Tensor, generator: Generators = None, deterministic: bool = False) -> th.Tensor:
        """
        :param z: latent states, (B, Z)
        :param generator: source of the policy's noise
        :param deterministic: return the mean, without noise
        :return: the policy prior's actions, in [-1, 1], (B, A)
        """

    @abstractmethod
    def value(self, z: th.Tensor, generator: Generators = None) -> th.Tensor:
        """
        :param z: latent states, (B, Z)
        :param generator: source of the policy's noise and of the choice of critics; several generators serve equal blocks of
            states
        :return: values of following the policy prior, (B,)
        """

    @th.no_grad()
    def start(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, (B, \\*obs), or a dict of them
        :return: latent states, (B, Z)
        """
        return self.encode(obs)

    def observe(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: latent states, (B, Z)
        :return: the latent states themselves, because there is no decoder
        """
        return states

    def unscale_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in [-1, 1], (..., A)
        :return: in the environment's scale, (..., A)
        """
        return unscale(action, self.action_low, self.action_high)

    def executed(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in [-1, 1], (..., A)
        :return: the action that the environment executes, in [-1, 1]: rounded if actions are whole numbers, (..., A)
        """
        return executed(action, self.action_space, self.action_low, self.action_high)

    def step(
        self,
        obs: th.Tensor,
        action: th.Tensor,
        generator: Generators = None,
        members: Members = "random",
        deterministic: bool = False,
        uncertainty: bool = False,
        may_end: bool | None = None,
    ) -> ModelStep:
        """
        :param obs: latent states, (B, Z)
        :param action: in [-1, 1], (B, A)
        :param generator: has no effect, because the model is deterministic
        :param members: has no effect
        :param deterministic: has no effect
        :param uncertainty: has no effect
        :param may_end: whether to predict terminations; None: as :attr:`terminates` says, but reading it waits until an
            accelerator has done all its work
        :return: next latent states, rewards, and where the task has probably ended
        """
        action = self.executed(action)
        next_z = self.next(obs, action)
        if self.terminates if may_end is None else may_end:
            terminated = self.termination_logit(next_z) > 0
        else:
            terminated = th.zeros(len(next_z), dtype=th.bool, device=next_z.device)
        return ModelStep(next_z, self.reward(obs, action), terminated)


def counted_from_zero(obs: PyTorchObs, space: spaces.Space) -> PyTorchObs:
    """
    :param obs: observations, (B, \\*obs), or a dict of them
    :param space: the space of the observations
    :return: the observations, in which discrete ones count from 0, as SB3 expects, whatever the ``start`` of their space is
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(obs, dict)
        return {name: counted_from_zero(each, space[name]) for name, each in obs.items()}  # type: ignore[misc]
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
        assert isinstance(obs, th.Tensor)
        return obs - th.as_tensor(space.start, device=obs.device)
    return obs


def effective_rank(latents: th.Tensor) -> float:
    """
    :param latents: (B, Z)
    :return: effective number of dimensions that the latent states use: the exponential of the entropy of their normalised
        singular values (Roy & Vetterli 2007); 1 for a collapsed encoder
    """
    singular = th.linalg.svdvals(latents - latents.mean(dim=0))
    shares = singular / singular.sum().clamp(min=1e-12)
    return th.special.entr(shares).sum().exp().item()
