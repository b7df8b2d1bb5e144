"""Fitting an ensemble: holdout, bootstrap, early stopping, per-member restore, elites."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch as th

from sb3_mbrl.acceleration.adam import adam_step
from sb3_mbrl.common.arguments import BOOLEAN, check_arguments, integer, number
from sb3_mbrl.common.types import Transitions
from sb3_mbrl.dynamics.data import checked
from sb3_mbrl.dynamics.normalizer import Normalizer

MIN_ROWS_FOR_HOLDOUT = 10
"""With fewer transitions than this none is held out, and the stopping rule uses the training error."""

EpochCallback = Callable[[int, float], None]
"""Called after each epoch with its number and the best holdout MSE so far (mean over members)."""


def describe_epochs(show: Callable[[str], None]) -> EpochCallback:
    """
    :param show: shows a line of text, for instance in a progress bar
    :return: a callback that shows the number of each epoch and its error
    """
    return lambda epoch, holdout_mse: show(f"fitting model, epoch {epoch}, error {holdout_mse:.2g}")


@dataclass(frozen=True)
class FitReport:
    """
    What a fit did and how accurate the model is now. Errors are measured on held-out rows and averaged over the elites.
    Targets are z-scored, so an MSE of 1 is as good as always predicting the mean; with ``normalize_targets=False`` they are
    raw.

    :param n_epochs: passes over the training rows
    :param n_gradient_steps: optimizer steps
    :param seconds: wall-clock time
    :param n_train: rows trained on
    :param n_holdout: rows held out
    :param train_loss: loss of the last minibatch, summed over members
    :param holdout_mse: mean squared error over all outputs
    :param holdout_mse_worst_dim: mean squared error of the output where it is largest
    :param holdout_nll: Gaussian negative log-likelihood up to constants, mean over outputs;
        for a deterministic ensemble the MSE
    :param holdout_nll_worst_dim: negative log-likelihood of the output where it is largest
    :param reward_mse: mean squared error of the reward, in squared units of the reward; for a ``reward_fn``, over all rows
    :param elite_spread: worst elite's MSE divided by the best elite's
    :param termination_precision: share of the predicted terminations that happened (NaN if none was predicted), over all rows;
        for a learned termination, over its held-out rows
    :param termination_recall: share of the real terminations that were predicted (NaN if there was none)
    :param reward_agrees: whether a ``reward_fn`` agrees with the real rewards; True for a learned reward
    :param note: a remark for the user, given once: ``reward_fn`` differs from the environment's reward, which may be intended
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
        :return: the numbers by name, without those that are NaN
        """
        numbers = {name: value for name, value in vars(self).items() if name not in ("reward_agrees", "note")}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def in_words(self) -> str:
        """
        :return: a summary in one line, followed by the note, if there is one, in another
        """
        summary = (
            f"{self.n_epochs} epochs on {self.n_train} transitions in {self.seconds:.1f} s, holdout MSE {self.holdout_mse:.3g}"
        )
        return f"{summary}\n{self.note}" if self.note else summary


class Ensemble(Protocol):
    """What :func:`fit` needs from a model of ``M`` members, which are trained together."""

    observation_dim: int
    action_dim: int
    ensemble_size: int
    probabilistic: bool
    normalize_targets: bool
    input_normalizer: Normalizer
    target_normalizer: Normalizer
    optimizer: th.optim.Adam
    holdout_mse: th.Tensor
    n_fitted: int

    @property
    def weights(self) -> Iterable[th.Tensor]:
        """Weights of each layer, (M, inputs, outputs)."""

    @property
    def biases(self) -> Iterable[th.Tensor]:
        """Biases of each layer, (M, 1, outputs)."""

    @property
    def elites(self) -> th.Tensor:
        """Members with the lowest ``holdout_mse``, best first, (E,) long."""

    def inputs_and_targets(self, transitions: Transitions) -> tuple[th.Tensor, th.Tensor]:
        """Inputs and targets of the networks, not normalised: (N, inputs) and (N, D)."""

    def loss(self, inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """The loss, summed over members, of normalised (M, B, inputs) and (M, B, D)."""

    def __call__(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log-variance of the normalised targets, (M, B, D) each."""


