"""Compares a user's reward and termination functions with the real transitions of a fit."""

import math
from typing import Any, NamedTuple

import torch as th

from sb3_mbrl.common.types import TerminationFn
from sb3_mbrl.tasks.termination_rules import NeverTerminates, TerminationRule

TOLERANCE = 0.1
"""Rewards agree if their root mean square difference is at most this share of the standard deviation of the real rewards,
which leaves room for noise and for neglected control costs."""

ROUNDING = 1e-3
"""The difference may be larger by this share of the mean absolute value of the real rewards, which may all be equal."""

MOVE_TOGETHER = 0.95
"""Two rewards with at least this correlation are taken to be the same reward, perhaps on another scale."""

REMEDY = "Pass termination_fn='learned', or your own function f(obs, action, next_obs) -> (B,) bool"


class RewardAgreement(NamedTuple):
    """
    How a reward function compares with the real rewards.

    :param mse: mean squared difference
    :param agrees: whether the difference is small
    :param wrong_scale: whether both are the same up to a factor below 0.5 or above 2, which is probably a mistake
    :param text: the comparison as a message to the user
    """

    mse: float
    agrees: bool
    wrong_scale: bool
    text: str


def reward_agreement(given: th.Tensor, actual: th.Tensor) -> RewardAgreement:
    """
    :param given: rewards according to the user's function, (N,)
    :param actual: rewards of the environment, (N,)
    :return: how well they agree
    :raises ValueError: the user's function returned NaN or infinity
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
        + ("" if wrong_scale else " Unless a different reward is intended, check its units and signs.")
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
    """The given rewards divided by the real ones; None if no single factor explains the difference."""
    if max(_spread(given), _spread(actual)) == 0 and float(given.mean()) * float(actual.mean()) > 0:
        return float(given.mean()) / float(actual.mean())
    return _spread(given) / _spread(actual) if _correlation(given, actual) >= MOVE_TOGETHER else None


def termination_disagreement(function: TerminationFn, predicted: th.Tensor, actual: th.Tensor) -> str | None:
    """
    :param function: the termination function
    :param predicted: terminations according to the function, (N,) bool
    :param actual: real terminations, (N,) bool
    :return: the difference as a message to the user; None if it is so small that rounding errors explain it
    :raises ValueError: the function predicts none of the real terminations, or it is the rule of a known task, which disagrees
        with the transitions
    """
    n_terminated, n_wrong = int(actual.sum()), int((predicted != actual).sum())
    if isinstance(function, NeverTerminates) and n_terminated > 0:
        raise ValueError(
            f"{n_terminated} of {len(actual)} transitions terminated, but termination_fn says that the task never terminates. "
            f"If this is one of Gymnasium's own tasks, a wrapper ends its episodes. {REMEDY}."
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
            f"{n_terminated} of {len(actual)} transitions terminated, but termination_fn predicts none of them: imagined "
            f"episodes would continue where the real ones ended. {REMEDY}."
        )
    return None if agrees else _disagreement_message(predicted, actual)


def _disagreement_message(predicted: th.Tensor, actual: th.Tensor) -> str:
    n_wrong, n_false, n_missed = (int(rows.sum()) for rows in (predicted != actual, predicted & ~actual, actual & ~predicted))
    return (
        f"termination_fn disagrees with {n_wrong} of {len(actual)} real transitions: {n_false} of its {int(predicted.sum())} "
        f"terminations did not happen, and it misses {n_missed} of {int(actual.sum())} real ones (time limits do not count). "
        f"It decides where imagined episodes end. Check its units, and that it tests next_obs. {REMEDY}."
    )


class Once:
    """Remembers which messages about which function were shown, so that each is shown once."""

    def __init__(self) -> None:
        self._shown: list[tuple[Any, str]] = []

    def __call__(self, function: Any, topic: str) -> bool:
        """
        :param function: the function
        :param topic: the topic of the message
        :return: whether it has not been shown for this function before
        """
        is_new = not any(function is each and topic == shown for each, shown in self._shown)
        if is_new:
            self._shown.append((function, topic))
        return is_new
