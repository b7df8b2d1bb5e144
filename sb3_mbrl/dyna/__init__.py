from sb3_mbrl.dyna.dyna import Dyna
from sb3_mbrl.dyna.dyna_q import DynaQ

__all__ = ["Dyna", "DynaQ"]
