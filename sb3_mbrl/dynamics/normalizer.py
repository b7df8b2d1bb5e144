"""Z-scoring of the inputs and outputs of a model."""

import torch as th
from torch import nn


class Normalizer(nn.Module):
    """
    Z-scores its input with the mean and standard deviation of the data that it was last fitted to.
    A dimension that was constant in this data has a standard deviation of 0: ``forward`` only centres it, and ``inverse``
    returns the constant, whatever a network predicts.
    The statistics are buffers, so they are part of the state dict of the model that owns them.

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
        :param z_score: False: only constant dimensions are handled; the others are left unchanged
        """
        # In float64, because a float32 sum over a million rows loses the digits that a small standard deviation needs
        inputs = inputs.double()
        mean = inputs.mean(dim=0)
        std = inputs.std(dim=0, correction=0)
        # The rounding errors of a constant must not be scaled up to a variance of 1
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
