"""Statistics of errors and predictions."""

import math

import torch as th

from sb3_mbrl.common.types import Transitions


def errors_in_stds(error: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    :param error: errors of the predictions, (N, D)
    :param std: predicted standard deviations, (N, D); 0 for a model without uncertainty
    :return: absolute errors in standard deviations, (N, D); 0 where there is no error, even for a standard deviation of 0
    """
    return th.where(error == 0, 0.0, error.abs() / std)


def coverage(z: th.Tensor, level: float) -> th.Tensor:
    """
    :param z: absolute errors in predicted standard deviations, (N, D)
    :param level: probability of the central interval of a normal distribution
    :return: share of rows within the interval, (D,)
    """
    return (z <= half_width(level)).double().mean(dim=0)


def half_width(level: float | th.Tensor) -> th.Tensor:
    """Half the width of the central interval of a standard normal distribution."""
    return th.special.ndtri((1 + th.as_tensor(level, dtype=th.float64)) / 2)


def over_outputs(errors: th.Tensor) -> th.Tensor:
    """
    :param errors: (..., D)
    :return: root mean square over the outputs that are not NaN, (...)
    """
    return errors.square().nanmean(dim=-1).sqrt()


def standard_deviations(transitions: Transitions) -> th.Tensor:
    """
    :param transitions: N real transitions
    :return: standard deviations of next observations and reward, (D,) float64; NaN where they are constant
    """
    outputs = th.cat([transitions.next_observations, transitions.rewards.unsqueeze(1)], dim=1).double()
    return nan_where_still(outputs.std(dim=0, correction=0), outputs.abs().mean(dim=0))


def kolmogorov_smirnov(first: th.Tensor, second: th.Tensor) -> th.Tensor:
    """
    :param first: a sample of each of D variables, (N, D)
    :param second: another sample of the same variables, (M, D)
    :return: largest distance of the two empirical cumulative distributions of each variable, (D,) float64
    """
    samples = [sample.double().T.contiguous().sort(dim=1).values for sample in (first, second)]
    values = th.cat(samples, dim=1)  # both distributions are step functions, so they differ most at one of the values
    below = [th.searchsorted(sample, values, right=True) / sample.shape[1] for sample in samples]
    return (below[0] - below[1]).abs().amax(dim=1).double()


def rms(values: th.Tensor) -> th.Tensor:
    """Root mean square over the first dimension."""
    return values.square().mean(dim=0).sqrt()


def nan_where_still(spread: th.Tensor, size: th.Tensor) -> th.Tensor:
    """
    :param spread: spread of some values, (D,)
    :param size: their mean magnitude, (D,)
    :return: ``spread``; NaN where it is no larger than a rounding error of the values, so that it cannot serve as a unit
    """
    return spread.where(spread > 1e-6 * size.clamp_min(1e-6), math.nan)


def median(values: th.Tensor) -> float:
    return values.nanmedian().item()


def worst(values: th.Tensor) -> float:
    return values.nan_to_num(nan=-math.inf).max().item() if not values.isnan().all() else math.nan


def termination_scores(predicted: th.Tensor, actual: th.Tensor) -> dict[str, float]:
    """
    :param predicted: predicted terminations, (N,) bool
    :param actual: true terminations, (N,) bool
    :return: ``precision``, the share of the predicted terminations that happened (NaN if none was predicted), and ``recall``,
        the share of the true terminations that were predicted (NaN if none happened)
    """
    hits = int((predicted & actual).sum())
    n_predicted, n_actual = int(predicted.sum()), int(actual.sum())
    return {
        "precision": hits / n_predicted if n_predicted else math.nan,
        "recall": hits / n_actual if n_actual else math.nan,
    }
