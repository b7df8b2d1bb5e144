"""The small world and the small PETS of tests/slider.py, and a policy that plans in its model."""

import pytest

from sb3_mbrl import MPCPolicy
from tests.mpc.cheap import PLANNER
from tests.slider import make_pets, slider_ids, trained

__all__ = ["make_pets", "model", "policy", "slider_ids", "trained"]


@pytest.fixture(scope="session")
def model(trained):
    """A fitted ensemble."""
    return trained.dynamics


@pytest.fixture
def policy(model):
    """A cheap policy that plans in it."""
    return MPCPolicy(model, **PLANNER)
