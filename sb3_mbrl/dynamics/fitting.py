"""Fitting an ensemble: holdout, bootstrap, early stopping, per-member restore, elites."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_mbrl.acceleration.adam import adam_step
from sb3_mbrl.common.arguments import BOOLEAN, check_arguments, integer, number
from sb3_mbrl.common.types import LARGEST, Transitions

if TYPE_CHECKING:
    from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble

MIN_ROWS_FOR_HOLDOUT = 10
"""With fewer transitions than this, all are trained on and the stopping rule watches the training error."""

EpochCallback = Callable[[int, float], None]
"""Called after each epoch with its number and the best holdout MSE so far (mean over members)."""


def epoch_shown_by(show: Callable[[str], None]) -> EpochCallback:
    """
    :param show: shows what is going on now
    :return: a callback that calls it after each epoch
    """
    return lambda epoch, holdout_mse: show(f"fitting model, epoch {epoch}, error {holdout_mse:.2g}")


@dataclass(frozen=True)
class FitReport:
    """
    What a fit did and how good the model is now. Errors are on held-out rows, averaged over the elites, of z-scored
    targets (an MSE of 1 is as good as always predicting the mean), of raw ones with ``normalize_targets=False``.

    :param n_epochs: passes over the training rows
    :param n_gradient_steps: optimiser steps
    :param seconds: wall-clock time
    :param n_train: rows trained on
    :param n_holdout: rows held out
    :param train_loss: loss of the last minibatch, summed over members
    :param holdout_mse: mean squared error over all outputs
    :param holdout_mse_worst_dim: the same of the worst output
    :param holdout_nll: Gaussian negative log-likelihood up to constants, mean over outputs;
        for a deterministic ensemble the MSE
    :param holdout_nll_worst_dim: the same of the worst output
    :param reward_mse: mean squared error of the reward, in its own units; for a ``reward_fn``, over all rows
    :param elite_spread: worst elite's MSE divided by the best elite's
    :param termination_precision: share of the predicted terminations that are true (NaN if none is predicted), over all rows;
        of a learned head, over its held-out rows
    :param termination_recall: share of the terminations that are predicted (NaN if there is none)
    :param reward_agrees: whether a ``reward_fn`` is what the environment paid; True for a learned reward
    :param note: a remark for the user, in the first fit that shows it: ``reward_fn`` is another reward, which may be intended
    """

    n_epochs: int
    n_gradient_steps: int
    seconds: float
    n_train: int
    n_holdout: int
    train_loss: float
    holdout_mse: float
    holdout_mse_worst_dim: float
    holdout_nll: float
    holdout_nll_worst_dim: float
    reward_mse: float
    elite_spread: float
    termination_precision: float = math.nan
    termination_recall: float = math.nan
    reward_agrees: bool = True
    note: str = ""

    def scalars(self) -> dict[str, float]:
        """
        :return: the numbers by name, without those that are not defined
        """
        numbers = {name: value for name, value in vars(self).items() if name not in ("reward_agrees", "note")}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def in_words(self) -> str:
        """
        :return: the gist in a line, and the note, if there is one, in another
        """
        gist = (
            f"{self.n_epochs} epochs on {self.n_train} transitions in {self.seconds:.1f} s, holdout MSE {self.holdout_mse:.3g}"
        )
        return f"{gist}\n{self.note}" if self.note else gist


def fit(
    model: "ProbabilisticEnsemble",
    transitions: Transitions,
    generator: th.Generator | None = None,
    batch_size: int = 256,
    holdout_ratio: float = 0.2,
    max_holdout: int = 5000,
    bootstrap: bool = True,
    patience: int = 5,
    patience_steps: int = 100,
    min_improvement: float = 0.01,
    max_epochs: int | None = None,
    max_gradient_steps: int | None = None,
    on_epoch: EpochCallback | None = None,
) -> FitReport:
    """
    Train the ensemble until no member improves on the holdout any more, then put back the best snapshot of each
    member and rank the members (the official MBPO code's rule; numbers are its defaults).

    :param model: the ensemble; weights and optimiser state go on from where they are
    :param transitions: every transition to learn from, N rows
    :param generator: source of the holdout split, the bootstrap and the shuffling; None draws from
        PyTorch's global stream
    :param batch_size: rows a member sees per gradient step
    :param holdout_ratio: share of the rows held out, drawn anew in each fit
    :param max_holdout: at most this many rows are held out
    :param bootstrap: each member trains on its own draw with replacement; False: each on all training rows,
        in its own order
    :param patience: stop after *more than* this many epochs in a row in which no member improved ...
    :param patience_steps: ... which were at least this many gradient steps. The paper's rule (0) is made for thousands of
        rows; of a few hundred, five epochs are ten steps, too few to recover from a shift of the data
    :param min_improvement: relative gain of a member's holdout MSE that counts as an improvement
    :param max_epochs: stop after this many epochs
    :param max_gradient_steps: stop after this many gradient steps, within an epoch if need be
    :param on_epoch: called after each epoch, e.g. to show that the fit is alive
    :return: errors and cost
    :raises ValueError: no transitions, or NaN or infinity among them, or a fit that diverged
    """
    start = time.perf_counter()
    check_form(model, transitions)
    check_finite(transitions)
    inputs, targets = model.inputs_and_targets(transitions)
    train, holdout = _split(len(transitions), holdout_ratio, max_holdout, generator, inputs.device)
    # Statistics from the training rows alone; fixed during the fit, so that the weights keep their meaning
    model.input_normalizer.fit(inputs[train])
    inputs = model.input_normalizer(inputs)
    model.target_normalizer.fit(targets[train], z_score=model.normalize_targets)
    targets = model.target_normalizer(targets)
    rows = _rows_per_member(train, model.ensemble_size, bootstrap, generator)

    snapshot = _Snapshot(model)
    epoch, n_gradient_steps, last_gain, loss = 0, 0, (0, 0), th.zeros(())
    while True:
        rows = _shuffle_each(rows, generator)
        step = adam_step(model.optimizer)
        for batch in rows.split(int(batch_size), dim=1):
            loss = model.loss(inputs[batch], targets[batch])
            model.optimizer.zero_grad()
            loss.backward()
            step()
            n_gradient_steps += 1
            if n_gradient_steps == max_gradient_steps:
                break
        epoch += 1

        mse = _member_mse(model, inputs[holdout], targets[holdout])
        if not th.isfinite(mse).all():
            model.holdout_mse.copy_(mse)  # optimiser and variances are lost, even where a snapshot of the weights is not
            raise ValueError(
                "The dynamics model diverged: its holdout error is not finite. Look at the range of the observations and "
                "rewards, scale them, or lower the learning rate of the model."
            )
        gained = snapshot.take_where_better(mse, min_improvement)
        last_gain = (epoch, n_gradient_steps) if gained else last_gain
        if on_epoch is not None:
            on_epoch(epoch, snapshot.mse.mean().item())
        if epoch - last_gain[0] > patience and n_gradient_steps - last_gain[1] >= patience_steps:
            break
        if max_epochs is not None and epoch >= max_epochs:
            break
        if n_gradient_steps == max_gradient_steps:
            break

    snapshot.restore()
    model.holdout_mse.copy_(_member_mse(model, inputs[holdout], targets[holdout]))
    model.n_fitted = len(transitions)
    errors: dict[str, Any] = _holdout_errors(model, inputs[holdout], targets[holdout])
    return FitReport(
        n_epochs=epoch,
        n_gradient_steps=n_gradient_steps,
        seconds=time.perf_counter() - start,
        n_train=len(train),
        n_holdout=len(holdout),
        train_loss=loss.item(),
        **errors,
    )


def check_fit_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: of :func:`fit`, some of them
    :raises ValueError: a number is out of its range
    """
    accepted = {
        "batch_size": integer(1, 10**7),
        "holdout_ratio": number(0, 1, below=True),
        "max_holdout": integer(1),
        "bootstrap": BOOLEAN,
        "patience": integer(0),
        "patience_steps": integer(0),
        "min_improvement": number(0, 1, below=True),
        "max_epochs": integer(1) | None,
        "max_gradient_steps": integer(1) | None,
    }
    check_arguments(arguments, accepted)


class _Snapshot:
    """The best parameters of each member so far."""

    def __init__(self, model: "ProbabilisticEnsemble"):
        self.parameters = [*model.weights, *model.biases]
        self.best = [parameter.detach().clone() for parameter in self.parameters]
        # A warm model must not be measured against its error on another holdout: every fit starts afresh
        self.mse = th.full_like(model.holdout_mse, float("inf"))

    def take_where_better(self, mse: th.Tensor, min_improvement: float) -> bool:
        """Keep the members whose error fell by more than ``min_improvement``; True if there was one."""
        better = mse < (1.0 - min_improvement) * self.mse
        self.mse = th.where(better, mse, self.mse)
        members = better.nonzero().squeeze(1)
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best[members] = parameter.detach()[members]
        return len(members) > 0

    def restore(self) -> None:
        with th.no_grad():
            for best, parameter in zip(self.best, self.parameters, strict=True):
                parameter.copy_(best)


def check_form(model: "ProbabilisticEnsemble", transitions: Transitions) -> None:
    """
    :param model: the model to be fitted
    :param transitions: the transitions to fit it to
    :raises ValueError: a tensor of another shape or type than :class:`~sb3_mbrl.common.types.Transitions` has
    """
    n = len(transitions)
    shapes: dict[str, tuple[int, ...]] = {
        "observations": (n, model.observation_dim),
        "actions": (n, model.action_dim),
        "next_observations": (n, model.observation_dim),
        "rewards": (n,),
        "terminated": (n,),
    }
    for name, shape in shapes.items():
        given, dtype = getattr(transitions, name), th.bool if name == "terminated" else th.float32
        if isinstance(given, th.Tensor) and (tuple(given.shape), given.dtype) == (shape, dtype):
            continue
        got = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, th.Tensor) else type(given).__name__
        raise ValueError(
            f"The {name} to fit the dynamics model to must be a tensor of {dtype} of shape {shape}, got {got}. "
            "sb3_mbrl.envs.read_dataset makes transitions from arrays; .float() and .bool() convert a tensor."
        )


