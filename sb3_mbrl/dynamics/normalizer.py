"""Z-scoring of what goes into a model and comes out of it."""

import torch as th
from torch import nn


class Normalizer(nn.Module):
    """
    Z-scores its input with the mean and standard deviation of the data it was last fitted on.
    The statistics are buffers, so they travel with the state dict of the model that owns them.

    :param dim: number of input dimensions
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def fit(self, inputs: th.Tensor) -> None:
        """
        :param inputs: the training rows only (statistics of held-out rows would leak), (N, dim)
        """
        # Accumulated in float64: a float32 sum over a million rows loses the digits that a small std is made of
        inputs = inputs.double()
        mean = inputs.mean(dim=0)
        std = inputs.std(dim=0, correction=0)
        # A dimension that never moved must not be blown up when it moves by a rounding error
        floor = 1e-6 * mean.abs().clamp_min(1e-6)
        std = th.where(std > floor, std, th.ones_like(std))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: raw, (..., dim)
        :return: z-scores, (..., dim)
        """
        return (inputs - self.mean) / self.std

    def inverse(self, normalized: th.Tensor) -> th.Tensor:
        """
        :param normalized: z-scores, (..., dim)
        :return: in raw units, (..., dim)
        """
        return normalized * self.std + self.mean
