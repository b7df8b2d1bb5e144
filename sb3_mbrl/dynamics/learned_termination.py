"""A classifier of terminations, learned from real transitions, for tasks without a known rule."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from torch.nn import functional as F

from sb3_mbrl.common.actions import action_dim
from sb3_mbrl.common.arguments import check_arguments, integer, list_of, number
from sb3_mbrl.common.types import TerminationFn, Transitions
from sb3_mbrl.diagnostics.statistics import termination_scores
from sb3_mbrl.dynamics.data import CheckedTransitions
from sb3_mbrl.tasks.termination import known_termination

_HOLDOUT_EVERY = 5
"""One in this many rows of each class is held out; none if a class has fewer rows, because all of them are needed to train."""
_PATIENCE = 5
"""Epochs without a better holdout loss before the fit stops."""
_BATCHES_PER_EPOCH = 32
"""Independent of the size of the data, so that few rows get enough steps and a refit on a large buffer stays cheap."""
_EPOCHS_WITHOUT_HOLDOUT = 10
"""A low number, because few terminations are soon memorised and later refits continue the training."""
_PRIOR_SHARE = 0.5
"""Share of the log-odds of the true frequencies that is added to the logits learned on balanced minibatches. On Hopper, 0 gave
three false alarms for every real termination, and 1 (the true frequencies) missed a third of the terminations; 0.5 had the
best F1 score on Hopper, Walker2d, Ant and InvertedPendulum (6000 random steps each)."""
_MIN_STD = 1e-6
"""Inputs with a smaller standard deviation than this (in their own unit) are not scaled."""

_ACCEPTED = {
    "observation_dim": integer(1, 10**6),
    "action_dim": integer(1, 10**6),
    "net_arch": list_of(integer(1, 100_000), fewest=0),
    "learning_rate": number(0),
}

_ACCEPTED_IN_FIT = {
    "max_epochs": integer(1, 10**6),
    "batch_size": integer(1, 10**7),
    "max_gradient_steps": integer(0) | None,
}


class LearnedTermination(nn.Module):
    """
    A binary classifier: does the task terminate at this (observation, action, next observation)?

    Terminations are rare (1 step in 20 to 1 in 1000), so minibatches are drawn half from the terminations and half
    from the rest; half of the log-odds of the true frequencies is added back afterwards, so that misses and false alarms
    are about equally many. Until it has been fitted to a termination, the classifier predicts none.

    ``state_dict`` holds float tensors only; ``optimizer`` is separate. No call draws from the global random stream.

    :param observation_dim: O
    :param action_dim: A
    :param net_arch: units of the hidden layers
    :param learning_rate: learning rate of Adam
    :param generator: draws the initial weights; ``None`` takes a new one seeded with 0
    """

    mean: th.Tensor
    std: th.Tensor
    prior_shift: th.Tensor
    termination_seen: th.Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        net_arch: Sequence[int] = (200, 200),
        learning_rate: float = 1e-3,
        generator: th.Generator | None = None,
    ) -> None:
        check_arguments(locals(), _ACCEPTED)
        super().__init__()
        self.net_arch = tuple(net_arch)
        self.learning_rate = learning_rate
        input_dim = 2 * observation_dim + action_dim
        generator = th.Generator().manual_seed(0) if generator is None else generator
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip([input_dim, *net_arch], [*net_arch, 1], strict=True):
            layers += [_linear(fan_in, fan_out, generator), nn.SiLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", th.zeros(input_dim))
        self.register_buffer("std", th.ones(input_dim))
        self.register_buffer("prior_shift", th.zeros(()))
        # 0.0 or 1.0: a float, so that code that does arithmetic on every entry of a state dict works
        self.register_buffer("termination_seen", th.zeros(()))
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=learning_rate)

    def __repr__(self) -> str:
        seen = bool(self.termination_seen)
        return f"{type(self).__name__}(input_dim={len(self.mean)}, net_arch={self.net_arch}, termination_seen={seen})"

    def logits(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions in the scale of the fit, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: log-odds of a termination, (B,)
        """
        return self._balanced_logits(th.cat((obs, action, next_obs), dim=-1)) + self.prior_shift

    def _balanced_logits(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: raw inputs, (B, 2 O + A)
        :return: log-odds of a termination under equally frequent classes, as in the minibatches, (B,)
        """
        return self.network((inputs.to(self.mean.dtype) - self.mean) / self.std).squeeze(-1)

    def probability(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        Differentiable with respect to all arguments.

        :param obs: raw observations, (B, O)
        :param action: actions in the scale of the fit, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: probability of a termination under a prior between the true frequency and one half (see the class), (B,) in
            [0, 1]; 0 until the classifier has been fitted to a termination
        """
        return th.sigmoid(self.logits(obs, action, next_obs)) * self.termination_seen

    @th.no_grad()
    def forward(self, obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, O)
        :param action: actions in the scale of the fit, (B, A)
        :param next_obs: raw next observations, (B, O)
        :return: whether the task ended, (B,) bool; ``True`` where ``next_obs`` is not finite
        """
        return (self.probability(obs, action, next_obs) > 0.5) | ~th.isfinite(next_obs).all(dim=-1)

    def fit(
        self,
        transitions: Transitions,
        generator: th.Generator | None = None,
        max_epochs: int = 50,
        batch_size: int = 256,
        max_gradient_steps: int | None = None,
    ) -> dict[str, float]:
        """
        Fit to all data, starting from the current weights and optimizer state.

        If both classes have at least 5 rows, every fifth row of each is held out; training stops after 5 epochs without a
        lower holdout loss, and the best weights are restored, which may be those before the fit. Otherwise all rows are
        trained on, for at most 10 epochs. If no transition terminated, the classifier is left unchanged.

        :param transitions: all real transitions so far, N rows, oldest first
        :param generator: draws the minibatches; ``None`` takes a new one seeded with 0
        :param max_epochs: largest number of epochs; an epoch has 32 minibatches, whatever N is
        :param batch_size: rows of a minibatch
        :param max_gradient_steps: largest number of gradient steps, even within an epoch; None: ``max_epochs`` is the only
            limit
        :return: ``epochs`` trained, ``loss`` (binary cross-entropy, nats), ``precision`` and ``recall`` (NaN without a
            termination), measured on the holdout rows, or on all rows when nothing was held out
        :raises ValueError: there are no transitions, or they are not finite
        """
        check_arguments(locals(), _ACCEPTED_IN_FIT)
        if not isinstance(transitions, CheckedTransitions):
            _require_finite(transitions)
        labels = transitions.terminated.to(self.mean.device)
        if not labels.any():
            return {"epochs": 0.0, "loss": 0.0, "precision": math.nan, "recall": math.nan}
        self.termination_seen.fill_(1.0)
        inputs = th.cat((transitions.observations, transitions.actions, transitions.next_observations), dim=-1).to(self.mean)
        train_rows, holdout_rows = _stratified_split(labels)
        self._set_statistics(inputs[train_rows], labels)

        generator = th.Generator().manual_seed(0) if generator is None else generator
        max_steps = _BATCHES_PER_EPOCH * (max_epochs if holdout_rows is not None else min(max_epochs, _EPOCHS_WITHOUT_HOLDOUT))
        max_steps = max_steps if max_gradient_steps is None else min(max_steps, max_gradient_steps)
        epochs = self._train(inputs, labels, train_rows, holdout_rows, generator, max_steps, batch_size)

        measured_rows = train_rows if holdout_rows is None else holdout_rows
        logits, labels = self._evaluate(inputs[measured_rows]), labels[measured_rows]
        return {"epochs": float(epochs), "loss": _loss(logits, labels), **termination_scores(logits > 0, labels)}

    def _set_statistics(self, inputs: th.Tensor, labels: th.Tensor) -> None:
        """
        :param inputs: raw inputs of the rows trained on, (N, 2 O + A)
        :param labels: whether the task ended, for all rows, held-out ones included, (N,) bool
        """
        frequency = float(labels.float().mean())
        one_class = frequency in (0.0, 1.0)
        self.prior_shift.fill_(0.0 if one_class else _PRIOR_SHARE * math.log(frequency / (1 - frequency)))
        inputs = inputs.double()  # a float32 sum over many rows loses digits
        std = inputs.std(dim=0, correction=0)
        self.mean.copy_(inputs.mean(dim=0))
        # A constant input carries no information; with a single row, all inputs are constant
        self.std.copy_(th.where(std < _MIN_STD, th.ones_like(std), std))

    def _train(
        self,
        inputs: th.Tensor,
        labels: th.Tensor,
        train_rows: th.Tensor,
        holdout_rows: th.Tensor | None,
        generator: th.Generator,
        max_steps: int,
        batch_size: int,
    ) -> int:
        """
        :param inputs: raw inputs, (N, 2 O + A)
        :param labels: whether the task ended, (N,) bool
        :param train_rows: indices of rows to train on
        :param holdout_rows: indices of rows for the stopping rule, or ``None``
        :param generator: draws the minibatches
        :param max_steps: largest number of gradient steps
        :param batch_size: rows of a minibatch
        :return: epochs trained
        """
        best_loss, best_weights, best_epoch = math.inf, None, 0
        epoch = 0
        while True:
            if holdout_rows is not None:
                loss = _loss(self._evaluate(inputs[holdout_rows]), labels[holdout_rows])
                if loss < best_loss:
                    best_loss, best_weights, best_epoch = loss, copy.deepcopy(self.network.state_dict()), epoch
            steps_left = max_steps - epoch * _BATCHES_PER_EPOCH
            if steps_left <= 0 or (holdout_rows is not None and epoch - best_epoch >= _PATIENCE):
                break
            for rows in _balanced_batches(labels, train_rows, batch_size, generator)[:steps_left]:
                self._update(inputs[rows], labels[rows])
            epoch += 1
        if best_weights is not None:
            self.network.load_state_dict(best_weights)
        return epoch

    def _update(self, inputs: th.Tensor, labels: th.Tensor) -> None:
        """
        One gradient step.

        :param inputs: raw inputs, (B, 2 O + A)
        :param labels: whether the task ended, (B,) bool
        """
        loss = F.binary_cross_entropy_with_logits(self._balanced_logits(inputs), labels.float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @th.no_grad()
    def _evaluate(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: raw inputs, (N, 2 O + A)
        :return: log-odds of a termination, (N,)
        """
        return self._balanced_logits(inputs) + self.prior_shift


def step_budget(taken: int, allowed: int | None) -> int:
    """
    The largest number of gradient steps of a learned termination: about as many as the fit of the dynamics took, so that it
    does not cost more.

    :param taken: gradient steps that the fit of the dynamics took
    :param allowed: limit on the gradient steps of that fit; None: there is none
    :return: ``taken``, or the number that a few terminations need if that is larger, but at most ``allowed``
    """
    budget = max(taken, _BATCHES_PER_EPOCH * _EPOCHS_WITHOUT_HOLDOUT)
    return budget if allowed is None else min(budget, allowed)


def check_termination_fn(termination_fn: TerminationFn | str | None) -> None:
    """
    :param termination_fn: the argument that a user passed
    :raises ValueError: it is not ``"auto"``, ``"learned"``, a function or None
    """
    if not (termination_fn is None or callable(termination_fn) or termination_fn in ("auto", "learned")):
        raise ValueError(
            "termination_fn must be 'auto', 'learned', a function or None (the task never terminates), got "
            f"{termination_fn!r}."
        )


def make_termination(
    termination_fn: TerminationFn | str | None,
    env: VecEnv | None,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    generator: th.Generator,
) -> TerminationFn | None:
    """
    Make the termination function that a user's argument names.

    :param termination_fn: ``"auto"`` (the rule of a known task, a learned termination for others), ``"learned"``, a function,
        or None
    :param env: the environment whose rule ``"auto"`` looks up; None: there is no environment, so ``"auto"`` learns
    :param observation_space: the environment's
    :param action_space: the environment's
    :param generator: draws the weights of a learned termination
    :return: the function, or None
    """
    check_termination_fn(termination_fn)
    if not isinstance(termination_fn, str):
        return termination_fn
    known = known_termination(env) if termination_fn == "auto" and env is not None else None
    if known is not None:
        return known
    obs_dim = int(np.prod(observation_space.shape or ()))
    return LearnedTermination(obs_dim, action_dim(action_space), generator=generator)


def _linear(fan_in: int, fan_out: int, generator: th.Generator) -> nn.Linear:
    """
    :param fan_in: number of inputs
    :param fan_out: number of outputs
    :param generator: draws the weights, instead of the global stream
    :return: a linear layer with PyTorch's initialisation, uniform in ±1/sqrt(fan_in)
    """
    layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=generator.device)
    limit = 1 / math.sqrt(fan_in)
    with th.no_grad():
        layer.weight.uniform_(-limit, limit, generator=generator)
        layer.bias.uniform_(-limit, limit, generator=generator)
    return layer


