"""What a plan is worth: the return that a model predicts for it."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch as th

from sb3_mbrl.common.arguments import BOOLEAN, DISCOUNT, check_arguments, integer, number
from sb3_mbrl.common.model import DynamicsModel, Members, ModelStep
from sb3_mbrl.common.random import Generators
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.planning.planner import Score

ValueFn = Callable[[th.Tensor], th.Tensor]
"""``f(raw observations (B, O)) -> values (B,)``."""

CHUNK = 8_192
"""Rows stepped at a time: bounds the memory, and twice as many cost more than twice as much."""

PROPAGATIONS = ("ts1", "tsinf", "expectation")
VALUE_MODES = ("expected", "pessimistic", "optimistic")

OBJECTIVE = {
    "discount": DISCOUNT,
    "n_particles": integer(1, 10**6),
    "deterministic": BOOLEAN,
    "kappa": number(0),
    "disagreement_weight": number(),
    "action_repeat": integer(1, 10**4),
}
"""Rules for the arguments of :class:`ModelObjective`."""


class ModelObjective:
    """
    The return of action sequences in a model::

        sum over t < H of discount^t r_t  +  discount^H terminal_value(s_H)

    from which rewards stop at a predicted termination. Over ``n_particles`` returns R_p of a sequence, one for each particle,
    it is their mean, or ``mean - kappa * std`` (pessimistic), or ``mean + kappa * std`` (optimistic). With ``"tsinf"`` a
    particle keeps its member, so that their standard deviation is what the members disagree on (and noise); with ``"ts1"``
    disagreement averages out along the plan.

    A sequence with a particle that diverges (NaN, infinite) is worth NaN, which planners rank last.

    :param model: to step
    :param discount: of rewards, per model step (PETS: 1)
    :param n_particles: rows stepped for each sequence (PETS: 20)
    :param propagation: ``"ts1"``: an elite drawn for each particle and step; ``"tsinf"``: particle p keeps elite p mod E,
        best first (PETS's default); ``"expectation"``: the elites' average, one particle
    :param deterministic: means instead of samples of the predicted distributions
    :param value_mode: ``"expected"``, ``"pessimistic"`` or ``"optimistic"``
    :param kappa: standard deviations away from the mean, for the latter two
    :param disagreement_weight: added to each reward, times the Euclidean norm of the elites' disagreement about the next
        observation, in its own units: negative is a penalty, positive a bonus. It costs an evaluation of all elites
    :param reward_fn: takes the place of the model's reward: ``f(obs, action, next_obs)`` on raw observations and actions in
        the environment's scale, so that one model serves many tasks
    :param termination_fn: takes the place of the model's termination: ``f(obs, action, next_obs) -> (B,) bool``, called as
        ``reward_fn`` is
    :param terminal_value: value of the observation where the plan ends; None: 0
    :param action_repeat: model steps for each action of a sequence
    :raises ValueError: a name that is not known, or a number out of its range
    """

    chunk = CHUNK

    def __init__(
        self,
        model: DynamicsModel,
        discount: float = 1.0,
        n_particles: int = 1,
        propagation: str = "tsinf",
        deterministic: bool = False,
        value_mode: str = "expected",
        kappa: float = 1.0,
        disagreement_weight: float = 0.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        terminal_value: ValueFn | None = None,
        action_repeat: int = 1,
    ):
        check_arguments(locals(), OBJECTIVE)
        if propagation not in PROPAGATIONS:
            raise ValueError(f"propagation must be one of {PROPAGATIONS}, got {propagation!r}.")
        if value_mode not in VALUE_MODES:
            raise ValueError(f"value_mode must be one of {VALUE_MODES}, got {value_mode!r}.")
        if propagation == "expectation" and n_particles > 1:
            raise ValueError(f"propagation='expectation' has no noise: n_particles must be 1, got {n_particles}.")
        if value_mode != "expected" and n_particles == 1:
            raise ValueError(
                f"value_mode={value_mode!r} compares particles: n_particles must be at least 2 (the number of elites gives "
                "each its own)."
            )
        probe(
            model.observation_space,
            model.action_space,
            model.device,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            terminal_value=terminal_value,
        )
        self.model = model
        self.discount = discount
        self.n_particles = int(n_particles)  # PyTorch splits by no integer of NumPy
        self.propagation = propagation
        self.deterministic = deterministic
        self.value_mode = value_mode
        self.kappa = kappa
        self.disagreement_weight = disagreement_weight
        self.reward_fn = reward_fn
        self.termination_fn = termination_fn
        self.terminal_value = terminal_value
        self.action_repeat = action_repeat

    def score(self, obs: th.Tensor, generator: Generators = None) -> Score:
        """
        :param obs: raw observations to plan from, (B, O)
        :param generator: source of members and noise; one for all, or one for each of the B environments
        :return: the function that a planner maximises: (B, N, H, A) -> (B, N)
        """
        return self.score_rows(self.model.start(obs), generator)

    def score_rows(self, starts: th.Tensor, generator: Generators = None) -> Score:
        """
        :param starts: rows of the model to plan from, (B, S)
        :param generator: source of members and noise; one for all, or one for each of the B environments
        :return: the function that a planner maximises: (B, N, H, A) -> (B, N)
        :raises ValueError: another number of generators
        """
        if isinstance(generator, Sequence) and len(generator) != len(starts):
            raise ValueError(f"Pass one generator, or one for each of the {len(starts)} environments; got {len(generator)}.")

        step = self._step_of_a_plan()

        def returns(actions: th.Tensor) -> th.Tensor:
            n_envs, n = actions.shape[:2]
            # Whole environments first: how one is cut in pieces, and so its noise, must not depend on the others
            envs_at_once = max(1, self.chunk // (n * self.n_particles))
            at_once = max(1, self.chunk // self.n_particles)
            rows = []
            for first in range(0, n_envs, envs_at_once):
                envs = slice(first, first + envs_at_once)
                own = generator if generator is None or isinstance(generator, th.Generator) else generator[envs]
                pieces = [self._returns(step, starts[envs], piece, own) for piece in actions[envs].split(at_once, dim=1)]
                rows.append(th.cat(pieces, dim=1))
            return th.cat(rows)

        return returns

    def _step_of_a_plan(self) -> Callable[..., ModelStep]:
        """The function that steps the model for all candidates of one plan."""
        return self.model.step

    def _returns(
        self, step_model: Callable[..., ModelStep], starts: th.Tensor, actions: th.Tensor, generator: Generators
    ) -> th.Tensor:
        """(B, S) and (B, N, H, A) -> (B, N); the rows of the model are B x particles x N."""
        n_envs, n, horizon, _ = actions.shape
        rows = starts.repeat_interleave(self.n_particles * n, dim=0)
        plans = actions.unsqueeze(1).expand(-1, self.n_particles, -1, -1, -1).flatten(0, 2)
        members = self._members(n_envs, n)

        total = th.zeros(len(rows), device=rows.device)
        alive = th.ones(len(rows), dtype=th.bool, device=rows.device)
        weight = 1.0
        for t in range(horizon * self.action_repeat):
            action = plans[:, t // self.action_repeat]
            step = step_model(rows, action, generator, members, self.deterministic, uncertainty=self.disagreement_weight != 0)
            reward, terminated = self._outcome(rows, action, step)
            if self.disagreement_weight != 0:
                assert step.epistemic_std is not None
                reward = reward + self.disagreement_weight * step.epistemic_std[:, :-1].norm(dim=1)
            total = total + weight * th.where(alive, reward, 0.0)
            # What comes after the end is no prediction, however it looks; before it, a NaN has to be seen
            total = th.where(alive & ~_are_finite(step.next_obs), th.nan, total)
            # A row that has ended stands still: where it would go could spoil the gradient of what came before
            rows = th.where(alive.unsqueeze(1), step.next_obs, rows)
            alive = alive & ~terminated
            weight *= self.discount
        value = self._value_of_the_end(rows, generator)
        if value is not None:
            total = total + weight * th.where(alive, value, 0.0)
        total = th.where(th.isfinite(total), total, th.nan)
        return self._over_particles(total.reshape(n_envs, self.n_particles, n))

    def _outcome(self, rows: th.Tensor, action: th.Tensor, step: ModelStep) -> tuple[th.Tensor, th.Tensor]:
        """Reward and termination of a step, (B,) each: the model's, or those of the user's functions."""
        reward, terminated = step.reward, step.terminated
        if self.reward_fn is None and self.termination_fn is None:
            return reward, terminated
        seen = (self.model.observe(rows), self.model.unscale_action(action), self.model.observe(step.next_obs))
        if self.reward_fn is not None:
            reward = call("reward_fn", self.reward_fn, *seen)
        if self.termination_fn is not None:
            terminated = call("termination_fn", self.termination_fn, *seen)
        return reward, terminated

    def _value_of_the_end(self, rows: th.Tensor, generator: Generators) -> th.Tensor | None:
        """Value of the rows of the model where a plan ends, (B,); None if it is 0 for all."""
        if self.terminal_value is None:
            return None
        return call("terminal_value", self.terminal_value, self.model.observe(rows))

    def _members(self, n_envs: int, n: int) -> Members:
        if self.propagation == "ts1":
            return "random"
        if self.propagation == "expectation":
            return "expectation"
        elites = self.model.elites
        particle = th.arange(self.n_particles, device=elites.device) % len(elites)
        # In order: the ensemble need not gather the rows of each member
        return elites[particle].sort().values.repeat_interleave(n).repeat(n_envs)

    def _over_particles(self, returns: th.Tensor) -> th.Tensor:
        mean = returns.mean(dim=1)
        if self.value_mode == "expected":
            return mean
        sign: Literal[-1, 1] = -1 if self.value_mode == "pessimistic" else 1
        return mean + sign * self.kappa * returns.std(dim=1, correction=0)


def _are_finite(rows: th.Tensor) -> th.Tensor:
    """``isfinite(rows).all(dim=1)``, five times as fast: zero times what is not finite is NaN."""
    return (0 * rows).sum(dim=1) == 0
