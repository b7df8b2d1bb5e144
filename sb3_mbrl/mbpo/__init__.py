from sb3_mbrl.mbpo.mbpo import MBPO

__all__ = ["MBPO"]
