"""
Three checks of a learned model: its error one step ahead, its error when it predicts from its own predictions, and
the states it imagines against the real ones. The figures are in
:mod:`sb3_mbrl.dynamics.figures`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_mbrl.common.actions import from_environment, one_hot
from sb3_mbrl.common.buffers import check_stored_actions
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.model import ModelStep, SteppableModel
from sb3_mbrl.dynamics.termination import termination_scores

CHUNK = 4_096
"""Rows given to the model at a time."""


# ---------------------------------------------------------------------------------------------------------------------
# Real trajectories
# ---------------------------------------------------------------------------------------------------------------------


def trajectories_from_buffer(
    buffer: ReplayBuffer, device: th.device | str = "cpu", n_rows: int | None = None
) -> list[Transitions]:
    """
    Unbroken pieces of trajectories: each row begins where the row before it ended. None crosses a termination, a time
    limit, the place where a full buffer overwrites itself, or a reset that left no trace in ``dones`` (``learn`` called
    a second time in the middle of an episode).

    :param buffer: SB3's replay buffer, flat Box observations, any number of environments
    :param device: where the tensors go
    :param n_rows: only the latest transitions, about this many over all environments; None: all
    :return: pieces of one transition or more, oldest first in each environment; raw observations and rewards, discrete
        actions one-hot
    :raises ValueError: the buffer does not store next observations, or has cut actions to whole numbers
    """
    if buffer.optimize_memory_usage:
        raise ValueError("optimize_memory_usage=True loses the last observation of each episode. Leave it False.")
    check_stored_actions(buffer)
    n = buffer.size()
    steps = np.arange(n)
    if buffer.full:
        steps = (steps + buffer.pos) % n  # oldest first
    if n_rows is not None:
        steps = steps[max(0, n - math.ceil(n_rows / buffer.n_envs)) :]

    pieces = []
    for env in range(buffer.n_envs):
        obs, next_obs = buffer.observations[steps, env], buffer.next_observations[steps, env]
        ended = (buffer.dones[steps, env] > 0.5) | (buffer.timeouts[steps, env] > 0.5)
        # SB3 stores the very same array twice, so that rows of one episode agree to the last bit
        ended[:-1] |= (next_obs[:-1] != obs[1:]).any(axis=1)
        terminated = buffer.dones[steps, env] * (1 - buffer.timeouts[steps, env])
        actions = buffer.actions[steps, env]  # those of a Box are stored in [-1, 1]
        if isinstance(buffer.action_space, spaces.Discrete):
            actions = one_hot(actions, buffer.action_space).numpy()
        columns = (obs, actions, next_obs, buffer.rewards[steps, env], terminated)
        pieces += _split_after(ended, columns, device)
    return pieces


def collect_trajectories(
    env: VecEnv,
    predict: Callable[..., tuple[np.ndarray, Any]],
    n_steps: int,
    deterministic: bool = False,
    device: th.device | str = "cpu",
) -> list[Transitions]:
    """
    Let a policy act in an environment, which is reset first (take another than the one in which training will go on);
    what it sees is new to the model.

    :param env: vectorised environment; the statistics of a ``VecNormalize`` are used and not updated
    :param predict: ``model.predict`` of an SB3 algorithm or policy, or a function with its arguments:
        ``predict(obs, state=..., episode_start=..., deterministic=...) -> (actions in the environment's scale, state)``
    :param n_steps: steps of each environment
    :param deterministic: given to ``predict``
    :param device: where the tensors go
    :return: one trajectory per episode, or begun episode; raw observations and rewards, actions in [-1, 1], or one-hot if
        they are discrete
    :raises ValueError: the actions are neither Discrete nor a Box with finite bounds
    """
    space = env.action_space
    if not (isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and space.is_bounded())):
        raise ValueError(
            f"Models see actions in [-1, 1] or one-hot, which needs a Box with finite bounds or Discrete; got {space}."
        )
    normalize = unwrap_vec_normalize(env)
    was_training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False
    try:
        columns, ended = _play(env, predict, n_steps, deterministic, space)
    finally:
        if normalize is not None:
            normalize.training = was_training
    pieces = []
    for i in range(env.num_envs):
        pieces += _split_after(ended[:, i], [column[:, i] for column in columns], device)
    return pieces


def _play(
    env: VecEnv, predict: Callable[..., tuple[np.ndarray, Any]], n_steps: int, deterministic: bool, space: spaces.Space
) -> tuple[list[np.ndarray], np.ndarray]:
    """
    :return: the columns of ``Transitions``, (n_steps, n_envs, ...) each, and where an episode ended, (n_steps, n_envs)
    """
    normalize = unwrap_vec_normalize(env)
    rows: list[list[np.ndarray]] = []
    dones_of_rows = []
    obs: Any = env.reset()
    state, starts = None, np.ones(env.num_envs, dtype=bool)
    raw_obs = obs if normalize is None else normalize.get_original_obs()
    for _ in range(n_steps):
        action, state = predict(obs, state=state, episode_start=starts, deterministic=deterministic)
        obs, reward, dones, infos = env.step(action)
        raw_reward = reward if normalize is None else normalize.get_original_reward()
        new_raw_obs = obs if normalize is None else normalize.get_original_obs()
        next_obs = np.array(new_raw_obs)
        for i in np.flatnonzero(dones):
            # The VecEnv has been reset already: its observation belongs to the next episode
            last = infos[i]["terminal_observation"]
            next_obs[i] = last if normalize is None else normalize.unnormalize_obs(last)
        timeouts = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        rows.append([np.array(raw_obs), from_environment(action, space), next_obs, np.array(raw_reward), dones & ~timeouts])
        dones_of_rows.append(np.array(dones))
        raw_obs, starts = new_raw_obs, dones
    return [np.stack(column) for column in zip(*rows, strict=True)], np.stack(dones_of_rows)


def _split_after(ended: np.ndarray, columns: Sequence[np.ndarray], device: th.device | str) -> list[Transitions]:
    """
    :param ended: rows after which a new piece begins, (N,) bool
    :param columns: the columns of ``Transitions``, (N, ...) each
    :param device: where the tensors go
    :return: the pieces
    """
    n = len(ended)
    if n == 0:
        return []
    obs, action, next_obs, reward, terminated = (
        th.as_tensor(column.reshape(n, -1), dtype=th.float32, device=device) for column in columns
    )
    rows = Transitions(obs, action, next_obs, reward.squeeze(1), terminated.squeeze(1) > 0.5)
    ends = [*(np.flatnonzero(ended[:-1]) + 1), n]
    return [rows[slice(start, end)] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def concatenate(trajectories: Sequence[Transitions]) -> Transitions:
    """
    :param trajectories: pieces of N transitions in all
    :return: their N rows, one after the other
    :raises ValueError: there are none
    """
    if len(trajectories) == 0:
        raise ValueError("There are no transitions to check the model on.")
    names = ("observations", "actions", "next_observations", "rewards", "terminated")
    return Transitions(*(th.cat([getattr(piece, name) for piece in trajectories]) for name in names))


# ---------------------------------------------------------------------------------------------------------------------
# One step
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneStepError:
    """
    How well a model predicts the next step. ``D = O + 1`` outputs: the observation's dimensions, then the reward; all
    statistics are (D,), NaN where the data never moved and there is nothing to predict.

    :param rmse: root mean squared error of the expectation, in raw units
    :param relative: ``rmse`` divided by that of predicting no change (the reward: of predicting its mean); 1 is as good
        as no model
    :param r2: explained share of the variance of the change (the reward: of the reward); 0 is as good as no model
    :param coverage_50: share of true values within the central 50 % interval of the prediction, whose standard deviation
        is sqrt(aleatoric^2 + epistemic^2). Less than 0.5: over-confident
    :param coverage_90: the same for 90 %
    :param mean_squared_z: mean of (error / predicted standard deviation)^2; 1 is calibrated, more is over-confident.
        The calibration is NaN for a model that tells no uncertainty, and for the reward of a known ``reward_fn``
    :param termination_precision: share of the predicted terminations that happened; NaN when none was predicted
    :param termination_recall: share of the terminations that were predicted; NaN when none happened
    :param predicted: predicted change of the observation, and reward, (N, D)
    :param actual: what happened, (N, D)
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
        """The figures to watch: the median output, as one that hardly moves would drown a mean, and the worst one."""
        return {
            "one_step_error": _median(self.relative),
            "one_step_error_worst": _worst(self.relative),
            "one_step_error_reward": self.relative[-1].item(),
            "one_step_r2": _median(self.r2),
            "coverage_50": _median(self.coverage_50),
            "coverage_90": _median(self.coverage_90),
            "mean_squared_z": _median(self.mean_squared_z),
            "termination_precision": self.termination_precision,
            "termination_recall": self.termination_recall,
        }


@th.no_grad()
def one_step_error(dynamics: SteppableModel, transitions: Transitions) -> OneStepError:
    """
    :param dynamics: the model; its expectation is judged, so nothing is drawn at random
    :param transitions: N real transitions, best ones that the model was not fitted to
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
    # Below a rounding error of the observation itself, a change is none
    size = th.cat([transitions.observations.abs().mean(dim=0), transitions.rewards.abs().mean(dim=0, keepdim=True)]).double()
    rmse = _rms(error)
    z = errors_in_stds(error, std)
    known = ~std.isnan().any(dim=0)
    scores = termination_scores(terminated, transitions.terminated)
    return OneStepError(
        rmse=rmse.cpu(),
        relative=(rmse / _nan_where_still(_rms(baseline), size)).cpu(),
        r2=(1 - (rmse / _nan_where_still(actual.std(dim=0, correction=0), size)) ** 2).cpu(),
        coverage_50=_coverage(z, 0.5).where(known, math.nan).cpu(),
        coverage_90=_coverage(z, 0.9).where(known, math.nan).cpu(),
        mean_squared_z=(z**2).mean(dim=0).where(known, math.nan).cpu(),
        termination_precision=scores["precision"],
        termination_recall=scores["recall"],
        predicted=predicted.cpu(),
        actual=actual.cpu(),
        std=std.cpu(),
    )


def _predict(dynamics: SteppableModel, transitions: Transitions) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    :return: expected change and reward, its standard deviation, (N, D) float64 each, and predicted terminations, (N,)
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
        std[:, -1] = math.nan  # the model's own reward, of which it is unsure, is not the one it gives
    return th.cat(outputs), std, th.cat(terminated)


def _total_std(step: ModelStep) -> th.Tensor:
    values = th.cat([step.next_obs, step.reward.unsqueeze(1)], dim=1).double()
    if step.epistemic_std is None or step.aleatoric_std is None:
        return th.full_like(values, math.nan)
    # Even a model that is sure can only be right to the digits of float32
    rounding = th.finfo(th.float32).eps * values.abs()
    return th.maximum(th.hypot(step.epistemic_std.double(), step.aleatoric_std.double()), rounding)


def errors_in_stds(error: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    :param error: errors of the predictions, (N, D)
    :param std: predicted standard deviations, where 0 means that the model is sure, (N, D)
    :return: absolute errors in standard deviations, (N, D); 0 where there is no error, however sure the model is
    """
    return th.where(error == 0, 0.0, error.abs() / std)


def _coverage(z: th.Tensor, level: float) -> th.Tensor:
    """
    :param z: absolute errors in predicted standard deviations, (N, D)
    :param level: probability of the central interval of a normal distribution
    :return: share of rows within it, (D,)
    """
    return (z <= half_width(level)).double().mean(dim=0)


def half_width(level: float | th.Tensor) -> th.Tensor:
    """Half the width of the central interval of a standard normal distribution."""
    return th.special.ndtri((1 + th.as_tensor(level, dtype=th.float64)) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Open loop
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenLoopError:
    """
    How errors grow when the model goes on from its own predictions, under the actions that were really taken. ``S``
    start states, ``H`` steps, ``D = O + 1`` outputs: the observation's dimensions, then the reward. The errors are root
    mean squares over the starts, in units of the standard deviation of the data; NaN where the data never moved.

    :param expectation: error when every step is the average of the elites without noise, (H, D)
    :param fan: error of the mean of the sampled futures, (H, D)
    :param spread: standard deviation of the sampled futures, (H, D). An honest model's spread is about its error
    :param persistence: error of predicting that nothing moves (the reward: of predicting its mean), (H, D)
    :param start_obs: where the predictions start, (S, O)
    :param actual: what happened: next observation and reward, (S, H, D) as the next three, raw units
    :param predicted: predicted by expectation
    :param fan_mean: mean of the sampled futures
    :param fan_std: standard deviation of the sampled futures
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
    def horizon(self) -> int:
        return self.expectation.shape[0]

    def summary(self) -> dict[str, float]:
        """The figures to watch: root mean squares over the outputs, at the first and the last step."""
        reward_bias = (self.fan_mean[..., -1] - self.actual[..., -1]).mean()
        return {
            "open_loop_horizon": float(self.horizon),
            "open_loop_first": over_outputs(self.expectation)[0].item(),
            "open_loop_last": over_outputs(self.expectation)[-1].item(),
            "open_loop_last_fan": over_outputs(self.fan)[-1].item(),
            "open_loop_last_spread": over_outputs(self.spread)[-1].item(),
            "open_loop_last_persistence": over_outputs(self.persistence)[-1].item(),
            # Above 0 the model promises more than the environment pays
            "open_loop_reward_bias": reward_bias.item(),
        }


def over_outputs(errors: th.Tensor) -> th.Tensor:
    """
    :param errors: (..., D)
    :return: root mean square over the outputs that are not NaN, (...)
    """
    return errors.square().nanmean(dim=-1).sqrt()


@th.no_grad()
def open_loop_error(
    dynamics: SteppableModel,
    trajectories: Sequence[Transitions],
    horizon: int = 20,
    n_starts: int = 100,
    generator: th.Generator | None = None,
    n_samples: int = 20,
    scale: th.Tensor | None = None,
) -> OpenLoopError:
    """
    Predict ``horizon`` steps from real states with the recorded actions, and compare with what happened. Starts are
    states that the episode outlived by the horizon: where episodes are short, what precedes their end is not seen.

    :param dynamics: the model; terminations that it predicts on the way do not stop it
    :param trajectories: unbroken pieces, from :func:`trajectories_from_buffer` or :func:`collect_trajectories`
    :param horizon: H, steps predicted
    :param n_starts: start states, drawn without replacement; all of them where there are fewer
    :param generator: source of starts, members and noise; None draws from PyTorch's global stream
    :param n_samples: sampled futures per start, each with an elite drawn at each step (TS1)
    :param scale: unit of the error of each output, (D,), NaN where there is nothing to predict; None: their standard
        deviations in ``trajectories``
    :return: errors per step and output. A prediction that is not finite counts as infinitely wrong
    :raises ValueError: no trajectory is as long as the horizon
    """
    if min(horizon, n_starts, n_samples) < 1:
        raise ValueError(f"horizon, n_starts and n_samples must be at least 1, got {horizon}, {n_starts}, {n_samples}.")
    rows = concatenate(trajectories)
    starts = _draw_starts([len(piece) for piece in trajectories], horizon, n_starts, generator, rows.rewards.device)
    windows = starts.unsqueeze(1) + th.arange(horizon, device=starts.device)
    start_obs, actions = rows.observations[starts], rows.actions[windows]
    outputs = th.cat([rows.next_observations, rows.rewards.unsqueeze(1)], dim=1).double()
    actual = outputs[windows]

    predicted = _unroll(dynamics, start_obs, actions, generator, "expectation")
    futures = [tensor.repeat_interleave(n_samples, dim=0) for tensor in (start_obs, actions)]
    fan = _unroll(dynamics, futures[0], futures[1], generator, "random").unflatten(0, (len(starts), n_samples))
    fan_mean, fan_std = fan.mean(dim=1), fan.std(dim=1, correction=0)
    persistence = th.cat([start_obs.double(), outputs[:, -1].mean().expand(len(starts), 1)], dim=1).unsqueeze(1)

    scale = standard_deviations(rows) if scale is None else scale

    def normalized(error: th.Tensor) -> th.Tensor:
        return (_rms(error.nan_to_num(nan=math.inf)) / scale).cpu()

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


def standard_deviations(transitions: Transitions) -> th.Tensor:
    """
    :param transitions: N real ones
    :return: of next observations and reward, (D,) float64; NaN where they never moved
    """
    outputs = th.cat([transitions.next_observations, transitions.rewards.unsqueeze(1)], dim=1).double()
    return _nan_where_still(outputs.std(dim=0, correction=0), outputs.abs().mean(dim=0))


def _draw_starts(
    lengths: Sequence[int], horizon: int, n_starts: int, generator: th.Generator | None, device: th.device
) -> th.Tensor:
    """
    :param lengths: of the trajectories
    :return: rows of the concatenated trajectories that ``horizon`` steps of the same trajectory begin with, (S,)
    """
    if max(lengths) < horizon:
        raise ValueError(
            f"The longest of {len(lengths)} trajectories has {max(lengths)} steps, fewer than horizon={horizon}. "
            "Choose a shorter horizon, or give longer trajectories."
        )
    rows_left = th.cat([th.arange(length, 0, -1) for length in lengths]).to(device)
    possible = (rows_left >= horizon).nonzero().squeeze(1)
    return possible[th.randperm(len(possible), generator=generator, device=device)[:n_starts]]


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
    :param members: as in ``step``
    :return: predicted observations and rewards, (B, H, O + 1) float64
    """
    outputs = []
    for action in actions.unbind(dim=1):
        step = dynamics.step(obs, action, generator, members=members)
        outputs.append(th.cat([step.next_obs, step.reward.unsqueeze(1)], dim=1).double())
        obs = step.next_obs
    return th.stack(outputs, dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# State distribution
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StateDistribution:
    """
    Imagined states against real ones, per dimension of the observation, (O,). Shifts are in units of the real standard
    deviation, and NaN, as is ``ks``, where the real states never moved.

    :param mean_shift: imagined mean minus real mean
    :param std_shift: imagined standard deviation minus the real one
    :param ks: two-sample Kolmogorov-Smirnov statistic, the largest distance of the two cumulative distributions, in [0, 1]
    :param outside: share of imagined values outside the observed range
    :param outside_any: share of imagined states outside of it in any dimension
    :param real: real states, (N, O)
    :param imagined: imagined states, (M, O)
    """

    mean_shift: th.Tensor
    std_shift: th.Tensor
    ks: th.Tensor
    outside: th.Tensor
    outside_any: float
    real: th.Tensor
    imagined: th.Tensor

    def summary(self) -> dict[str, float]:
        """The figures to watch."""
        return {
            "states_mean_shift_worst": _worst(self.mean_shift.abs()),
            "states_std_shift_worst": _worst(self.std_shift.abs()),
            "states_ks": _median(self.ks),
            "states_ks_worst": _worst(self.ks),
            "states_outside": self.outside_any,
        }


def state_distribution(
    real_obs: th.Tensor | np.ndarray,
    imagined_obs: th.Tensor | np.ndarray,
    observed_range: tuple[np.ndarray, np.ndarray] | None = None,
    margin: float = 0.01,
) -> StateDistribution:
    """
    Compare where imagination goes with where the agent has been. A shift is not yet an error: imagination follows the
    policy of today, the buffer those of the past.

    :param real_obs: raw real states, (N, O)
    :param imagined_obs: raw imagined states, (M, O)
    :param observed_range: lowest and highest values ever observed, (O,) each, if ``real_obs`` are a sample; None: theirs
    :param margin: how far, in real standard deviations, a state may lie beyond the observed range and still count as
        inside: at a hard limit (a cosine of 1) half of all predictions lie beyond it by a rounding error
    :return: the comparison
    :raises ValueError: no states, or states of different dimensions
    """
    real, imagined = (th.as_tensor(obs).detach().double().cpu() for obs in (real_obs, imagined_obs))
    if real.ndim != 2 or imagined.ndim != 2 or real.shape[1] != imagined.shape[1] or 0 in (len(real), len(imagined)):
        raise ValueError(f"Expected states of shape (N, O) and (M, O), got {tuple(real.shape)} and {tuple(imagined.shape)}.")
    if observed_range is None:
        low, high = real.amin(dim=0), real.amax(dim=0)
    else:
        low, high = (th.as_tensor(end, dtype=th.float64) for end in observed_range)
    std = real.std(dim=0, correction=0)
    scale = _nan_where_still(std, real.abs().mean(dim=0))
    # A dimension that never moved: any prediction but the exact one would be outside, and say nothing
    slack = (margin * scale).nan_to_num(nan=math.inf)
    outside = ~((imagined >= low - slack) & (imagined <= high + slack))
    return StateDistribution(
        mean_shift=(imagined.mean(dim=0) - real.mean(dim=0)) / scale,
        std_shift=(imagined.std(dim=0, correction=0) - std) / scale,
        ks=kolmogorov_smirnov(real, imagined).where(~scale.isnan(), math.nan),
        outside=outside.double().mean(dim=0),
        outside_any=outside.any(dim=1).double().mean().item(),
        real=real,
        imagined=imagined,
    )


def kolmogorov_smirnov(first: th.Tensor, second: th.Tensor) -> th.Tensor:
    """
    :param first: a sample of each of D variables, (N, D)
    :param second: another one, (M, D)
    :return: largest distance of the two empirical cumulative distributions of each variable, (D,) float64
    """
    samples = [sample.double().T.contiguous().sort(dim=1).values for sample in (first, second)]
    values = th.cat(samples, dim=1)  # both are steps: the largest distance is at one of the values
    below = [th.searchsorted(sample, values, right=True) / sample.shape[1] for sample in samples]
    return (below[0] - below[1]).abs().amax(dim=1).double()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def _rms(values: th.Tensor) -> th.Tensor:
    """Root mean square over the first dimension."""
    return values.square().mean(dim=0).sqrt()


def _nan_where_still(spread: th.Tensor, size: th.Tensor) -> th.Tensor:
    """
    :param spread: of some values, (D,)
    :param size: their mean magnitude, (D,)
    :return: ``spread``; NaN where it is no more than the values' rounding error, as nothing can be measured against it
    """
    return spread.where(spread > 1e-6 * size.clamp_min(1e-6), math.nan)


def _median(values: th.Tensor) -> float:
    return values.nanmedian().item()


def _worst(values: th.Tensor) -> float:
    return values.nan_to_num(nan=-math.inf).max().item() if not values.isnan().all() else math.nan
