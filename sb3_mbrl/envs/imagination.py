"""A batch of imagined branches on tensors, on which both imagined environments are built."""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_mbrl.common.actions import action_bounds, one_hot, scale
from sb3_mbrl.common.model import SPREAD_SIGNS, DynamicsModel, Members, ModelStep, check_fitted
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.envs.bounds import prediction_bounds, rounding_tolerance
from sb3_mbrl.envs.rules import ImaginationRules

StartFn = Callable[[int, th.Generator], th.Tensor | np.ndarray]
"""``f(n, generator) -> raw observations (n, O)`` at which branches begin."""


class ImaginedStep(NamedTuple):
    """
    :param obs: raw observation after the step, finite and within bounds, (n, O) float32
    :param reward: (n,) float32
    :param terminated: the task ended, (n,) bool
    :param truncated: the episode has lasted ``max_episode_steps``, or the model diverged, (n,) bool
    """

    obs: th.Tensor
    reward: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor


class Imagination:
    """
    ``n`` branches, stepped together in a model.

    Predictions are clipped to bounds; reward and termination are computed from the prediction before it is clipped. A
    prediction that is not finite truncates its branch in the previous state, with reward 0, so that divergence is never
    rewarded and no value is bootstrapped from NaN.

    :param dynamics: the model, fitted if it is learned
    :param n: number of branches
    :param start_states: raw observations (M, O) to draw from uniformly, or ``f(n, generator) -> (n, O)``
    :param rules: how branches continue, which rewards they return, and when they end
    :param observation_bounds: lowest and highest observation, (O,) each, tightened to the space's; an ``ObservedRange``,
        which is given a margin; None: the space's
    :raises ValueError: the model is not fitted or cannot start from observations; start states have another shape, are not
        finite, or are out of bounds
    """

    def __init__(
        self,
        dynamics: DynamicsModel,
        n: int,
        start_states: np.ndarray | th.Tensor | StartFn,
        rules: ImaginationRules,
        observation_bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        _check_model(dynamics, rules)
        self.dynamics = dynamics
        self.n = n
        self.rules = rules
        self.generator = th.Generator(device=dynamics.device)
        self.generator.seed()
        self.set_starts(start_states, observation_bounds)

        self.obs = th.empty(0)
        self.states = th.empty(0)  # states of the model, which need not be observations
        self.members = th.empty(0, dtype=th.long)
        self.steps = th.empty(0, dtype=th.long)

    def set_starts(
        self,
        start_states: np.ndarray | th.Tensor | StartFn,
        observation_bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """
        Set the start states of future branches; running ones are unaffected.

        :param start_states: raw observations (M, O) to draw from uniformly, or ``f(n, generator) -> (n, O)``
        :param observation_bounds: lowest and highest observation, (O,) each, tightened to the space's; an ``ObservedRange``,
            which is given a margin; None: the space's
        :raises ValueError: start states have another shape, are not finite, or are out of bounds
        """
        self.low, self.high = prediction_bounds(self.dynamics.observation_space, observation_bounds, self.dynamics.device)
        if callable(start_states):
            self._pool, self._draw = None, start_states
            probe = self._checked(start_states(2, th.Generator(self.dynamics.device).manual_seed(0)), 2)
        else:
            self._pool = self._checked(start_states)
            probe = self._pool[:1].expand(2, -1)
        self._check_starts_anywhere(probe)

    @th.no_grad()
    def reset(self, which: th.Tensor | None = None) -> th.Tensor:
        """
        Begin branches anew.

        :param which: the branches, (K,) long; None: all
        :return: their raw observations, (K, O) float32
        """
        starts = self._starts(self.n if which is None else len(which))
        states, members = self.dynamics.start(starts), self._draw_members(len(starts))
        if which is None:
            self.obs, self.states, self.members = starts.clone(), states.clone(), members
            phase = th.arange(self.n, device=starts.device) * self.rules.max_episode_steps // self.n
            self.steps = phase if self.rules.stagger else th.zeros_like(phase)
        else:
            self.obs[which], self.states[which], self.members[which], self.steps[which] = starts, states, members, 0
        return starts

    @th.no_grad()
    def step(self, actions: th.Tensor) -> ImaginedStep:
        """
        Step all branches. Those that end are not reset: that is up to the caller.

        :param actions: in [-1, 1] or one-hot, (n, A)
        :return: observations, rewards, and which branches ended
        """
        self.require_reset()
        step = self.dynamics.step(
            self.states, actions, self.generator, self._step_members(), self.rules.deterministic, self.rules.needs_uncertainty
        )
        reward, terminated = self._reward_and_termination(step)
        obs = self.dynamics.observe(step.next_obs)
        finite = obs.isfinite().all(dim=1) & reward.isfinite()

        self.states = th.where(finite.unsqueeze(1), step.next_obs, self.states)
        obs = th.where(finite.unsqueeze(1), obs, self.obs)
        self.obs = th.maximum(th.minimum(obs, self.high), self.low)
        clipped = (self.obs != obs).any(dim=1).nonzero().squeeze(1)
        if len(clipped) > 0:
            self.states[clipped] = self.dynamics.start(self.obs[clipped])

        self.steps = self.steps + 1
        reward = th.where(finite, reward, 0.0)
        truncated = ~finite | (self.steps >= self.rules.max_episode_steps)
        return ImaginedStep(self.obs.clone(), reward, terminated & finite, truncated)

    def require_reset(self) -> None:
        """
        :raises ResetNeeded: no branch has begun
        """
        if len(self.states) == 0:
            raise gym.error.ResetNeeded("Call reset() first.")

    def _step_members(self) -> Members:
        """The argument ``members`` of the model's ``step``."""
        if self.rules.propagation == "tsinf":
            return self.members
        return "random" if self.rules.propagation == "ts1" else "expectation"

    def _reward_and_termination(self, step: ModelStep) -> tuple[th.Tensor, th.Tensor]:
        """Reward and termination of a step, after the rules about uncertainty have been applied, (n,) each."""
        rules = self.rules
        if not rules.needs_uncertainty:
            return step.reward, step.terminated
        disagreement = step.disagreement
        assert step.epistemic_std is not None
        reward = step.reward + SPREAD_SIGNS[rules.value_mode] * rules.reward_kappa * step.epistemic_std[:, -1]
        reward = reward - rules.uncertainty_penalty * disagreement
        if rules.max_disagreement is None or rules.halt_reward is None:
            return reward, step.terminated
        halted = disagreement > rules.max_disagreement
        return th.where(halted, rules.halt_reward, reward), step.terminated | halted

    def _draw_members(self, k: int) -> th.Tensor:
        elites = self.dynamics.elites
        if self.rules.propagation != "tsinf":
            return elites[:1].expand(k).clone()  # a placeholder: only "tsinf" uses members
        return elites[th.randint(len(elites), (k,), generator=self.generator, device=elites.device)]

    def _starts(self, k: int) -> th.Tensor:
        if self._pool is None:
            return self._checked(self._draw(k, self.generator), k)
        return self._pool[th.randint(len(self._pool), (k,), generator=self.generator, device=self._pool.device)]

    def _checked(self, states: np.ndarray | th.Tensor, k: int | None = None) -> th.Tensor:
        """
        :param states: start states
        :param k: required number of states; None: at least one
        :return: the states, (M, O) float32, within bounds
        :raises ValueError: a state has another shape, is not finite, or is out of bounds by more than rounding errors
        """
        states = as_states(states, len(self.low), self.dynamics.device, k)
        slack = rounding_tolerance(states)
        outside = (states < self.low - slack) | (states > self.high + slack)
        if outside.any():
            row, entry = outside.nonzero()[0].tolist()
            raise ValueError(
                f"start_states[{row}, {entry}] = {states[row, entry]:.4g} lies outside of the bounds of predictions: entry "
                f"{entry} is bounded by [{self.low[entry]:.4g}, {self.high[entry]:.4g}] (from observation_bounds, the "
                "observed range with a margin, or the observation space). Pass states that are raw, not normalised, and near "
                "the data, or widen observation_bounds."
            )
        return th.maximum(th.minimum(states, self.high), self.low)

    def _check_starts_anywhere(self, two_states: th.Tensor) -> None:
        """Refuse simulators of live environments, which cannot start from an arbitrary observation."""
        try:
            for states in (two_states[:1], two_states):
                self.dynamics.start(states)
        except ValueError as error:
            raise ValueError(
                f"This model cannot start from arbitrary observations, as imagined branches must: {error}"
            ) from error


def as_states(states: np.ndarray | th.Tensor, n_obs: int, device: th.device, k: int | None = None) -> th.Tensor:
    """
    :param states: start states
    :param n_obs: O
    :param device: device of the result
    :param k: required number of states; None: at least one
    :return: the states, (M, O) float32
    :raises ValueError: they have another shape, or are not finite
    """
    states = th.as_tensor(states, dtype=th.float32, device=device)
    if states.dim() != 2 or states.shape[1] != n_obs or len(states) == 0 or (k is not None and len(states) != k):
        raise ValueError(
            f"start_states must have shape ({'M' if k is None else k}, {n_obs}), one raw observation in each row; got "
            f"{tuple(states.shape)}."
        )
    if not states.isfinite().all():
        raise ValueError("start_states must be finite, but NaN or infinity is among them. Remove these states.")
    return states


def _check_model(dynamics: DynamicsModel, rules: ImaginationRules) -> None:
    check_spaces(dynamics.observation_space, dynamics.action_space)
    check_fitted(dynamics)
    if rules.value_mode != "expected" and getattr(dynamics, "reward_fn", None) is not None:
        raise ValueError(
            f"value_mode={rules.value_mode!r} has no effect, because the reward is known (reward_fn) and members do not "
            "disagree about it. Use uncertainty_penalty, which measures disagreement about the next observation."
        )


def to_model(actions: np.ndarray, dynamics: DynamicsModel) -> th.Tensor:
    """
    :param actions: as the environment's ``step`` takes them, (n, \\*action_space.shape)
    :param dynamics: the model
    :return: actions as the model's ``step`` takes them: in [-1, 1], clipped, or one-hot, (n, A) float32 on the device
    """
    space = dynamics.action_space
    if isinstance(space, spaces.Discrete):
        return one_hot(actions, space).to(dynamics.device)
    low, high = action_bounds(space)
    flat = th.as_tensor(np.asarray(actions), dtype=th.float32).reshape(len(actions), -1)
    return scale(flat, low, high).clamp(-1.0, 1.0).to(dynamics.device)
