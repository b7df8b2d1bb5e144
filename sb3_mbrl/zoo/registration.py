"""Registers our algorithms with RL Zoo, which has no plugins, but looks algorithms up in dictionaries."""

from sb3_mbrl.zoo.algorithms import ALGORITHMS
from sb3_mbrl.zoo.samplers import CONVERTERS, SAMPLERS


def register() -> None:
    """
    Add our algorithms and their search spaces to those of RL Zoo, for this process::

        import sb3_mbrl.zoo

        sb3_mbrl.zoo.register()

    :raises ImportError: RL Zoo is not installed
    """
    try:
        import rl_zoo3
        import rl_zoo3.hyperparams_opt as search
    except ModuleNotFoundError as error:
        raise ImportError(f"RL Zoo needs the extra `zoo` of sb3-mbrl: pip install 'sb3-mbrl[zoo]' ({error}).") from error

    rl_zoo3.ALGOS.update(ALGORITHMS)
    search.HYPERPARAMS_SAMPLER.update(SAMPLERS)
    search.HYPERPARAMS_CONVERTER.update(CONVERTERS)
