"""PETS, and the policy that plans: https://arxiv.org/abs/1805.12114."""

from sb3_mbrl.pets.pets import PETS
from sb3_mbrl.pets.policies import MPCPolicy

__all__ = ["PETS", "MPCPolicy"]
