"""Figures of the three checks of a model. Matplotlib is imported only when the first figure is drawn."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_mbrl.diagnostics.one_step import OneStepError
from sb3_mbrl.diagnostics.open_loop import OpenLoopError
from sb3_mbrl.diagnostics.state_distribution import StateDistribution
from sb3_mbrl.diagnostics.statistics import errors_in_stds, half_width, over_outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, MODEL, FAN, NO_MODEL = "black", "tab:blue", "tab:orange", "tab:gray"
MAX_PANELS = 12
"""Largest number of dimensions in a figure; the worst ones are shown."""


def plot_one_step(result: OneStepError, names: Sequence[str] | None = None) -> "Figure":
    """
    Error per output, calibration, and predicted against true change.

    :param result: result of :func:`one_step_error`
    :param names: names of the dimensions of the observation, (O,); None numbers them
    :return: a matplotlib figure, which is not shown in a window
    """
    names = _output_names(len(result.rmse), names)
    worst = _worst_first(result.relative)
    figure, axes = _panels(2 + len(worst), f"One step ahead, {len(result.actual)} real transitions")
    _bars(axes[0], names, worst, result.relative, "RMSE / RMSE without a model", reference=1.0)
    _calibration(axes[1], result)
    for ax, output in zip(axes[2:], worst, strict=True):
        actual, predicted = result.actual[:, output].numpy(), result.predicted[:, output].numpy()
        ax.scatter(actual, predicted, s=4, alpha=0.35, color=MODEL, linewidths=0, rasterized=True)
        ends = [actual.min(), actual.max()]
        ax.plot(ends, ends, color=REAL, linewidth=0.8)
        _title(ax, f"{names[output]}: R² {result.r2[output]:.3f}")
        is_reward = output == len(names) - 1
        ax.set_xlabel("true reward" if is_reward else "true change")
        ax.set_ylabel("predicted")
    return figure


def plot_open_loop(result: OpenLoopError, names: Sequence[str] | None = None) -> "Figure":
    """
    Growth of the error, error per output at the last step, and the prediction with the median error.

    :param result: result of :func:`open_loop_error`
    :param names: names of the dimensions of the observation, (O,); None numbers them
    :return: a matplotlib figure, which is not shown in a window
    """
    names = _output_names(result.expectation.shape[1], names)
    worst = _worst_first(result.expectation[-1])
    title = f"Open loop, {result.n_steps} steps from {len(result.start_obs)} real states; panels: a typical prediction"
    figure, axes = _panels(2 + len(worst), title)
    steps = np.arange(1, result.n_steps + 1)
    for values, label, color, linestyle in (
        (result.expectation, "expectation", MODEL, "-"),
        (result.fan, "mean of samples", FAN, "--"),
        (result.spread, "spread of samples", FAN, ":"),
        (result.persistence, "no model", NO_MODEL, "-."),
    ):
        axes[0].plot(steps, over_outputs(values).numpy(), label=label, color=color, linestyle=linestyle)
    _title(axes[0], "error / std of the data")
    axes[0].set_yscale("log")
    axes[0].set_xlabel("step")
    axes[0].legend(fontsize="x-small")
    _bars(axes[1], names, worst, result.expectation[-1], f"error / std at step {result.n_steps}", reference=1.0)
    start = _typical_start(result)
    for ax, output in zip(axes[2:], worst, strict=True):
        _trajectory(ax, result, start, output)
        _title(ax, names[output])
        ax.set_xlabel("step")
    axes[2].legend(fontsize="x-small")
    return figure


def plot_state_distribution(result: StateDistribution, names: Sequence[str] | None = None) -> "Figure":
    """
    Distance per dimension, shifts, and histograms.

    :param result: result of :func:`state_distribution`
    :param names: names of the dimensions of the observation, (O,); None numbers them
    :return: a matplotlib figure, which is not shown in a window
    """
    names = _output_names(len(result.ks) + 1, names)[:-1]
    worst = _worst_first(result.ks)
    title = f"{len(result.imagined)} imagined states, {result.outside_any:.1%} of them outside the observed range"
    figure, axes = _panels(2 + len(worst), title)
    _bars(axes[0], names, worst, result.ks, "Kolmogorov-Smirnov distance")
    axes[0].set_xlim(0.0, 1.0)
    _bars(axes[1], names, worst, result.mean_shift, "shift / real std", label="mean", height=0.4, offset=-0.2)
    _bars(axes[1], names, worst, result.std_shift, "shift / real std", label="std", height=0.4, offset=0.2, color=FAN)
    axes[1].axvline(0.0, color=REAL, linewidth=0.8)
    axes[1].legend(fontsize="x-small")
    for ax, dim in zip(axes[2:], worst, strict=True):
        real, imagined = result.real[:, dim].numpy(), result.imagined[:, dim].numpy()
        bins = _bins(real, imagined)
        ax.hist(real, bins, density=True, color=NO_MODEL, alpha=0.5, label="real")
        ax.hist(imagined, bins, density=True, histtype="step", color=MODEL, linewidth=1.5, label="imagined")
        _title(ax, f"{names[dim]}: KS {result.ks[dim]:.2f}")
        ax.set_yticks([])
    axes[2].legend(fontsize="x-small")
    return figure


def _panels(n: int, title: str) -> tuple["Figure", list["Axes"]]:
    # Imported here, because most runs draw nothing. Not pyplot, which keeps every figure in memory
    from matplotlib.figure import Figure

    n_cols = 3 if n <= 6 else 4
    n_rows = math.ceil(n / n_cols)
    figure = Figure(figsize=(3.4 * n_cols, 2.6 * n_rows + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = [figure.add_subplot(n_rows, n_cols, i + 1) for i in range(n)]
    for ax in axes:
        ax.tick_params(labelsize="small")
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(ax: "Axes", text: str) -> None:
    ax.set_title(text, fontsize="medium")


def _output_names(n_outputs: int, names: Sequence[str] | None) -> list[str]:
    if names is None:
        names = [f"obs[{i}]" for i in range(n_outputs - 1)]
    if len(names) != n_outputs - 1:
        raise ValueError(f"names must hold a name for each of {n_outputs - 1} observation dimensions, got {len(names)} names.")
    return [*names, "reward"]


def _worst_first(values: th.Tensor) -> list[int]:
    """The ``MAX_PANELS`` outputs with the largest values, NaN counting as smallest, in the order of the outputs."""
    order = values.nan_to_num(nan=-math.inf).argsort(descending=True)
    return sorted(order[:MAX_PANELS].tolist())


def _bars(
    ax: "Axes",
    names: Sequence[str],
    shown: Sequence[int],
    values: th.Tensor,
    title: str,
    reference: float | None = None,
    offset: float = 0.0,
    **style: Any,
) -> None:
    """Draw horizontal bars for the ``shown`` dimensions, from top to bottom, and a line at ``reference``."""
    places = np.arange(len(shown))
    lengths = values[list(shown)].nan_to_num(nan=0.0, posinf=0.0)
    ax.barh(places + offset, lengths.numpy(), **{"color": MODEL, **style})
    ax.set_yticks(places, [names[dim] for dim in shown])
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    _title(ax, title)
    if reference is not None:
        ax.axvline(reference, color=NO_MODEL, linestyle="--", linewidth=1.0)


def _calibration(ax: "Axes", result: OneStepError) -> None:
    """Draw the share of true values within central intervals of all widths, one line per output."""
    z = errors_in_stds(result.predicted - result.actual, result.std)
    levels = th.linspace(0.0, 1.0, 51, dtype=th.float64)
    widths = half_width(levels)
    observed = th.stack([(z <= width).double().mean(dim=0) for width in widths])
    observed[:, result.coverage_90.isnan()] = math.nan
    ax.plot(levels.numpy(), observed.numpy(), color=MODEL, linewidth=0.7, alpha=0.6)
    ax.plot([0, 1], [0, 1], color=REAL, linewidth=0.8)
    ax.text(0.04, 0.9, "under-confident", fontsize="x-small")
    ax.text(0.96, 0.05, "over-confident", fontsize="x-small", ha="right")
    _title(ax, "calibration, one line per output")
    ax.set_xlabel("predicted interval")
    ax.set_ylabel("share inside")


def _typical_start(result: OpenLoopError) -> int:
    """Index of the start whose prediction has the median error."""
    scale = result.actual.flatten(0, 1).std(dim=0).clamp_min(1e-6)
    errors = ((result.predicted - result.actual) / scale).nan_to_num(nan=math.inf).square().mean(dim=(1, 2))
    return int(errors.argsort()[len(errors) // 2])


def _trajectory(ax: "Axes", result: OpenLoopError, start: int, output: int) -> None:
    """Draw one output of one prediction. The curve of an observation begins with its value at the start."""
    values = [tensor[start, :, output] for tensor in (result.actual, result.predicted, result.fan_mean, result.fan_std)]
    if output < result.start_obs.shape[1]:
        first = result.start_obs[start, output].unsqueeze(0)
        values = [th.cat([head, rest]) for head, rest in zip([first, first, first, first * 0], values, strict=True)]
    actual, predicted, mean, std = (value.numpy() for value in values)
    steps = np.arange(result.n_steps + 1 - len(actual), result.n_steps + 1)
    ax.fill_between(steps, mean - 2 * std, mean + 2 * std, color=FAN, alpha=0.25, linewidth=0, label="samples ± 2 std")
    ax.plot(steps, predicted, color=MODEL, label="expectation")
    ax.plot(steps, actual, color=REAL, linewidth=1.0, linestyle="--", label="real")


def _bins(real: np.ndarray, imagined: np.ndarray) -> list[float]:
    """Common bins of both histograms. The outermost half percent is left out: its few states would compress the others."""
    ends = np.array([np.nanquantile(states, [0.005, 0.995]) for states in (real, imagined)])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    # Even a constant dimension needs bins of nonzero width
    room = 0.0 if high - low > 1e-9 * max(1.0, abs(low)) else 1e-6 * max(1.0, abs(low))
    return np.linspace(low - room, high + room, 41).tolist()
