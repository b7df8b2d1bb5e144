"""Z-scoring of the inputs and outputs of a model."""

import torch as th
from torch import nn


class Normalizer(nn.Module):
    """
    Z-scores its input with the mean and standard deviation of the data it was last fitted on.
    A dimension that was constant there has a standard deviation of 0: as an input it is only centred; as an output it is that
    constant, whatever a network predicts.
    The statistics are buffers, so they travel with the state dict of the model that owns them.

    :param dim: number of input dimensions
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def fit(self, inputs: th.Tensor, z_score: bool = True) -> None:
        """
        :param inputs: the training rows only (statistics of held-out rows would leak), (N, dim)
        :param z_score: if False, only constant dimensions are treated; the others are left as they are
        """
        # Accumulated in float64: a float32 sum over a million rows loses the digits that a small std is made of
        inputs = inputs.double()
        mean = inputs.mean(dim=0)
        std = inputs.std(dim=0, correction=0)
        # Rounding errors of a constant must not be scaled up to a variance of 1
        moved = std > 1e-6 * mean.abs().clamp_min(1e-6)
        if not z_score:
            mean, std = mean.masked_fill(moved, 0.0), th.ones_like(std)
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(~moved, 0.0))

    @property
    def divisor(self) -> th.Tensor:
        """The standard deviation; 1 for a constant dimension, (dim,)."""
        return self.std.masked_fill(self.std == 0.0, 1.0)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: raw, (..., dim)
        :return: z-scores, (..., dim)
        """
        return (inputs - self.mean) / self.divisor

    def inverse(self, normalized: th.Tensor) -> th.Tensor:
        """
        :param normalized: z-scores, (..., dim)
        :return: in raw units; the constant for a constant dimension, (..., dim)
        """
        return normalized * self.std + self.mean
