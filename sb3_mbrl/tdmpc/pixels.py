"""The features extractor of TD-MPC and TD-MPC2 for images."""

import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class RandomShift(nn.Module):
    """
    In training mode, shifts each image by up to ``pad`` pixels and repeats its edge (DrQ-v2,
    https://arxiv.org/abs/2107.09645).

    :param pad: largest shift, in pixels (TD-MPC: 4; TD-MPC2: 3)
    """

    def __init__(self, pad: int = 3):
        super().__init__()
        self.pad = pad

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: (B, C, H, W)
        :return: shifted images of the same shape
        """
        if not self.training or self.pad == 0:
            return images
        batch, _, height, width = images.shape
        padded = F.pad(images, 4 * (self.pad,), mode="replicate")
        shift = th.randint(0, 2 * self.pad + 1, (2, batch, 1), device=images.device)
        rows = shift[0] + th.arange(height, device=images.device)
        columns = shift[1] + th.arange(width, device=images.device)
        image = th.arange(batch, device=images.device)[:, None, None]
        # With indices on both sides of a slice, PyTorch puts the indexed dimensions first: (B, H, W, C)
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class PixelExtractor(BaseFeaturesExtractor):
    """
    The convolutions of TD-MPC2 (four layers of 32 channels) on randomly shifted images.

    :param observation_space: images, (C, H, W), at least 39 pixels wide and high
    :param n_channels: channels of each layer
    :param pad: largest shift of the images, in pixels
    :param normalized_image: whether images are already in [0, 1], channels first (with ``normalize_images=False``, as for
        SB3's ``NatureCNN``)
    :raises ValueError: the observations are not images, or the images are too small
    """

    def __init__(self, observation_space: spaces.Space, n_channels: int = 32, pad: int = 3, normalized_image: bool = False):
        shape = observation_space.shape or ()
        is_image = is_image_space(observation_space, check_channels=False, normalized_image=normalized_image)
        if not is_image or min(shape[1:]) < MIN_PIXELS:
            raise ValueError(
                f"CnnPolicy takes images of at least {MIN_PIXELS} x {MIN_PIXELS} pixels, uint8 in [0, 255]; got "
                f"{observation_space}. Where they are in [0, 1] already, pass policy_kwargs={{'normalize_images': False, "
                "'features_extractor_kwargs': {'normalized_image': True}}. MlpPolicy takes flat observations."
            )
        super().__init__(observation_space, features_dim=1)
        shapes = [(shape[0], 7, 2), (n_channels, 5, 2), (n_channels, 3, 2), (n_channels, 3, 1)]
        convolutions = [nn.Conv2d(n_in, n_channels, kernel, stride) for n_in, kernel, stride in shapes]
        layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
        self.shift = RandomShift(pad)
        self.network = nn.Sequential(*layers[:-1], nn.Flatten())
        with th.no_grad():
            self._features_dim = self.network(th.zeros(1, *shape)).shape[1]

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: in [0, 1], (B, C, H, W)
        :return: (B, features_dim)
        """
        return self.network(self.shift(images) - 0.5)  # type: ignore[no-any-return]


MIN_PIXELS = 39
"""Smallest width and height of an image: with fewer pixels the last convolution has no output."""
