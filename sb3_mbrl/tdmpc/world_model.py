"""The latent world model of TD-MPC2 (Hansen et al. 2024, https://arxiv.org/abs/2310.16828, section 3 and appendix H)."""

from copy import deepcopy
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_mbrl.common.random import Generators, rand, randn
from sb3_mbrl.tdmpc.latent_model import LatentModel
from sb3_mbrl.tdmpc.layers import Critics, SimNorm, TwoHot, normed_mlp

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


class Sizes(NamedTuple):
    """
    :param encoder: units of the encoder's hidden layers
    :param mlp: units of the hidden layers of everything else
    :param latent: entries of a latent state, a multiple of 8
    :param encoder_layers: number of layers of the encoder, the output layer included
    :param n_critics: number of critics
    """

    encoder: int
    mlp: int
    latent: int
    encoder_layers: int
    n_critics: int


SIZES: dict[str | int, Sizes] = {
    "small": Sizes(128, 128, 64, 2, 5),
    1: Sizes(256, 384, 128, 2, 2),
    5: Sizes(256, 512, 512, 2, 5),
    19: Sizes(1024, 1024, 768, 3, 5),
    48: Sizes(1792, 1792, 768, 4, 5),
    317: Sizes(4096, 4096, 1376, 5, 8),
}
"""Sizes by millions of parameters (TD-MPC2, table 8), and smaller ones for CPUs."""


class PolicySample(NamedTuple):
    """
    :param action: a sample, in [-1, 1], (..., A)
    :param scaled_entropy: the entropy that the policy maximises: A times the negative log-density of the Gaussian before
        squashing, (...)
    :param entropy: negative log-density of the action, (...)
    """

    action: th.Tensor
    scaled_entropy: th.Tensor
    entropy: th.Tensor


class WorldModel(LatentModel):
    """
    Encoder, latent dynamics, reward, termination, critics and policy prior. Latent states are groups of eight that sum to 1;
    rewards and values are distributions over 101 bins in symlog space.

    :param observation_space: observation space of the environment
    :param action_space: action space of the environment, Box with finite bounds
    :param features_extractor: SB3's features extractor, applied to preprocessed observations
    :param sizes: sizes of the networks
    :param normalize_images: whether images are divided by 255 first
    :param dropout: dropout of the critics' first layers, while they are trained (TD-MPC2: 0.01)
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: nn.Module,
        sizes: Sizes,
        normalize_images: bool = True,
        dropout: float = 0.01,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images, sizes.mlp)
        n_pair = sizes.latent + self.action_dim
        mlp = [sizes.mlp, sizes.mlp]
        encoder_layers = [sizes.encoder] * max(sizes.encoder_layers - 1, 1)
        self.two_hot = TwoHot()
        self.encoder = normed_mlp([self.features_dim, *encoder_layers], sizes.latent, last=SimNorm())
        self.dynamics = normed_mlp([n_pair, *mlp], sizes.latent, last=SimNorm())
        self.reward_head = normed_mlp([n_pair, *mlp], self.two_hot.n_bins)
        self.termination_head = normed_mlp([sizes.latent, *mlp], 1)
        self.prior = normed_mlp([sizes.latent, *mlp], 2 * self.action_dim)
        self.critics = Critics(
            normed_mlp([n_pair, *mlp], self.two_hot.n_bins, dropout=dropout) for _ in range(sizes.n_critics)
        )
        for each in (self.encoder, self.dynamics, self.reward_head, self.termination_head, self.prior, self.critics):
            each.apply(_initialise)
        for network in (self.reward_head, *self.critics):  # rewards and values are 0 at first
            nn.init.zeros_(network[-1].weight)  # type: ignore[index, arg-type]
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.register_buffer("q_scale", th.ones(()))

    def train(self, mode: bool = True) -> "WorldModel":
        """
        :param mode: whether dropout and random shifts are active; the target critics never use dropout
        :return: self
        """
        super().train(mode)
        self.target_critics.train(False)
        return self

    def reward_logits(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states, (..., Z)
        :param action: in [-1, 1], (..., A)
        :return: logits of rewards, (..., 101)
        """
        return self.reward_head(th.cat([z, action], dim=-1))  # type: ignore[no-any-return]

    def q_logits(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        """
        :param z: latent states, (..., Z)
        :param action: in [-1, 1], (..., A)
        :return: logits of all critics, (E, ..., 101)
        """
        pairs = th.cat([z, action], dim=-1)
        return self.critics(pairs.flatten(0, -2)).unflatten(1, pairs.shape[:-1])  # type: ignore[no-any-return]

    def two_q_values(self, z: th.Tensor, action: th.Tensor, generator: Generators = None, target: bool = False) -> th.Tensor:
        """
        Values of two critics that are drawn at random, as in REDQ: one pair for all states, or one pair for each generator's
        block of states.

        :param z: latent states, (B, Z)
        :param action: in [-1, 1], (B, A)
        :param generator: draws the critics
        :param target: use the target critics instead
        :return: values, (2, B)
        """
        critics: Any = self.target_critics if target else self.critics
        n_blocks = 1 if generator is None or isinstance(generator, th.Generator) else len(generator)
        drawn = rand((n_blocks, len(critics)), generator, z.device).topk(2, dim=1).indices
        pairs = th.cat([z, action], dim=-1).unflatten(0, (n_blocks, -1)).repeat_interleave(2, dim=0)
        values = self.two_hot.decode(critics(pairs, drawn.flatten()))
        return values.unflatten(0, (n_blocks, 2)).transpose(0, 1).flatten(1)

    @th.no_grad()
    def update_q_scale(self, values: th.Tensor, tau: float = 0.01) -> th.Tensor:
        """
        Update the moving average of the spread of values, by which the policy prior's loss divides values.

        :param values: values of a batch, (B,)
        :param tau: weight of this batch
        :return: the moving average of the 95th percentile minus the 5th, but at least 1; a scalar
        """
        low, high = th.quantile(values, th.tensor([0.05, 0.95], device=values.device))
        self.q_scale.lerp_((high - low).clamp(min=1.0), tau)  # type: ignore[operator]
        return self.q_scale.clone()  # type: ignore[operator, return-value]

    def sample_policy(self, z: th.Tensor, generator: Generators = None) -> PolicySample:
        """
        :param z: latent states, (..., Z)
        :param generator: source of the noise
        :return: actions and their entropies
        """
        mean, log_std = self._policy(z)
        noise = randn(mean.shape, generator, mean.device)
        gaussian = (-0.5 * noise**2 - log_std - 0.5 * th.log(th.tensor(2 * th.pi))).sum(dim=-1)
        action = th.tanh(mean + noise * log_std.exp())
        squashed = gaussian - th.log((1 - action**2).relu() + 1e-6).sum(dim=-1)
        return PolicySample(action, -self.action_dim * gaussian, -squashed)

    def _policy(self, z: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean before squashing, and logarithm of the standard deviation."""
        mean, log_std = self.prior(z).chunk(2, dim=-1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (th.tanh(log_std) + 1)

    def reward(self, z: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.two_hot.decode(self.reward_logits(z, action))

    def act(self, z: th.Tensor, generator: Generators = None, deterministic: bool = False) -> th.Tensor:
        return th.tanh(self._policy(z)[0]) if deterministic else self.sample_policy(z, generator).action

    def value(self, z: th.Tensor, generator: Generators = None) -> th.Tensor:
        return self.two_q_values(z, self.act(z, generator), generator).mean(dim=0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
