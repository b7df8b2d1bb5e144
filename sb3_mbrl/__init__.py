"""The model-based half of Stable-Baselines3."""

from importlib.resources import files

from sb3_mbrl.dyna import Dyna, DynaQ
from sb3_mbrl.envs import LearnedModelEnv, LearnedModelVecEnv
from sb3_mbrl.mbpo import MBPO, MBTD3, MBTQC, MBCrossQ
from sb3_mbrl.mpc import MPCPolicy
from sb3_mbrl.pets import PETS
from sb3_mbrl.tdmpc import TDMPC, TDMPC2

__version__ = files(__name__).joinpath("version.txt").read_text().strip()

__all__ = [
    "MBPO",
    "MBTD3",
    "MBTQC",
    "PETS",
    "TDMPC",
    "TDMPC2",
    "Dyna",
    "DynaQ",
    "LearnedModelEnv",
    "LearnedModelVecEnv",
    "MBCrossQ",
    "MPCPolicy",
    "__version__",
]
