"""Arguments of TD-MPC and TD-MPC2: what is accepted, and defaults that depend on others."""

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, TypeVar

from gymnasium import spaces

from sb3_mbrl.common.actions import check_bounds
from sb3_mbrl.tdmpc.told import ToldSizes
from sb3_mbrl.tdmpc.world_model import Sizes

SizesT = TypeVar("SizesT", Sizes, ToldSizes)
T = TypeVar("T")

OF_THE_BUFFER = {
    "horizon": "horizon",
    "priority_exponent": "TDMPC(priority_exponent=...)",
    "importance_exponent": "TDMPC(importance_exponent=...)",
    **dict.fromkeys(["buffer_size", "device"], "the argument of this name"),
    **dict.fromkeys(["observation_space", "action_space", "n_envs"], "env"),
    "optimize_memory_usage": "the algorithm to False: True would lose the last observation of each episode",
}
"""Derived arguments of the replay buffer, mapped to the argument of the algorithm that they derive from."""

OF_THE_POLICY = {
    **dict.fromkeys(["observation_space", "action_space"], "env"),
    **dict.fromkeys(["model_class", "model_kwargs", "net_arch", "n_critics"], "model_size"),
    **dict.fromkeys(["planner", "planner_kwargs", "n_proposals", "seed", "encoder_lr_scale"], "the argument of this name"),
    **{"lr_schedule": "learning_rate", "discount": "gamma", "prior_eps": "optimizer_kwargs"},
}
"""Derived arguments of the policy, mapped to the argument of the algorithm that they derive from."""


def check_keywords(name: str, given: Mapping[str, Any], function: Callable | None, elsewhere: Mapping[str, str]) -> None:
    """
    :param name: name of an argument that holds keyword arguments
    :param given: value of the argument
    :param function: function that gets the keyword arguments; None: its signature is not known
    :param elsewhere: derived arguments, mapped to the argument that they derive from
    :raises ValueError: a keyword argument is not accepted
    """
    for key in given:
        if key in elsewhere:
            raise ValueError(f"{name} does not accept {key!r}, which is set by {elsewhere[key]}.")
    if function is None:
        return
    parameters = inspect.signature(function).parameters
    accepted = [key for key in parameters if key not in elsewhere]
    refused = [key for key in given if key not in accepted]
    if refused and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(f"{name} does not accept {refused}; it accepts {accepted}.")


def choose_sizes(given: Any, named: Mapping[Any, SizesT], kind: type[SizesT]) -> SizesT:
    """
    :param given: the name of sizes, or all numbers as a mapping
    :param named: sizes by name
    :param kind: a named tuple of integers
    :return: the sizes
    :raises ValueError: ``given`` is neither
    """
    if isinstance(given, Mapping):
        names = kind._fields
        if set(given) != set(names) or not all(isinstance(each, Integral) and int(each) > 0 for each in given.values()):
            raise ValueError(
                f"model_size as a mapping must have the keys {list(names)}, each an integer of at least 1; got {dict(given)}."
            )
        return kind(**given)
    if not isinstance(given, (str, Integral)) or isinstance(given, bool) or given not in list(named):
        raise ValueError(
            f"model_size must be one of {list(named)}, or a mapping with the keys {list(kind._fields)}; got {given!r}."
        )
    return named[given]


def by_size(model_size: Any, small: T, other: T) -> T:
    """
    :param model_size: argument of the algorithm
    :param small: default of another argument for the small model
    :param other: the default for all other sizes
    :return: the default
    """
    return small if isinstance(model_size, str) and model_size == "small" else other


def check_actions(space: spaces.Space) -> None:
    """
    :param space: the action space
    :raises ValueError: it is not a Box with finite bounds, each lower bound below the upper one
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"TD-MPC supports Box actions, got {space}. PETS, Dyna and DynaQ support Discrete ones.")
    check_bounds(space)


def check_observations(space: spaces.Space) -> None:
    """
    :param space: the observation space
    :raises ValueError: SB3's replay buffers do not support such observations
    """
    for each in space.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(each, spaces.MultiDiscrete) and each.nvec.ndim > 1:
            raise ValueError(
                f"MultiDiscrete observations must have one dimension, got shape {each.shape}. Flatten them: "
                "gymnasium.wrappers.TransformObservation(env, numpy.ravel, gymnasium.spaces.MultiDiscrete(nvec.ravel()))."
            )


def discount_for(episode_length: int) -> float:
    """
    :param episode_length: steps until an episode is truncated
    :return: TD-MPC2's discount, which grows with the length of the episodes: (T/5 - 1) / (T/5), in [0.95, 0.995]
    """
    fraction = episode_length / 5
    return min(max((fraction - 1) / fraction, 0.95), 0.995)
