"""Checks of the spaces that learned dynamics support, and spaces in JSON."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_mbrl.common.actions import check_bounds
from sb3_mbrl.common.config import Kind, check_config

_BOX: dict[str, Kind] = {
    "low": [str],
    "high": [str],
    "shape": [int],
    "dtype": {np.dtype(code).name for code in np.typecodes["AllInteger"] + np.typecodes["Float"]},
}


_DISCRETE: dict[str, Kind] = {
    "n": int,
    "start": int,
    "dtype": {np.dtype(code).name for code in np.typecodes["AllInteger"]},
}

_ADVICE = {
    spaces.Dict: "Flatten it with gymnasium.wrappers.FlattenObservation, or train TDMPC2('MultiInputPolicy', env).",
    spaces.Discrete: "Learned dynamics need a continuous observation; DynaQ takes Discrete ones, with Discrete actions.",
    spaces.MultiDiscrete: "Learned dynamics need a continuous observation.",
    spaces.MultiBinary: "Learned dynamics need a continuous observation.",
}


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param observation_space: observation space of the environment
    :param action_space: action space of the environment
    :raises ValueError: observations are not a flat Box of floats, or actions are neither a Box with finite bounds nor Discrete
    """
    _check_observation_space(observation_space)
    if isinstance(action_space, spaces.Discrete):
        return
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"Learned dynamics support Discrete or Box actions, got {action_space}.")
    check_bounds(action_space)


def _check_observation_space(observation_space: spaces.Space) -> None:
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"Learned dynamics support flat Box observations, got {observation_space}. "
            + _ADVICE.get(type(observation_space), "Wrap the environment so that it returns a flat Box.")
        )
    if len(observation_space.shape) != 1 or not np.issubdtype(observation_space.dtype, np.floating):  # type: ignore[arg-type]
        raise ValueError(
            "Learned dynamics support flat Box observations of floats, got shape "
            f"{observation_space.shape} of {observation_space.dtype} (images are not supported). "
            "Wrap the environment with gymnasium.wrappers.FlattenObservation or with your own feature extractor, or train "
            "TDMPC2('CnnPolicy', env) on images."
        )


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """
    :param space: a Box or Discrete
    :return: its description in JSON types
    """
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start), "dtype": str(np.dtype(space.dtype))}
    assert isinstance(space, spaces.Box)
    # As strings, because JSON cannot hold infinity as a number
    return {
        "low": [str(bound) for bound in space.low.flatten()],
        "high": [str(bound) for bound in space.high.flatten()],
        "shape": list(space.shape),
        "dtype": str(space.dtype),
    }


def space_from_json(data: Any, source: str) -> spaces.Space:
    """
    :param data: what :func:`space_to_json` returned
    :param source: the file that it comes from, for the message
    :return: the space
    :raises ValueError: it does not describe a space
    """
    discrete = isinstance(data, dict) and "n" in data
    check_config(data, _DISCRETE if discrete else _BOX, source, "a space")
    dtype = np.dtype(data["dtype"]).type
    try:
        if discrete:
            newer_gymnasium = {} if dtype is np.int64 else {"dtype": dtype}
            return spaces.Discrete(data["n"], start=data["start"], **newer_gymnasium)
        if min(data["shape"], default=1) < 1:
            raise ValueError("it has a dimension without entries")
        with np.errstate(over="raise"):
            ends = (np.array([dtype(each) for each in data[end]], dtype) for end in ("low", "high"))
            low, high = (end.reshape(data["shape"]) for end in ends)
        return spaces.Box(low, high, dtype=dtype)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged: {str(data)[:200]} is not a space ({error}).") from error