def check_finite(transitions: Transitions) -> None:
    """
    :param transitions: to fit to
    :raises ValueError: there are none, or NaN, infinity or numbers too large for float32 are among them
    """
    if len(transitions) == 0:
        raise ValueError("There are no transitions to fit the dynamics model to.")
    for name in ("observations", "actions", "next_observations", "rewards"):
        bad = ~(getattr(transitions, name).abs() <= LARGEST)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"The {name} to fit the dynamics model to contain NaN, infinity or numbers beyond {LARGEST:.0e} "
                f"(first in row {row}). Fix the environment, or drop these transitions."
            )


def _split(
    n: int, holdout_ratio: float, max_holdout: int, generator: th.Generator | None, device: th.device
) -> tuple[th.Tensor, th.Tensor]:
    """Rows to train on and rows held out, both long tensors."""
    order = th.randperm(n, generator=generator, device=device)
    if n < MIN_ROWS_FOR_HOLDOUT:
        return order, order
    n_holdout = max(1, min(int(n * holdout_ratio), max_holdout))
    return order[n_holdout:], order[:n_holdout]


def _rows_per_member(train: th.Tensor, members: int, bootstrap: bool, generator: th.Generator | None) -> th.Tensor:
    """(members, n_train) row indices."""
    if not bootstrap:
        return train.expand(members, -1)
    draw = th.randint(len(train), (members, len(train)), generator=generator, device=train.device)
    return train[draw]


