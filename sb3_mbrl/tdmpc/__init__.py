"""TD-MPC and TD-MPC2: planning in a latent model, with a value where plans end."""

from sb3_mbrl.tdmpc.tdmpc import TDMPC
from sb3_mbrl.tdmpc.tdmpc2 import TDMPC2

__all__ = ["TDMPC", "TDMPC2"]
