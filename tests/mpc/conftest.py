"""The small world and the small PETS of tests/slider.py."""

from tests.slider import make_pets, slider_ids, trained

__all__ = ["make_pets", "slider_ids", "trained"]