def fit(
    model: Ensemble,
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
    Train the ensemble until no member improves on the holdout any more, then restore the best snapshot of each member
    and rank the members. Rule and defaults are those of the official MBPO code, except for ``patience_steps``.

    :param model: the ensemble; training continues from its current weights and optimizer state
    :param transitions: every transition to learn from, N rows
    :param generator: source of the holdout split, the bootstrap and the shuffling; None draws from
        PyTorch's global stream
    :param batch_size: rows per member and gradient step
    :param holdout_ratio: share of the rows held out, drawn anew in each fit
    :param max_holdout: largest number of rows held out
    :param bootstrap: each member trains on its own draw with replacement; False: each trains on all training rows, in
        its own order
    :param patience: stop after *more than* this many epochs in a row in which no member improved
    :param patience_steps: least number of gradient steps that these epochs must contain. The paper's rule (0) is made for
        thousands of rows; with a few hundred, five epochs are ten steps, too few to recover from a shift of the data
    :param min_improvement: relative gain of a member's holdout MSE that counts as an improvement
    :param max_epochs: stop after this many epochs
    :param max_gradient_steps: stop after this many gradient steps, even within an epoch
    :param on_epoch: called after each epoch, for instance to show progress
    :return: errors and cost
    :raises ValueError: there are no transitions, NaN or infinity is among them, or the fit diverged
    """
    start = time.perf_counter()
    transitions = checked(transitions, model.observation_dim, model.action_dim)
    inputs, targets = model.inputs_and_targets(transitions)
    train, holdout = _split(len(transitions), holdout_ratio, max_holdout, generator, inputs.device)
    inputs, targets = _normalize(model, inputs, targets, train)
    held_out = inputs[holdout], targets[holdout]
    rows = _rows_per_member(train, model.ensemble_size, bootstrap, generator)

    best, improved = _Snapshot(model), _Progress()
    for progress in _epochs(model, inputs, targets, rows, batch_size, max_epochs, max_gradient_steps, generator):
        if best.take_where_better(_finite_mse(model, *held_out), min_improvement):
            improved = progress
        if on_epoch is not None:
            on_epoch(progress.epoch, best.mse.mean().item())
        if progress.epoch - improved.epoch > patience and progress.n_steps - improved.n_steps >= patience_steps:
            break

    best.restore()
    model.holdout_mse.copy_(_member_mse(model, *held_out))
    model.n_fitted = len(transitions)
    errors: dict[str, Any] = _holdout_errors(model, *held_out)
    seconds = time.perf_counter() - start
    return FitReport(progress.epoch, progress.n_steps, seconds, len(train), len(holdout), progress.loss.item(), **errors)


def check_fit_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: some of the arguments of :func:`fit`, by name
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

    def __init__(self, model: Ensemble):
        self.parameters = [*model.weights, *model.biases]
        self.best = [parameter.detach().clone() for parameter in self.parameters]
        # The errors of an earlier fit are not comparable, as they were measured on another holdout
        self.mse = th.full_like(model.holdout_mse, float("inf"))

    def take_where_better(self, mse: th.Tensor, min_improvement: float) -> bool:
        """Store the members whose error fell by more than the share ``min_improvement``; True if there are any."""
        better = mse < (1.0 - min_improvement) * self.mse
        self.mse = th.where(better, mse, self.mse)
        members = better.nonzero().squeeze(1)
        for best, parameter in zip(self.best, self.parameters, strict=True):
            best[members] = parameter.detach()[members]
        return len(members) > 0

    def restore(self) -> None:
        """Put the best parameters back into the model."""
        with th.no_grad():
            for best, parameter in zip(self.best, self.parameters, strict=True):
                parameter.copy_(best)


def _split(
    n: int, holdout_ratio: float, max_holdout: int, generator: th.Generator | None, device: th.device
) -> tuple[th.Tensor, th.Tensor]:
    """Rows to train on and rows held out, both long tensors."""
    order = th.randperm(n, generator=generator, device=device)
    if n < MIN_ROWS_FOR_HOLDOUT:
        return order, order
    n_holdout = max(1, min(int(n * holdout_ratio), max_holdout))
    return order[n_holdout:], order[:n_holdout]


def _normalize(model: Ensemble, inputs: th.Tensor, targets: th.Tensor, train: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Fit the normalisers to the training rows alone, once per fit: while weights are trained, their inputs must not be rescaled.

    :return: normalised inputs and targets
    """
    model.input_normalizer.fit(inputs[train])
    model.target_normalizer.fit(targets[train], z_score=model.normalize_targets)
    return model.input_normalizer(inputs), model.target_normalizer(targets)


def _rows_per_member(train: th.Tensor, members: int, bootstrap: bool, generator: th.Generator | None) -> th.Tensor:
    """Indices of the rows that each member trains on, (members, n_train)."""
    if not bootstrap:
        return train.expand(members, -1)
    draw = th.randint(len(train), (members, len(train)), generator=generator, device=train.device)
    return train[draw]


def _shuffle_each(rows: th.Tensor, generator: th.Generator | None) -> th.Tensor:
    """Each member's rows in a new order."""
    order = th.rand(rows.shape, generator=generator, device=rows.device).argsort(dim=1)
    return rows.gather(1, order)


class _Progress(NamedTuple):
    """
    :param epoch: passes over the training rows so far
    :param n_steps: gradient steps so far
    :param loss: loss of the last minibatch
    """

    epoch: int = 0
    n_steps: int = 0
    loss: th.Tensor = th.zeros(())


def _epochs(
    model: Ensemble,
    inputs: th.Tensor,
    targets: th.Tensor,
    rows: th.Tensor,
    batch_size: int,
    max_epochs: int | None,
    max_gradient_steps: int | None,
    generator: th.Generator | None,
) -> Iterator[_Progress]:
    """Train until one of the two limits is reached, and yield after each epoch."""
    epoch, n_steps = 0, 0
    while epoch != max_epochs and n_steps != max_gradient_steps:
        rows = _shuffle_each(rows, generator)
        batches = rows.split(int(batch_size), dim=1)
        batches = batches if max_gradient_steps is None else batches[: max_gradient_steps - n_steps]
        loss = _train(model, inputs, targets, batches)
        epoch, n_steps = epoch + 1, n_steps + len(batches)
        yield _Progress(epoch, n_steps, loss)


def _train(model: Ensemble, inputs: th.Tensor, targets: th.Tensor, batches: Sequence[th.Tensor]) -> th.Tensor:
    """Make a gradient step on each minibatch; return the loss of the last one."""
    step = adam_step(model.optimizer)
    for batch in batches:
        loss = model.loss(inputs[batch], targets[batch])
        model.optimizer.zero_grad()
        loss.backward()
        step()
    return loss


def _finite_mse(model: Ensemble, inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    :return: holdout error of each member, (M,)
    :raises ValueError: it is not finite
    """
    mse = _member_mse(model, inputs, targets)
    if not th.isfinite(mse).all():
        # Mark the model as unfitted: even with restored weights, the optimizer's state would be corrupt
        model.holdout_mse.copy_(mse)
        raise ValueError(
            "The dynamics model diverged: its holdout error is not finite. Check the range of the observations and rewards, "
            "scale them, or lower the learning rate of the model."
        )
    return mse


@th.no_grad()
def _member_mse(model: Ensemble, inputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """Mean squared error of each member over rows and outputs, (M,)."""
    total = th.zeros_like(model.holdout_mse)
    for x, y in zip(inputs.split(1024), targets.split(1024), strict=True):
        mean, _ = model(x.expand(model.ensemble_size, *x.shape))
        total += ((mean - y) ** 2).sum(dim=(1, 2))
    return total / targets.numel()


@th.no_grad()
def _holdout_errors(model: Ensemble, inputs: th.Tensor, targets: th.Tensor) -> dict[str, float]:
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
