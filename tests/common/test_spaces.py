import numpy as np
import pytest
from gymnasium import spaces

from sb3_mbrl.common.spaces import check_spaces

OBS_SPACE, ACTION_SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("obs_space", "advice"),
    [
        (spaces.Dict({"position": OBS_SPACE}), "FlattenObservation"),
        (spaces.Discrete(4), "continuous observation"),
        (spaces.MultiDiscrete([2, 3]), "continuous observation"),
        (spaces.MultiBinary(3), "continuous observation"),
        (spaces.Tuple([OBS_SPACE]), "flat Box"),
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), "images are not supported"),
        (spaces.Box(-1, 1, (2, 3)), "FlattenObservation"),
        (spaces.Box(0, 9, (3,), np.int64), "feature extractor"),
    ],
)
def test_an_observation_space_that_is_not_supported_is_refused_with_advice(obs_space, advice):
    with pytest.raises(ValueError, match=advice):
        check_spaces(obs_space, ACTION_SPACE)


@pytest.mark.parametrize(
    ("action_space", "advice"),
    [
        (spaces.MultiDiscrete([2, 3]), "Discrete or Box actions"),
        (spaces.Box(-np.inf, np.inf, (2,)), "TransformAction"),
        (spaces.Box(np.array([-1.0, -np.inf], np.float32), 1.0, (2,)), "TransformAction"),
    ],
)
def test_an_action_space_that_is_not_supported_is_refused_with_advice(action_space, advice):
    with pytest.raises(ValueError, match=advice):
        check_spaces(OBS_SPACE, action_space)
