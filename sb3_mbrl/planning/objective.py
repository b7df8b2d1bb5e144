"""The objective of planners: the return that a model predicts for a plan."""

from collections.abc import Callable, Sequence

import torch as th

from sb3_mbrl.common.arguments import BOOLEAN, DISCOUNT, check_arguments, integer, number
from sb3_mbrl.common.model import PROPAGATION, SPREAD_SIGNS, VALUE_MODE, DynamicsModel, Members, ModelStep
from sb3_mbrl.common.random import Generators
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.planning.planner import Score

ValueFn = Callable[[th.Tensor], th.Tensor]
"""``f(raw observations (B, O)) -> values (B,)``."""

STATES_AT_ONCE = 8_192
"""Largest number of states stepped together. It bounds the memory; stepping twice as many takes more than twice the time."""

OBJECTIVE = {
    "discount": DISCOUNT,
    "n_particles": integer(1, 10**6),
    "propagation": PROPAGATION,
    "deterministic": BOOLEAN,
    "value_mode": VALUE_MODE,
    "kappa": number(0),
    "uncertainty_penalty": number(),
    "action_repeat": integer(1, 10**4),
}
"""Rules for the arguments of :class:`ModelObjective`."""


class ModelObjective:
    """
    The return of action sequences in a model::

        sum over t < H of discount^t r_t  +  discount^H terminal_value(s_H)

    where rewards stop at a predicted termination. A sequence is evaluated by ``n_particles`` rollouts. Its value is the mean
    of their returns, or a confidence bound: ``mean - kappa * std`` (pessimistic) or ``mean + kappa * std`` (optimistic), where
    the standard deviation is that of the particles' returns. With ``"tsinf"`` each particle keeps its member, so this
    deviation contains the members' disagreement about the return as well as the noise; with ``"ts1"`` disagreement averages
    out along the plan.

    If a particle diverges (NaN, infinite), the value of its sequence is NaN, which planners rank last.

    :param model: the model
    :param discount: discount of rewards, per model step (PETS: 1)
    :param n_particles: rollouts of each sequence (PETS: 20)
    :param propagation: ``"ts1"``: an elite drawn for each particle and step; ``"tsinf"``: particle p keeps elite p mod E,
        best first (PETS's default); ``"expectation"``: the elites' average, one particle
    :param deterministic: predict means instead of samples
    :param value_mode: ``"expected"``, ``"pessimistic"`` or ``"optimistic"``
    :param kappa: weight of the standard deviation of the particles' returns, for ``"pessimistic"`` and ``"optimistic"``
    :param uncertainty_penalty: lambda of MOPO (Yu et al. 2020, https://arxiv.org/abs/2005.13239): this number times the
        elites' disagreement (``ModelStep.disagreement``: the norm of the standard deviations of their means, in the
        observation's units) is subtracted from each reward. A negative number is a bonus, with which plans seek states that
        the elites disagree about. Any number but 0 requires evaluating all elites
    :param reward_fn: replaces the model's reward, so that one model serves many tasks: ``f(obs, action, next_obs)`` of raw
        observations and of actions in the environment's scale
    :param termination_fn: replaces the model's termination: ``f(obs, action, next_obs) -> (B,) bool``, with the same arguments
        as ``reward_fn``
    :param terminal_value: value of the last observation of a plan; None: 0
    :param action_repeat: model steps for each action of a sequence
    :raises ValueError: a name is not known, or a number is out of its range
    """

    def __init__(
        self,
        model: DynamicsModel,
        discount: float = 1.0,
        n_particles: int = 1,
        propagation: str = "tsinf",
        deterministic: bool = False,
        value_mode: str = "expected",
        kappa: float = 1.0,
        uncertainty_penalty: float = 0.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        terminal_value: ValueFn | None = None,
        action_repeat: int = 1,
    ):
        check_arguments(locals(), OBJECTIVE)
        if propagation == "expectation" and n_particles > 1:
            raise ValueError(f"propagation='expectation' has no noise: n_particles must be 1, got {n_particles}.")
        if value_mode != "expected" and n_particles == 1:
            raise ValueError(
                f"value_mode={value_mode!r} needs the standard deviation of several particles: n_particles must be at least "
                "2, got 1. The number of elites is a good choice, as each particle then has its own."
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
        self.n_particles = int(n_particles)  # PyTorch's split does not accept NumPy's integers
        self.propagation = propagation
        self.deterministic = deterministic
        self.value_mode = value_mode
        self.kappa = kappa
        self.uncertainty_penalty = uncertainty_penalty
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
        return self.score_states(self.model.start(obs), generator)

    def score_states(self, starts: th.Tensor, generator: Generators = None) -> Score:
        """
        :param starts: states of the model to plan from, (B, S)
        :param generator: source of members and noise; one for all, or one for each of the B environments
        :return: the function that a planner maximises: (B, N, H, A) -> (B, N)
        :raises ValueError: the number of generators is not 1 or B
        """
        if isinstance(generator, Sequence) and len(generator) != len(starts):
            raise ValueError(f"Pass one generator, or one for each of the {len(starts)} environments; got {len(generator)}.")

        step = self._step_of_a_plan()

        def returns(actions: th.Tensor) -> th.Tensor:
            n_envs, n = actions.shape[:2]
            # The pieces of an environment do not depend on the number of environments, and so neither does its noise
            states_at_once = self._states_at_once(n)
            envs_at_once = max(1, states_at_once // (n * self.n_particles))
            at_once = max(1, states_at_once // self.n_particles)
            values = []
            for first in range(0, n_envs, envs_at_once):
                envs = slice(first, first + envs_at_once)
                own = generator if generator is None or isinstance(generator, th.Generator) else generator[envs]
                pieces = [self._returns(step, starts[envs], piece, own) for piece in actions[envs].split(at_once, dim=1)]
                values.append(th.cat(pieces, dim=1))
            return th.cat(values)

        return returns

    def _states_at_once(self, n: int) -> int:
        """Largest number of states stepped together, if there are ``n`` candidates for each environment."""
        return STATES_AT_ONCE

    def _step_of_a_plan(self) -> Callable[..., ModelStep]:
        """The function that steps the model for all candidates of one plan."""
        return self.model.step

    def _returns(
        self, step_model: Callable[..., ModelStep], starts: th.Tensor, actions: th.Tensor, generator: Generators
    ) -> th.Tensor:
        """Values (B, N) of actions (B, N, H, A) from starts (B, S): steps B x particles x N states of the model."""
        n_envs, n, horizon, _ = actions.shape
        states = starts.repeat_interleave(self.n_particles * n, dim=0)
        plans = actions.unsqueeze(1).expand(-1, self.n_particles, -1, -1, -1).flatten(0, 2)
        members = self._members(n_envs, n)

        penalized = self.uncertainty_penalty != 0
        total = th.zeros(len(states), device=states.device)
        alive = th.ones(len(states), dtype=th.bool, device=states.device)
        weight = 1.0
        for t in range(horizon * self.action_repeat):
            action = plans[:, t // self.action_repeat]
            step = step_model(states, action, generator, members, self.deterministic, uncertainty=penalized)
            reward, terminated = self._outcome(states, action, step)
            if penalized:
                reward = reward - self.uncertainty_penalty * step.disagreement
            total = total + weight * th.where(alive, reward, 0.0)
            # A prediction that is not finite makes the return NaN, unless the task has ended before
            total = th.where(alive & ~_are_finite(step.next_obs), th.nan, total)
            # A state is frozen once its task has ended, because NaN in later predictions would reach the gradients of earlier
            # ones
            states = th.where(alive.unsqueeze(1), step.next_obs, states)
            alive = alive & ~terminated
            weight *= self.discount
        value = self._terminal_values(states, generator)
        if value is not None:
            total = total + weight * th.where(alive, value, 0.0)
        total = th.where(th.isfinite(total), total, th.nan)
        return self._over_particles(total.reshape(n_envs, self.n_particles, n))

    def _outcome(self, states: th.Tensor, action: th.Tensor, step: ModelStep) -> tuple[th.Tensor, th.Tensor]:
        """Reward and termination of a step, (B,) each: the model's, or those of the user's functions."""
        reward, terminated = step.reward, step.terminated
        if self.reward_fn is None and self.termination_fn is None:
            return reward, terminated
        seen = (self.model.observe(states), self.model.unscale_action(action), self.model.observe(step.next_obs))
        if self.reward_fn is not None:
            reward = call("reward_fn", self.reward_fn, *seen)
        if self.termination_fn is not None:
            terminated = call("termination_fn", self.termination_fn, *seen)
        return reward, terminated

    def _terminal_values(self, states: th.Tensor, generator: Generators) -> th.Tensor | None:
        """Value of the last states of plans, (B,); None if it is 0 for all."""
        if self.terminal_value is None:
            return None
        return call("terminal_value", self.terminal_value, self.model.observe(states))

    def _members(self, n_envs: int, n: int) -> Members:
        if self.propagation == "ts1":
            return "random"
        if self.propagation == "expectation":
            return "expectation"
        elites = self.model.elites
        particle = th.arange(self.n_particles, device=elites.device) % len(elites)
        # Sorted, so that the ensemble need not gather the states of each member
        return elites[particle].sort().values.repeat_interleave(n).repeat(n_envs)

    def _over_particles(self, returns: th.Tensor) -> th.Tensor:
        mean = returns.mean(dim=1)
        if self.value_mode == "expected":
            return mean
        return mean + SPREAD_SIGNS[self.value_mode] * self.kappa * returns.std(dim=1, correction=0)


def _are_finite(states: th.Tensor) -> th.Tensor:
    """``isfinite(states).all(dim=1)``, five times as fast: zero times NaN or infinity is NaN."""
    return (0 * states).sum(dim=1) == 0
