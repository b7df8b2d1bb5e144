"""The bounds within which predicted observations are kept."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

BOUNDS_MARGIN = 0.5
"""Predictions may leave the observed range of each observation entry by this share of the range, on either side."""


class ObservedRange(NamedTuple):
    """
    The range of the observations that the real environment returned. Where it exceeds the bounds of the observation space,
    predictions may exceed them too.

    :param low: lowest observation, (O,)
    :param high: highest observation, (O,)
    """

    low: np.ndarray
    high: np.ndarray


def prediction_bounds(
    space: spaces.Space, bounds: tuple[np.ndarray, np.ndarray] | None, device: th.device
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param space: observation space of the model, a Box
    :param bounds: lowest and highest observation, (O,) each, tightened to the space's; an :class:`ObservedRange`, which is
        given a margin; None: the space's
    :param device: device of the result
    :return: lowest and highest prediction, (O,) float32 each
    :raises ValueError: the bounds have another shape, or a lowest value is above the highest
    """
    assert isinstance(space, spaces.Box)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if isinstance(bounds, ObservedRange):
        low, high = _around_observed(low, high, bounds)
    elif bounds is not None:
        low, high = _within_given(low, high, bounds)
    return _rounded_inwards(low, high, device)


def rounding_tolerance(obs: Any) -> Any:
    """
    :param obs: observations
    :return: how far each may be out of bounds because of rounding errors of the environment
    """
    return 1e-4 * (1.0 + abs(obs))


def _around_observed(low: np.ndarray, high: np.ndarray, observed: ObservedRange) -> tuple[np.ndarray, np.ndarray]:
    """The observed range with its margin, within the space unless the environment has left it by more than rounding errors."""
    margin = BOUNDS_MARGIN * (observed.high - observed.low)
    low, high = np.maximum(low, observed.low - margin), np.minimum(high, observed.high + margin)
    low = np.where(observed.low < low - rounding_tolerance(observed.low), observed.low, low)
    high = np.where(observed.high > high + rounding_tolerance(observed.high), observed.high, high)
    return low, high


def _within_given(low: np.ndarray, high: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    given_low, given_high = (np.asarray(bound, dtype=np.float64) for bound in bounds)
    if given_low.shape != low.shape or given_high.shape != low.shape or not (given_low <= given_high).all():
        raise ValueError(
            f"observation_bounds must be two arrays of shape {low.shape}, the lowest and the highest observation; got "
            f"{bounds}."
        )
    return np.maximum(low, given_low), np.minimum(high, given_high)


def _rounded_inwards(low: np.ndarray, high: np.ndarray, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """Convert both to float32, rounding towards each other so that they do not leave the space."""
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    low32 = np.where(low32 < low, np.nextafter(low32, np.float32(np.inf)), low32)
    high32 = np.where(high32 > high, np.nextafter(high32, np.float32(-np.inf)), high32)
    return th.as_tensor(low32, device=device), th.as_tensor(high32, device=device)