def _require_finite(transitions: Transitions) -> None:
    """
    :param transitions: real transitions
    :raises ValueError: there are none, or an entry is NaN or infinite
    """
    if len(transitions) == 0:
        raise ValueError("There are no transitions to fit the learned termination to. Collect at least one first.")
    for name in ("observations", "actions", "next_observations"):
        finite = th.isfinite(getattr(transitions, name)).all(dim=-1)
        if not finite.all():
            raise ValueError(
                f"Cannot fit the learned termination: `{name}` holds NaN or infinite values in {int((~finite).sum())} of "
                f"{len(transitions)} transitions (first: row {int((~finite).nonzero()[0])}). The environment returned them, "
                "usually from an unstable simulation or a sensor that drops out. Fix it there, for instance with a wrapper "
                "that ends the episode before the state diverges; `VecCheckNan` finds the step at which it happens."
            )


def _stratified_split(labels: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Hold out every fifth row rather than a random fifth: as new data is appended, a row that was held out once stays held out.
    This matters because the weights of an earlier fit compete for the best holdout loss, so they must not have been trained on
    these rows.

    :param labels: whether the task ended, (N,) bool
    :return: indices of rows to train on and of rows held out: a fifth of each class, or ``None`` if a class has fewer than 5
        rows
    """
    classes = [labels.nonzero().squeeze(-1), (~labels).nonzero().squeeze(-1)]
    if min(len(rows) for rows in classes) < _HOLDOUT_EVERY:
        return th.cat(classes), None
    held_out = [th.arange(len(rows), device=rows.device) % _HOLDOUT_EVERY == _HOLDOUT_EVERY - 1 for rows in classes]
    train_rows = th.cat([rows[~out] for rows, out in zip(classes, held_out, strict=True)])
    return train_rows, th.cat([rows[out] for rows, out in zip(classes, held_out, strict=True)])


def _balanced_batches(labels: th.Tensor, rows: th.Tensor, batch_size: int, generator: th.Generator) -> th.Tensor:
    """
    :param labels: whether the task ended, (N,) bool
    :param rows: indices of rows to draw from
    :param batch_size: rows of a minibatch
    :param generator: source of randomness
    :return: row indices of one epoch of minibatches, each half terminations and half others, drawn with replacement (from one
        class alone if the other is empty), (32, ``batch_size``)
    """
    positives, negatives = rows[labels[rows]], rows[~labels[rows]]
    n_positives = batch_size // 2 if len(negatives) else batch_size
    drawn = []
    for pool, count in ((positives, n_positives), (negatives, batch_size - n_positives)):
        if count:
            shape = (_BATCHES_PER_EPOCH, count)
            drawn.append(pool[th.randint(len(pool), shape, generator=generator, device=generator.device).to(rows.device)])
    return th.cat(drawn, dim=1)


def _loss(logits: th.Tensor, labels: th.Tensor) -> float:
    """
    :param logits: log-odds of a termination, (N,)
    :param labels: whether the task ended, (N,) bool
    :return: mean binary cross-entropy in nats
    """
    return float(F.binary_cross_entropy_with_logits(logits, labels.float()))
