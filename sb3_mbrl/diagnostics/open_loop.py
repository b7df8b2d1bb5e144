"""The error of a model in open loop, where it predicts from its own predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch as th

from sb3_mbrl.common.arguments import check_arguments, integer
from sb3_mbrl.common.model import SteppableModel
from sb3_mbrl.common.trajectories import concatenate
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.diagnostics.statistics import over_outputs, rms, standard_deviations


@dataclass(frozen=True)
class OpenLoopError:
    """
    How errors grow when the model predicts from its own predictions, with the actions that were really taken. ``S`` start
    states, ``H`` steps, ``D = O + 1`` outputs: the observation's dimensions, then the reward. The errors are root mean squares
    over the starts, in standard deviations of the data; NaN for an output that is constant in the data.

    :param expectation: error if every step is the average of the elites, without noise, (H, D)
    :param fan: error of the mean of the sampled futures, (H, D)
    :param spread: standard deviation of the sampled futures, (H, D); about as large as the error if the model is calibrated
    :param persistence: error of predicting no change (for the reward: its mean), (H, D)
    :param start_obs: observations where the predictions start, (S, O)
    :param actual: real next observations and rewards, in raw units, (S, H, D)
    :param predicted: next observations and rewards predicted by expectation, (S, H, D)
    :param fan_mean: mean of the sampled futures, (S, H, D)
    :param fan_std: standard deviation of the sampled futures, (S, H, D)
    """

    expectation: th.Tensor
    fan: th.Tensor
    spread: th.Tensor
    persistence: th.Tensor
    start_obs: th.Tensor
    actual: th.Tensor
    predicted: th.Tensor
    fan_mean: th.Tensor
    fan_std: th.Tensor

    @property
    def n_steps(self) -> int:
        """H, number of predicted steps."""
        return self.expectation.shape[0]

    def summary(self) -> dict[str, float]:
        """The numbers to watch: root mean squares over the outputs, at the first and the last step."""
        reward_bias = (self.fan_mean[..., -1] - self.actual[..., -1]).mean()
        return {
            "open_loop_steps": float(self.n_steps),
            "open_loop_first": over_outputs(self.expectation)[0].item(),
            "open_loop_last": over_outputs(self.expectation)[-1].item(),
            "open_loop_last_fan": over_outputs(self.fan)[-1].item(),
            "open_loop_last_spread": over_outputs(self.spread)[-1].item(),
            "open_loop_last_persistence": over_outputs(self.persistence)[-1].item(),
            # Above 0, the model predicts more reward than the environment pays
            "open_loop_reward_bias": reward_bias.item(),
        }


@th.no_grad()
def open_loop_error(
    dynamics: SteppableModel,
    trajectories: Sequence[Transitions],
    n_steps: int = 20,
    n_starts: int = 100,
    generator: th.Generator | None = None,
    n_samples: int = 20,
    scale: th.Tensor | None = None,
) -> OpenLoopError:
    """
    Predict ``n_steps`` steps from real states with the recorded actions, and compare the predictions with what happened. Only
    states followed by at least ``n_steps`` steps of their episode can be starts, so the last steps of short episodes are
    hardly tested.

    :param dynamics: the model; a termination that it predicts does not stop the prediction
    :param trajectories: unbroken pieces, from :func:`trajectories_from_buffer` or :func:`collect_trajectories`
    :param n_steps: H, number of predicted steps
    :param n_starts: number of start states, drawn without replacement; all possible ones if there are fewer
    :param generator: source of starts, members and noise; None draws from PyTorch's global stream
    :param n_samples: sampled futures per start, each with an elite drawn at each step (TS1)
    :param scale: unit of the error of each output, (D,), NaN for a constant output; None takes the standard deviations of the
        outputs in ``trajectories``
    :return: errors per step and output. A prediction that is not finite counts as infinitely wrong
    :raises ValueError: a number is below 1, or no trajectory has ``n_steps`` steps
    """
    check_arguments(locals(), dict.fromkeys(("n_steps", "n_starts", "n_samples"), integer(1)))
    rows = concatenate(trajectories)
    starts = _draw_starts([len(piece) for piece in trajectories], n_steps, n_starts, generator, rows.rewards.device)
    windows = starts.unsqueeze(1) + th.arange(n_steps, device=starts.device)
    start_obs, actions = rows.observations[starts], rows.actions[windows]
    outputs = th.cat([rows.next_observations, rows.rewards.unsqueeze(1)], dim=1).double()
    actual = outputs[windows]

    predicted = _unroll(dynamics, start_obs, actions, generator, "expectation")
    fan_mean, fan_std = _sample_futures(dynamics, start_obs, actions, generator, n_samples)
    persistence = th.cat([start_obs.double(), outputs[:, -1].mean().expand(len(starts), 1)], dim=1).unsqueeze(1)

    scale = standard_deviations(rows) if scale is None else scale

    def normalized(error: th.Tensor) -> th.Tensor:
        return (rms(error.nan_to_num(nan=math.inf)) / scale).cpu()

    return OpenLoopError(
        expectation=normalized(predicted - actual),
        fan=normalized(fan_mean - actual),
        spread=normalized(fan_std),
        persistence=normalized(persistence - actual),
        start_obs=start_obs.double().cpu(),
        actual=actual.cpu(),
        predicted=predicted.cpu(),
        fan_mean=fan_mean.cpu(),
        fan_std=fan_std.cpu(),
    )


def _draw_starts(
    lengths: Sequence[int], n_steps: int, n_starts: int, generator: th.Generator | None, device: th.device
) -> th.Tensor:
    """
    :param lengths: number of steps of each trajectory
    :return: rows of the concatenated trajectories from which ``n_steps`` steps of the same trajectory follow, (S,)
    """
    if max(lengths) < n_steps:
        raise ValueError(
            f"The longest of {len(lengths)} trajectories has {max(lengths)} steps, fewer than n_steps={n_steps}. "
            "Choose a smaller n_steps, or pass longer trajectories."
        )
    rows_left = th.cat([th.arange(length, 0, -1) for length in lengths]).to(device)
    possible = (rows_left >= n_steps).nonzero().squeeze(1)
    return possible[th.randperm(len(possible), generator=generator, device=device)[:n_starts]]


def _sample_futures(
    dynamics: SteppableModel, obs: th.Tensor, actions: th.Tensor, generator: th.Generator | None, n_samples: int
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param obs: raw start states, (S, O)
    :param actions: in [-1, 1], (S, H, A)
    :return: mean and standard deviation over the sampled futures of each start, (S, H, O + 1) each
    """
    obs, actions = (tensor.repeat_interleave(n_samples, dim=0) for tensor in (obs, actions))
    futures = _unroll(dynamics, obs, actions, generator, "random").unflatten(0, (-1, n_samples))
    return futures.mean(dim=1), futures.std(dim=1, correction=0)


def _unroll(
    dynamics: SteppableModel,
    obs: th.Tensor,
    actions: th.Tensor,
    generator: th.Generator | None,
    members: Literal["random", "expectation"],
) -> th.Tensor:
    """
    :param obs: raw start states, (B, O)
    :param actions: in [-1, 1], (B, H, A)
    :param generator: source of members and noise
    :param members: as in the model's ``step``
    :return: predicted observations and rewards, (B, H, O + 1) float64
    """
    outputs = []
    for action in actions.unbind(dim=1):
        step = dynamics.step(obs, action, generator, members=members)
        outputs.append(th.cat([step.next_obs, step.reward.unsqueeze(1)], dim=1).double())
        obs = step.next_obs
    return th.stack(outputs, dim=1)
