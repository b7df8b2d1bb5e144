"""The task-oriented latent dynamics of TD-MPC (Hansen et al. 2022, https://arxiv.org/abs/2203.04955, section 4)."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_mbrl.acceleration.onednn import Linear
from sb3_mbrl.common.random import Generators, randn
from sb3_mbrl.tdmpc.latent_model import LatentModel

NOISE_CLIP = 0.3
"""The policy's noise is clipped to plus or minus this number."""


class ToldSizes(NamedTuple):
    """
    :param encoder: units of the encoder's hidden layer
    :param mlp: units of the hidden layers of everything else
    :param latent: entries of a latent state
    """

    encoder: int
    mlp: int
    latent: int


TOLD_SIZES = {"small": ToldSizes(128, 128, 50), "default": ToldSizes(256, 512, 50)}
"""The paper's sizes (for dogs and humanoids its latent states have 100 entries), and smaller ones for CPUs."""


class TOLD(LatentModel):
    """
    Encoder, latent dynamics, reward, two critics and policy, and a termination head, which TD-MPC does not have. The features
    extractor, the encoder and the critics have targets: copies that follow them slowly.

    :param observation_space: observation space of the environment
    :param action_space: action space of the environment, Box with finite bounds
    :param features_extractor: SB3's features extractor, applied to preprocessed observations
    :param sizes: sizes of the networks
    :param normalize_images: whether images are divided by 255 first
    :param noise_std: standard deviation of the policy's noise
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: nn.Module,
        sizes: ToldSizes,
        normalize_images: bool = True,
        noise_std: float = 0.05,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images, sizes.mlp)
        n_pair = sizes.latent + self.action_dim
        self.encoder = elu_mlp([self.features_dim, sizes.encoder, sizes.latent])
        self.dynamics = elu_mlp([n_pair, sizes.mlp, sizes.mlp, sizes.latent])
        self.reward_head = elu_mlp([n_pair, sizes.mlp, sizes.mlp, 1])
        self.termination_head = elu_mlp([sizes.latent, sizes.mlp, sizes.mlp, 1])
        self.prior = elu_mlp([sizes.latent, sizes.mlp, sizes.mlp, self.action_dim])
        self.critics = nn.ModuleList([critic(n_pair, sizes.mlp) for _ in range(2)])
        for each in (self.encoder, self.dynamics, self.reward_head, self.termination_head, self.prior, self.critics):
            each.apply(_initialise)
        for network in (self.reward_head, *self.critics):  # rewards and values are 0 at first
            nn.init.zeros_(network[-1].weight)  # type: ignore[index]
        self.targets = deepcopy(nn.ModuleList([features_extractor, self.encoder, self.critics])).requires_grad_(False)
        self.noise_std = noise_std

    def encode_targets(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: observations, (B, \\*obs), or a dict of them
        :return: latent states according to the target encoder, (B, Z)
        """
        features_extractor, encoder, _ = self.targets
        return encoder(features_extractor(self.preprocess(obs)))  # type: ignore[no-any-return]

    def online(self) -> nn.ModuleList:
        """The networks that the targets follow, in the order of the targets."""
        return nn.ModuleList([self.features_extractor, self.encoder, self.critics])

    def q_values(self, z: th.Tensor, action: th.Tensor, target: bool = False) -> th.Tensor:
        """
        :param z: latent states, (..., Z)
        :param action: in [-1, 1], (..., A)
        :param target: use the target critics instead
        :return: values of both critics, (2, ...)
        """
        critics: Any = self.targets[2] if target else self.critics
        pairs = th.cat([z, action], dim=-1)
        return th.stack([each(pairs).squeeze(-1) for each in critics])

    def reward(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.reward_head(th.cat([z, action], dim=-1)).squeeze(-1)  # type: ignore[no-any-return]

    def act(self, z: th.Tensor, generator: Generators = None, deterministic: bool = False) -> th.Tensor:
        mean = th.tanh(self.prior(z))
        if deterministic:
            return mean
        noise = self.noise_std * randn(mean.shape, generator, mean.device)
        noisy = mean + noise.clamp(-NOISE_CLIP, NOISE_CLIP)
        # Straight-through: the gradient passes even where the action is clipped, as in DrQ-v2
        return noisy - noisy.detach() + noisy.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    def value(self, z: th.Tensor, generator: Generators = None) -> th.Tensor:
        return self.q_values(z, self.act(z, generator)).amin(dim=0)


def elu_mlp(sizes: Sequence[int]) -> nn.Sequential:
    """
    :param sizes: units of the input, of the hidden layers, each followed by ELU, and of the linear output
    :return: the network
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [Linear(n_in, n_out), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def critic(n_in: int, n_hidden: int) -> nn.Sequential:
    """
    :param n_in: entries of a latent state and an action
    :param n_hidden: units of both hidden layers
    :return: TD-MPC's critic
    """
    return nn.Sequential(
        Linear(n_in, n_hidden),
        nn.LayerNorm(n_hidden),
        nn.Tanh(),
        Linear(n_hidden, n_hidden),
        nn.ELU(),
        Linear(n_hidden, 1),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)
