"""The algorithms of this package, by their names in RL Zoo."""

from typing import Any

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from sb3_mbrl.dyna import Dyna
from sb3_mbrl.mbpo import MBPO, MBTD3, MBTQC, MBCrossQ
from sb3_mbrl.pets import PETS
from sb3_mbrl.tdmpc import TDMPC, TDMPC2


class DynaPPO(Dyna):
    """
    ``Dyna(PPO, ...)`` as a class of its own, because RL Zoo chooses an algorithm by its class.

    :param policy: policy of PPO
    :param env: see :class:`~sb3_mbrl.Dyna`
    :param kwargs: Dyna's other arguments
    """

    def __init__(self, policy: str | type[BasePolicy] = "MlpPolicy", env: GymEnv | str | None = None, **kwargs: Any):
        super().__init__(PPO, policy, env, **kwargs)


class DynaDQN(Dyna):
    """
    ``Dyna(DQN, ...)`` as a class of its own, because RL Zoo chooses an algorithm by its class.

    :param policy: policy of DQN
    :param env: see :class:`~sb3_mbrl.Dyna`
    :param kwargs: Dyna's other arguments
    """

    def __init__(self, policy: str | type[BasePolicy] = "MlpPolicy", env: GymEnv | str | None = None, **kwargs: Any):
        super().__init__(DQN, policy, env, **kwargs)


ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "mbpo": MBPO,
    "mbtqc": MBTQC,
    "mbcrossq": MBCrossQ,
    "mbtd3": MBTD3,
    "pets": PETS,
    "dyna_ppo": DynaPPO,
    "dyna_dqn": DynaDQN,
    "tdmpc": TDMPC,
    "tdmpc2": TDMPC2,
}
