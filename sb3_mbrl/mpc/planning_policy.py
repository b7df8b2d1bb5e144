"""The base class of policies that plan: it acts, and carries the plan of each environment from one step to the next."""

import operator
import time
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_mbrl.common.actions import floating_bounds, from_environment, to_environment, unscale
from sb3_mbrl.common.arguments import SEED, check_arguments, integer, number
from sb3_mbrl.common.model import DynamicsModel, check_fitted
from sb3_mbrl.planning import ModelObjective, Plan, Planner, PlannerState
from sb3_mbrl.planning.objective import OBJECTIVE
from sb3_mbrl.planning.planner import LONGEST_PLAN

ACTING = {
    "action_repeat": OBJECTIVE["action_repeat"],
    "replan_freq": integer(1, LONGEST_PLAN),
    "max_plan_seconds": number(0, above=True) | None,
    "seed": SEED,
}
"""Rules for the arguments of :class:`PlanningPolicy`."""


class MPCState(NamedTuple):
    """
    The state that ``predict(obs, state, episode_start)`` takes and returns, for B environments. The first four entries are a
    :class:`~sb3_mbrl.planning.PlannerState`.

    :param mean: (B, H, A)
    :param elites: (B, K, H, A)
    :param previous: (B, A)
    :param started: (B,) bool
    :param actions: the plan that is being executed, (B, H, A)
    :param n_executed: environment steps of that plan that have been executed, (B,)
    :param n_plans: plans made in this episode, (B,)
    """

    mean: th.Tensor
    elites: th.Tensor
    previous: th.Tensor
    started: th.Tensor
    actions: th.Tensor
    n_executed: th.Tensor
    n_plans: th.Tensor

    @property
    def planner(self) -> PlannerState:
        """The first four entries."""
        return PlannerState(*self[:4])


