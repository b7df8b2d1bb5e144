"""Do the functions that a user gave agree with what the environment did? They are compared with real data at each fit."""

import math
from typing import NamedTuple

import torch as th

TOLERANCE = 0.1
"""Rewards agree if their difference is less than this share of the standard deviation of the real ones: costs of control that
were left out as negligible, noise."""

ROUNDING = 1e-3
"""The same, as a share of the mean size of the real rewards, which may all be equal."""

MOVE_TOGETHER = 0.95
"""Rewards whose correlation is at least this much are meant to be the same; of another task they would differ in more than
their scale."""


class RewardAgreement(NamedTuple):
    """
    A reward function beside the real rewards.

    :param mse: mean squared difference
    :param agrees: whether it is small
    :param wrong_scale: whether both are the same up to a factor of more than 2, which is hardly meant
    :param text: says what the difference is
    """

    mse: float
    agrees: bool
    wrong_scale: bool
    text: str


def reward_agreement(given: th.Tensor, actual: th.Tensor) -> RewardAgreement:
    """
    :param given: rewards by the user's function, finite, (N,)
    :param actual: rewards of the environment, (N,)
    :return: how far they agree
    """
    given, actual = given.double(), actual.double()
    mse = float(((given - actual) ** 2).mean())
    agrees = mse**0.5 <= TOLERANCE * _spread(actual) + ROUNDING * float(actual.abs().mean())
    correlation, factor = _correlation(given, actual), _common_factor(given, actual)
    wrong_scale = not agrees and factor is not None and not 0.5 <= factor <= 2.0
    text = (
        f"reward_fn pays {float(given.mean()):.4g} a step on average over {len(actual)} real transitions, for which the "
        f"environment paid {float(actual.mean()):.4g}"
        + ("." if math.isnan(correlation) else f" (correlation {correlation:.2f}).")
        + (f" It is {factor:.3g} times the environment's reward: check its units." if wrong_scale else "")
        + ("" if wrong_scale else " If it is not meant to be another reward, check its units and signs.")
    )
    return RewardAgreement(mse, agrees, wrong_scale, text)


def _spread(rewards: th.Tensor) -> float:
    return float(rewards.std(correction=0))


def _correlation(given: th.Tensor, actual: th.Tensor) -> float:
    """NaN where one of them never varies."""
    if min(_spread(given), _spread(actual)) == 0:
        return math.nan
    return float(th.corrcoef(th.stack([given, actual]))[0, 1])


def _common_factor(given: th.Tensor, actual: th.Tensor) -> float | None:
    """How many times the real rewards the others are; None if they differ in more than that."""
    if max(_spread(given), _spread(actual)) == 0 and float(given.mean()) * float(actual.mean()) > 0:
        return float(given.mean()) / float(actual.mean())
    return _spread(given) / _spread(actual) if _correlation(given, actual) >= MOVE_TOGETHER else None


def n_contradicted(predicted: th.Tensor, actual: th.Tensor) -> int:
    """
    :param predicted: terminations by a function, (N,) bool
    :param actual: what happened, (N,) bool
    :return: transitions about which the function is wrong; 0 if they are so few that rounding errors explain them
    """
    n_wrong = int((predicted != actual).sum())
    # A state within a rounding error of the limit may fall on either side in float32
    return n_wrong if n_wrong > 1 + len(actual) // 1000 else 0


def termination_disagreement(predicted: th.Tensor, actual: th.Tensor) -> str | None:
    """
    :param predicted: terminations by a function of the user, (N,) bool
    :param actual: what happened, (N,) bool
    :return: what the difference is; None if they agree
    """
    n_wrong = n_contradicted(predicted, actual)
    if n_wrong == 0:
        return None
    n_false, n_missed = int((predicted & ~actual).sum()), int((actual & ~predicted).sum())
    return (
        f"termination_fn disagrees with {n_wrong} of {len(actual)} real transitions: {n_false} of the {int(predicted.sum())} "
        f"that it ends went on, and {n_missed} of the {int(actual.sum())} that ended (time limits are no ends) it misses. "
        "Imagined episodes end by it. Check its units and whether it looks at next_obs, or pass termination_fn='learned'."
    )
