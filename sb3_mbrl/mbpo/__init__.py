from sb3_mbrl.mbpo.mbpo import MBPO, MBTD3, MBTQC, MBCrossQ
from sb3_mbrl.mbpo.mixin import MBPOMixin

__all__ = ["MBPO", "MBTD3", "MBTQC", "MBCrossQ", "MBPOMixin"]