class PlanningPolicy(BasePolicy):
    """
    Base class of policies of Stable-Baselines3 that plan: ``predict`` plans in a model and returns the first action.

    A plan starts from the previous one, which is not kept in the policy. It is part of the state that ``predict(obs, state,
    episode_start)`` takes and returns, like the state of a recurrent policy, and is reset where ``episode_start`` is true.
    Without a state, each call plans from scratch.

    :param model: the model to plan in
    :param planner: optimises sequences of actions
    :param objective: values sequences of actions in the model
    :param action_repeat: environment steps for each planned action
    :param replan_freq: planned actions executed before the next plan is made
    :param max_plan_seconds: time limit of a call; an iteration of the planner that would end later is not begun
    :param seed: seed of the planner's samples for actions that are not deterministic
    :raises ValueError: a number is out of its range
    """

    def __init__(
        self,
        model: DynamicsModel,
        planner: Planner,
        objective: ModelObjective,
        action_repeat: int = 1,
        replan_freq: int = 1,
        max_plan_seconds: float | None = None,
        seed: int | None = None,
    ):
        check_arguments(locals(), ACTING)
        if replan_freq > planner.horizon:
            raise ValueError(f"replan_freq must lie between 1 and horizon={planner.horizon}, got {replan_freq}.")
        super().__init__(model.observation_space, model.action_space, squash_output=True)
        self.model = model
        self.planner = planner
        self.objective = objective
        self.action_repeat = action_repeat
        self.replan_freq = replan_freq
        self.max_plan_seconds = max_plan_seconds
        self.seed = None if seed is None else operator.index(seed)  # NumPy's integers too
        # The last plan and the states that it started from, for the log; predict does not read them
        self.last_plan: Plan | None = None
        self.last_states: th.Tensor | None = None
        # Draws the seeds of plans that are not deterministic
        self.generator = th.Generator()
        self.generator.seed() if self.seed is None else self.generator.manual_seed(self.seed)

    @property
    def device(self) -> th.device:
        return self.model.device

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Make a plan, or continue the one that is being executed.

        :param observation: observation of one environment, or of B
        :param state: the state that the last call returned; None: plan from scratch
        :param episode_start: where a new episode begins, (B,)
        :param deterministic: draw the same samples each time instead of new ones
        :return: actions in the environment's scale, and the state for the next call
        :raises ValueError: the model has not been fitted, the observation is not in the observation space, or ``state`` comes
            from another number of environments or from a policy with another horizon, planner or action space
        """
        check_observation(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        n_envs = len(obs) if isinstance(obs, th.Tensor) else len(next(iter(obs.values())))
        memory = self._memory(n_envs, state, episode_start)
        due = self._due(n_envs, state, episode_start)
        if due.any():
            memory = self._replan(obs, memory, due, deterministic)
        envs = th.arange(n_envs, device=self.device)
        actions = to_environment(memory.actions[envs, memory.n_executed // self.action_repeat], self.action_space)
        memory = memory._replace(n_executed=memory.n_executed + 1)
        return actions if vectorized else actions[0], tuple(tensor.cpu().numpy() for tensor in memory)

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        return from_environment(action, self.action_space)  # SB3's own method may overflow in the dtype of the space

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        return unscale(scaled_action, *floating_bounds(self.action_space))

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        """The first action of a plan without a warm start, (B, A) in [-1, 1] or one-hot."""
        memory = self._memory(len(observation), None, None)
        return self._replan(observation, memory, self._due(len(observation), None, None), deterministic).actions[:, 0]

    def _memory(self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> MPCState:
        """The state of all environments, on the device, reset where an episode begins."""
        initial = self.planner.initial_state(n_envs, self.model.action_dim, self.device)
        zeros = th.zeros(n_envs, dtype=th.long, device=self.device)
        fresh = MPCState(*initial, initial.mean, zeros, zeros)
        if state is None:
            return fresh
        _check_state(state, fresh)
        memory = MPCState(*(th.as_tensor(array, device=self.device) for array in state))
        if episode_start is None:
            return memory
        begins = th.as_tensor(np.asarray(episode_start, dtype=bool), device=self.device).reshape(-1)
        if len(begins) != n_envs:
            raise ValueError(
                f"episode_start has entries for {len(begins)} environments, but the observation is of {n_envs}. Pass one for "
                "each."
            )
        counters = {name: getattr(memory, name).masked_fill(begins, 0) for name in ("n_executed", "n_plans")}
        return MPCState(*self.planner.reset(memory.planner, begins), memory.actions, **counters)

    def _due(self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> th.Tensor:
        """Where a new plan is due, (B,) bool, computed on the host so that planning need not wait for the device."""
        if state is None:
            return th.ones(n_envs, dtype=th.bool)
        memory = MPCState(*(th.as_tensor(array) for array in state))
        due = ~memory.started | (memory.n_executed >= self.replan_freq * self.action_repeat)
        return due if episode_start is None else due | th.as_tensor(np.asarray(episode_start, dtype=bool)).reshape(-1)

    def _replan(self, obs: PyTorchObs, memory: MPCState, due: th.Tensor, deterministic: bool) -> MPCState:
        """Make new plans for the environments where one is due."""
        check_fitted(self.model)
        begin = time.perf_counter()
        # A simulator of live environments needs the observations of all of them, and its next start invalidates this one
        states, old = self.model.start(obs)[due], MPCState(*(tensor[due] for tensor in memory))
        generators = self._generators(old.n_plans, deterministic)
        warm_start = self.planner.shift(old.planner, old.actions[:, : self.replan_freq])
        proposals = self._proposals(states, generators)
        score = self.objective.score_states(states, generators)
        planner = self._planner_for_call(deterministic)
        plan = planner.plan(score, warm_start, generators, proposals, self._seconds_left(begin))
        new = MPCState(*plan.state, plan.actions, th.zeros_like(old.n_executed), old.n_plans + 1)
        self.last_plan, self.last_states = plan, states
        return MPCState(*(_put(whole, due, part) for whole, part in zip(memory, new, strict=True)))

    def _planner_for_call(self, deterministic: bool) -> Planner:
        """The planner that a call of ``predict`` uses."""
        return self.planner

    @abstractmethod
    def _proposals(self, states: th.Tensor, generators: list[th.Generator]) -> th.Tensor | None:
        """
        :param states: states of the model to plan from, (B, S)
        :param generators: one for each state
        :return: sequences that compete with the planner's samples, (B, M, H, A); None: there are none
        """

    def _seconds_left(self, begin: float) -> float | None:
        if self.max_plan_seconds is None:
            return None
        return max(self.max_plan_seconds - (time.perf_counter() - begin), 1e-9)  # planners do not accept 0

    def _generators(self, n_plans: th.Tensor, deterministic: bool) -> list[th.Generator]:
        """
        :param n_plans: number of plans made before in this episode of each environment, (B,): the seeds of deterministic plans
        :param deterministic: whether to use these seeds instead of random ones
        :return: a generator for each environment
        """
        if deterministic:
            seeds = n_plans.tolist()
        else:
            seeds = th.randint(2**62, (len(n_plans),), generator=self.generator).tolist()
        return [th.Generator(device=self.device).manual_seed(seed) for seed in seeds]


def check_observation(observation: Any) -> None:
    """
    :param observation: the argument of ``predict``
    :raises ValueError: it is a tuple, such as Gymnasium's ``reset`` returns
    """
    if isinstance(observation, tuple):
        raise ValueError(
            "predict() takes an observation, got a tuple. Gymnasium's reset returns one: pass obs of `obs, info = "
            "env.reset()`."
        )


def _check_state(state: tuple[np.ndarray, ...], fresh: MPCState) -> None:
    """
    :param state: the state that the caller passed
    :param fresh: the initial state, for as many environments as there are observations
    :raises ValueError: the state comes from another policy or from other environments
    """
    advice = "Pass the state that predict() of this policy returned last, or None to plan from scratch."
    if len(state) != len(fresh):
        raise ValueError(f"state has {len(state)} parts, expected {len(fresh)}. {advice}")
    n_given, n_envs = len(state[0]), len(fresh.mean)
    if n_given != n_envs:
        raise ValueError(f"state is of {n_given} environments, but the observation is of {n_envs}. {advice}")
    for name, given, expected in zip(MPCState._fields, state, fresh, strict=True):
        if np.shape(given) != expected.shape:
            raise ValueError(
                f"The state's {name} has shape {np.shape(given)}, expected {tuple(expected.shape)}: it comes from a policy "
                f"with another horizon, planner or action space. {advice}"
            )


def _put(whole: th.Tensor, where: th.Tensor, part: th.Tensor) -> th.Tensor:
    """A copy of ``whole``, (B, ...), with the rows of the mask ``where`` replaced by ``part``."""
    whole = whole.clone()
    whole[where] = part
    return whole