def _shuffle_each(rows: th.Tensor, generator: th.Generator | None) -> th.Tensor:
    """Each member's rows in a new order."""
    order = th.rand(rows.shape, generator=generator, device=rows.device).argsort(dim=1)
    return rows.gather(1, order)


@th.no_grad()
def _member_mse(model: "ProbabilisticEnsemble", inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """(members,) mean squared error over rows and outputs."""
    total = th.zeros_like(model.holdout_mse)
    for x, y in zip(inputs.split(1024), targets.split(1024), strict=True):
        mean, _ = model(x.expand(model.ensemble_size, *x.shape))
        total += ((mean - y) ** 2).sum(dim=(1, 2))
    return total / targets.numel()


@th.no_grad()
def _holdout_errors(model: "ProbabilisticEnsemble", inputs: th.Tensor, targets: th.Tensor) -> dict[str, float]:
    """The errors of a :class:`FitReport`, averaged over the elites."""
    elites = model.elites
    mse, nll = th.zeros_like(targets[0]), th.zeros_like(targets[0])
    for x, y in zip(inputs.split(1024), targets.split(1024), strict=True):
        mean, logvar = model(x.expand(model.ensemble_size, *x.shape))
        error = (mean[elites] - y) ** 2
        mse += error.sum(dim=(0, 1))
        nll += (error * th.exp(-logvar[elites]) + logvar[elites] if model.probabilistic else error).sum(dim=(0, 1))
    mse, nll = (total / (len(elites) * len(targets)) for total in (mse, nll))
    elite_mse = model.holdout_mse[elites]
    return {
        "holdout_mse": mse.mean().item(),
        "holdout_mse_worst_dim": mse.max().item(),
        "holdout_nll": nll.mean().item(),
        "holdout_nll_worst_dim": nll.max().item(),
        "reward_mse": (mse[-1] * model.target_normalizer.std[-1] ** 2).item(),
        "elite_spread": (elite_mse[-1] / elite_mse[0].clamp_min(1e-12)).item(),
    }
