"""PETS: https://arxiv.org/abs/1805.12114."""

from sb3_mbrl.pets.pets import PETS

__all__ = ["PETS"]
