"""Whether the functions that a user gave agree with real data, with which they are compared at each fit."""

import math
from typing import NamedTuple

import torch as th

TOLERANCE = 0.1
"""Rewards agree if they differ by less than this share of the standard deviation of the real ones. That leaves room for noise,
and for costs of control that were neglected."""

ROUNDING = 1e-3
"""In addition, rewards may differ by this share of the mean size of the real ones, which may all be equal."""

MOVE_TOGETHER = 0.95
"""Rewards with at least this correlation are meant to be the same: those of another task would differ in more than their
scale."""


class RewardAgreement(NamedTuple):
    """
    How a reward function compares with the real rewards.

    :param mse: mean squared difference
    :param agrees: whether the difference is small
    :param wrong_scale: whether both are the same up to a factor that is too far from 1 to be meant: below 0.5 or above 2
    :param text: a sentence about the difference
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
        + ("" if wrong_scale else " Unless another reward is intended, check its units and signs.")
    )
    return RewardAgreement(mse, agrees, wrong_scale, text)


def _spread(rewards: th.Tensor) -> float:
    return float(rewards.std(correction=0))


def _correlation(given: th.Tensor, actual: th.Tensor) -> float:
    """The correlation coefficient; NaN if one of the two never varies."""
    if min(_spread(given), _spread(actual)) == 0:
        return math.nan
    return float(th.corrcoef(th.stack([given, actual]))[0, 1])


def _common_factor(given: th.Tensor, actual: th.Tensor) -> float | None:
    """The factor between the given and the real rewards; None if they differ in more than a factor."""
    if max(_spread(given), _spread(actual)) == 0 and float(given.mean()) * float(actual.mean()) > 0:
        return float(given.mean()) / float(actual.mean())
    return _spread(given) / _spread(actual) if _correlation(given, actual) >= MOVE_TOGETHER else None


def n_contradicted(predicted: th.Tensor, actual: th.Tensor) -> int:
    """
    :param predicted: terminations by a function, (N,) bool
    :param actual: what happened, (N,) bool
    :return: number of transitions about which the function is wrong; 0 if so few that rounding errors explain them
    """
    n_wrong = int((predicted != actual).sum())
    # A state within a rounding error of the limit may fall on either side in float32
    return n_wrong if n_wrong > 1 + len(actual) // 1000 else 0


def check_known_termination(predicted: th.Tensor, actual: th.Tensor) -> None:
    """
    :param predicted: terminations by the rule of a known task, (N,) bool
    :param actual: what happened, (N,) bool
    :raises ValueError: the data contradict the rule
    """
    n_wrong = n_contradicted(predicted, actual)
    if n_wrong > 0:
        raise ValueError(
            f"The termination rule of the known task disagrees with {n_wrong} of {len(actual)} real transitions: a wrapper "
            "probably changes observations or terminations. Pass termination_fn='learned' or a function of your own."
        )


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
        f"that it ends went on, and it misses {n_missed} of the {int(actual.sum())} that ended (not counting time limits). It "
        "decides where imagined episodes end. Check its units, and that it looks at next_obs, or pass "
        "termination_fn='learned'."
    )
