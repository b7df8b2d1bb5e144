"""Do the reward and the termination that a model was given agree with real transitions? Each fit compares them."""

import math
from typing import Any, NamedTuple

import torch as th

from sb3_mbrl.common.types import TerminationFn
from sb3_mbrl.tasks.termination_rules import NeverTerminates, TerminationRule

TOLERANCE = 0.1
"""Rewards agree if they differ by less than this share of the standard deviation of the real ones, which leaves room for noise
and for neglected control costs."""

ROUNDING = 1e-3
"""Rewards may also differ by this share of the mean size of the real ones, whose standard deviation may be zero."""

MOVE_TOGETHER = 0.95
"""With at least this correlation, two rewards are taken for the same one, perhaps in another scale."""

REMEDY = "Pass termination_fn='learned', or a function f(obs, action, next_obs) -> (B,) bool of your own"


class RewardAgreement(NamedTuple):
    """
    How a reward function compares with the real rewards.

    :param mse: mean squared difference
    :param agrees: whether the difference is small
    :param wrong_scale: whether both are the same up to a factor that is probably a mistake: below 0.5 or above 2
    :param text: the difference in words
    """

    mse: float
    agrees: bool
    wrong_scale: bool
    text: str


def reward_agreement(given: th.Tensor, actual: th.Tensor) -> RewardAgreement:
    """
    :param given: rewards by the user's function, (N,)
    :param actual: rewards of the environment, (N,)
    :return: how far they agree
    :raises ValueError: the function is not finite everywhere
    """
    if not given.isfinite().all():
        rows = (~given.isfinite()).nonzero()
        raise ValueError(
            f"reward_fn returns NaN or infinity for {len(rows)} of {len(given)} real transitions (first: row "
            f"{int(rows[0])}). Restrict its input to where it is defined, for instance with clamp."
        )
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


def termination_disagreement(function: TerminationFn, predicted: th.Tensor, actual: th.Tensor) -> str | None:
    """
    :param function: the termination function
    :param predicted: its terminations, (N,) bool
    :param actual: what happened, (N,) bool
    :return: the difference in words; None if it is so small that rounding errors explain it
    :raises ValueError: the function predicts none of the terminations, or is the rule of a known task and does not hold here
    """
    n_terminated, n_wrong = int(actual.sum()), int((predicted != actual).sum())
    if isinstance(function, NeverTerminates) and n_terminated > 0:
        raise ValueError(
            f"{n_terminated} of {len(actual)} transitions terminated, but termination_fn says that the task never terminates. "
            f"If this is a task of Gymnasium's own, a wrapper ends its episodes. {REMEDY}."
        )
    # In float32, a state within a rounding error of the limit may fall on either side
    agrees = n_wrong <= 1 + len(actual) // 1000
    if isinstance(function, TerminationRule) and not agrees:
        raise ValueError(
            f"The termination rule of the known task disagrees with {n_wrong} of {len(actual)} real transitions: a wrapper "
            f"probably changes observations or ends episodes. {REMEDY}."
        )
    if n_terminated >= 10 and not (predicted & actual).any():
        raise ValueError(
            f"{n_terminated} of {len(actual)} transitions terminated, but termination_fn predicts not one of them: imagined "
            f"episodes would go on where the real ones ended. {REMEDY}."
        )
    return None if agrees else _in_words(predicted, actual)


def _in_words(predicted: th.Tensor, actual: th.Tensor) -> str:
    n_wrong, n_false, n_missed = (int(rows.sum()) for rows in (predicted != actual, predicted & ~actual, actual & ~predicted))
    return (
        f"termination_fn disagrees with {n_wrong} of {len(actual)} real transitions: {n_false} of the {int(predicted.sum())} "
        f"that it ends went on, and it misses {n_missed} of the {int(actual.sum())} that ended (not counting time limits). It "
        f"decides where imagined episodes end. Check its units, and that it looks at next_obs. {REMEDY}."
    )


class Once:
    """Remembers what a user was told about which function, so that each thing is said once for each function."""

    def __init__(self) -> None:
        self._said: list[tuple[Any, str]] = []

    def __call__(self, function: Any, topic: str) -> bool:
        """
        :param function: the function
        :param topic: what the user is about to be told about it
        :return: whether this is the first time
        """
        is_new = not any(function is each and topic == said for each, said in self._said)
        if is_new:
            self._said.append((function, topic))
        return is_new
