"""The model-based half of Stable-Baselines3."""

from importlib.resources import files

from sb3_mbrl.mbpo import MBPO

__version__ = files(__name__).joinpath("version.txt").read_text().strip()

__all__ = ["MBPO", "__version__"]
