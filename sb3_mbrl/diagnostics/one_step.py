"""The error of a model one step ahead, and whether its uncertainty is calibrated."""

import math
from dataclasses import dataclass

import torch as th

from sb3_mbrl.common.model import ModelStep, SteppableModel
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.statistics import coverage, errors_in_stds, median, nan_where_still, rms, termination_scores, worst

CHUNK = 4_096
"""Rows given to the model at a time."""


@dataclass(frozen=True)
class OneStepError:
    """
    How well a model predicts the next step. ``D = O + 1`` outputs: the observation's dimensions, then the reward; all
    statistics are (D,), NaN for an output that is constant in the data.

    :param rmse: root mean squared error of the expectation, in raw units
    :param relative: ``rmse`` divided by that of predicting no change (for the reward: its mean); 1 is as good as no model
    :param r2: explained share of the variance of the change (for the reward: of the reward); 0 is as good as no model
    :param coverage_50: share of true values within the central 50 % interval of the prediction, whose standard deviation
        is sqrt(aleatoric^2 + epistemic^2). Below 0.5 the model is over-confident
    :param coverage_90: the same share for the central 90 % interval
    :param mean_squared_z: mean of (error / predicted standard deviation)^2; 1 is calibrated, more is over-confident. This and
        both coverages are NaN for a model that returns no uncertainty, and for the reward of a known ``reward_fn``
    :param termination_precision: share of the predicted terminations that happened; NaN when none was predicted
    :param termination_recall: share of the terminations that were predicted; NaN when none happened
    :param predicted: predicted change of the observation, and reward, (N, D)
    :param actual: real change of the observation, and reward, (N, D)
    :param std: predicted standard deviation, (N, D)
    """

    rmse: th.Tensor
    relative: th.Tensor
    r2: th.Tensor
    coverage_50: th.Tensor
    coverage_90: th.Tensor
    mean_squared_z: th.Tensor
    termination_precision: float
    termination_recall: float
    predicted: th.Tensor
    actual: th.Tensor
    std: th.Tensor

    def summary(self) -> dict[str, float]:
        """The numbers to watch: medians over outputs (an output that hardly changes would dominate a mean), and the worst."""
        return {
            "one_step_error": median(self.relative),
            "one_step_error_worst": worst(self.relative),
            "one_step_error_reward": self.relative[-1].item(),
            "one_step_r2": median(self.r2),
            "coverage_50": median(self.coverage_50),
            "coverage_90": median(self.coverage_90),
            "mean_squared_z": median(self.mean_squared_z),
            "termination_precision": self.termination_precision,
            "termination_recall": self.termination_recall,
        }


@th.no_grad()
def one_step_error(dynamics: SteppableModel, transitions: Transitions) -> OneStepError:
    """
    :param dynamics: the model; its expectation is checked, so nothing is drawn at random
    :param transitions: N real transitions, preferably ones that the model was not fitted to
    :return: errors per output and calibration. A prediction that is not finite counts as infinitely wrong
    :raises ValueError: there are no transitions
    """
    if len(transitions) == 0:
        raise ValueError("There are no transitions to check the model on.")
    predicted, std, terminated = _predict(dynamics, transitions)
    change = transitions.next_observations.double() - transitions.observations.double()
    actual = th.cat([change, transitions.rewards.double().unsqueeze(1)], dim=1)
    error = (predicted - actual).nan_to_num(nan=math.inf)

    baseline = actual.clone()
    baseline[:, -1] -= actual[:, -1].mean()
    # A change that is no larger than a rounding error of the observation itself does not count
    size = th.cat([transitions.observations.abs().mean(dim=0), transitions.rewards.abs().mean(dim=0, keepdim=True)]).double()
    rmse = rms(error)
    z = errors_in_stds(error, std)
    known = ~std.isnan().any(dim=0)
    scores = termination_scores(terminated, transitions.terminated)
    return OneStepError(
        rmse=rmse.cpu(),
        relative=(rmse / nan_where_still(rms(baseline), size)).cpu(),
        r2=(1 - (rmse / nan_where_still(actual.std(dim=0, correction=0), size)) ** 2).cpu(),
        coverage_50=coverage(z, 0.5).where(known, math.nan).cpu(),
        coverage_90=coverage(z, 0.9).where(known, math.nan).cpu(),
        mean_squared_z=(z**2).mean(dim=0).where(known, math.nan).cpu(),
        termination_precision=scores["precision"],
        termination_recall=scores["recall"],
        predicted=predicted.cpu(),
        actual=actual.cpu(),
        std=std.cpu(),
    )


def _predict(dynamics: SteppableModel, transitions: Transitions) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :return: expected change and reward, their standard deviations, (N, D) float64 each, and predicted terminations, (N,)
    """
    outputs, stds, terminated = [], [], []
    for start in range(0, len(transitions), CHUNK):
        rows = transitions[slice(start, start + CHUNK)]
        step = dynamics.step(rows.observations, rows.actions, members="expectation", uncertainty=True)
        change = step.next_obs.double() - rows.observations.double()
        outputs.append(th.cat([change, step.reward.double().unsqueeze(1)], dim=1))
        stds.append(_total_std(step))
        terminated.append(step.terminated)
    std = th.cat(stds)
    if getattr(dynamics, "reward_fn", None) is not None:
        std[:, -1] = math.nan  # the model returns the reward of reward_fn, but the uncertainty of the networks' own reward
    return th.cat(outputs), std, th.cat(terminated)


def _total_std(step: ModelStep) -> th.Tensor:
    values = th.cat([step.next_obs, step.reward.unsqueeze(1)], dim=1).double()
    if step.epistemic_std is None or step.aleatoric_std is None:
        return th.full_like(values, math.nan)
    # Even a model without uncertainty can only be exact to the precision of float32
    rounding = th.finfo(th.float32).eps * values.abs()
    return th.maximum(th.hypot(step.epistemic_std.double(), step.aleatoric_std.double()), rounding)
