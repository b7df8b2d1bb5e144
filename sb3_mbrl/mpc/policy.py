"""Model predictive control: a planner as an SB3 policy, over any model."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.arguments import check_arguments, integer, number
from sb3_mbrl.common.model import DynamicsModel, dynamics_of
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.mpc.agents import actor_function, value_function
from sb3_mbrl.mpc.files import ARGUMENTS, FUNCTIONS, read_policy, write_policy
from sb3_mbrl.mpc.planning_policy import ACTING, PlanningPolicy, check_observation
from sb3_mbrl.planning import ModelObjective, Planner, make_planner
from sb3_mbrl.planning.objective import OBJECTIVE, ValueFn
from sb3_mbrl.planning.planner import LONGEST_PLAN, MOST_PLANS
from sb3_mbrl.planning.proposals import Actor, policy_proposals

PLANNING = {
    **OBJECTIVE,
    **ACTING,
    "horizon": integer(1, LONGEST_PLAN) | None,
    "n_particles": OBJECTIVE["n_particles"] | None,
    "n_proposals": integer(1, MOST_PLANS),
    "proposal_noise": number(0),
}
"""Rules for the arguments of :class:`MPCPolicy` and of algorithms that plan."""


class MPCPolicy(PlanningPolicy):
    """
    Model predictive control as a policy of Stable-Baselines3: ``predict`` plans in a model and returns the first action. It
    works with ``evaluate_policy``, callbacks, vectorised environments and video recorders.

    A plan starts from the previous one, which is not kept in the policy. It is part of the state that ``predict(obs, state,
    episode_start)`` takes and returns, like the state of a recurrent policy, and is reset where ``episode_start`` is true.
    Without a state, each call plans from scratch. With ``deterministic=True``, an action is a function of the model, the
    observation and the state: the planner draws the same samples each time, and the plan of an environment does not depend on
    the others in the batch.

    :param model: the model to plan in: an algorithm that learns one (``MBPO``, ``PETS``, ``Dyna``), a
        :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`, a simulator, or your own model. It must be fitted before the first
        plan
    :param planner: ``"icem"``, ``"cem"``, ``"mppi"``, ``"pddm"``, ``"random_shooting"``, ``"gradient"``, or a
        :class:`~sb3_mbrl.planning.Planner`
    :param horizon: actions in a plan; None: the planner's default
    :param planner_kwargs: further arguments of the planner
    :param action_repeat: environment steps for each planned action
    :param replan_freq: planned actions executed before the next plan is made; ``horizon`` is open-loop control
    :param discount: discount of rewards in a plan (PETS: 1)
    :param n_particles: rollouts of each candidate; None: one for each elite of the model (PETS: 20)
    :param propagation: ``"tsinf"``, ``"ts1"`` or ``"expectation"``, see :class:`~sb3_mbrl.planning.ModelObjective`, as are the
        next three
    :param value_mode: ``"expected"``, ``"pessimistic"`` or ``"optimistic"``
    :param kappa: weight of the standard deviation of the particles' returns, for the latter two
    :param uncertainty_penalty: subtracted from rewards, times the elites' disagreement about the next observation (MOPO);
        negative to seek what they disagree about
    :param reward_fn: takes the place of the model's reward: ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)``
    :param termination_fn: takes the place of the model's termination, for a task that ends elsewhere: ``f(obs (B, O), action
        (B, A), next_obs (B, O)) -> (B,) bool``
    :param terminal_value: values the state where a plan ends: a trained SB3 algorithm (its critic does), or
        ``f(obs (B, O)) -> (B,)``
    :param actor: proposes plans, which compete with the samples: a trained SB3 algorithm, or
        ``f(obs (B, O)) -> actions (B, A)`` in [-1, 1] (one-hot if discrete)
    :param n_proposals: number of plans that the actor proposes
    :param proposal_noise: standard deviation of the noise on the actor's actions, in all of its plans but the first; for
        discrete actions the probability of a random one
    :param max_plan_seconds: time for a call, the actor's proposals included. An iteration of the planner that would end later
        is not begun, and the best plan so far is taken; the first iteration is always made. All plans then depend on the
        clock, those of ``deterministic=True`` too
    :param vec_normalize: normalises the observations that ``predict`` gets; None: what normalises those of the algorithm that
        is given as ``model``, otherwise nothing (``dynamics`` alone plans from raw observations)
    :param seed: seed of the planner's samples, where actions are not deterministic
    :raises ValueError: an argument that is not known or does not fit
    """

    def __init__(
        self,
        model: DynamicsModel | BaseAlgorithm,
        planner: str | Planner = "icem",
        horizon: int | None = None,
        planner_kwargs: Mapping[str, Any] | None = None,
        action_repeat: int = 1,
        replan_freq: int = 1,
        discount: float = 1.0,
        n_particles: int | None = None,
        propagation: str = "tsinf",
        value_mode: str = "expected",
        kappa: float = 1.0,
        uncertainty_penalty: float = 0.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        terminal_value: BaseAlgorithm | ValueFn | None = None,
        actor: BaseAlgorithm | Actor | None = None,
        n_proposals: int = 8,
        proposal_noise: float = 0.1,
        max_plan_seconds: float | None = None,
        vec_normalize: VecNormalize | None = None,
        seed: int | None = None,
    ):
        check_arguments(locals(), PLANNING)
        if isinstance(model, BaseAlgorithm) and vec_normalize is None:
            vec_normalize = model.get_vec_normalize_env()
        model = dynamics_of(model)
        planner = _planner_for(model, planner, horizon, planner_kwargs)
        _check_agents(model, terminal_value=terminal_value, actor=actor)
        if n_particles is None:
            n_particles = 1 if propagation == "expectation" else len(model.elites)
        objective = ModelObjective(
            model,
            discount=discount,
            n_particles=n_particles,
            propagation=propagation,
            value_mode=value_mode,
            kappa=kappa,
            uncertainty_penalty=uncertainty_penalty,
            reward_fn=reward_fn,
            termination_fn=termination_fn,
            terminal_value=value_function(terminal_value) if isinstance(terminal_value, BaseAlgorithm) else terminal_value,
            action_repeat=action_repeat,
        )
        super().__init__(model, planner, objective, action_repeat, replan_freq, max_plan_seconds, seed)
        self.actor = actor_function(actor) if isinstance(actor, BaseAlgorithm) else actor
        probe(model.observation_space, model.action_space, model.device, actor=self.actor)
        self.n_proposals = n_proposals
        self.proposal_noise = proposal_noise
        self.vec_normalize = vec_normalize

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        check_observation(observation)
        if self.vec_normalize is not None:
            observation = self.vec_normalize.unnormalize_obs(observation)
        return super().predict(observation, state, episode_start, deterministic)

    def _proposals(self, states: th.Tensor, generators: list[th.Generator]) -> th.Tensor | None:
        if self.actor is None:
            return None
        return policy_proposals(
            self._act,
            self.model,
            states,
            self.n_proposals,
            self.planner.horizon,
            self.proposal_noise,
            self.action_repeat,
            generators,
        )

    def _act(self, obs: th.Tensor) -> th.Tensor:
        """Actions of the actor; a user's function may return them in any precision."""
        assert self.actor is not None
        return call("actor", self.actor, obs, width=self.model.action_dim).float()

    def save(self, path: str | pathlib.Path) -> None:  # type: ignore[override]
        """
        Save as a zip of JSON and, for a :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`, its safetensors. Atomic. Functions,
        SB3 algorithms, other models, your own planners and ``vec_normalize`` are not saved: pass them again to :meth:`load`.

        :param path: the file
        """
        given = {**vars(self.objective), "actor": self.actor, "vec_normalize": self.vec_normalize}
        functions = [name for name in FUNCTIONS if given[name] is not None]
        arguments = {name: getattr(self.objective if name in OBJECTIVE else self, name) for name in ARGUMENTS}
        write_policy(path, self.model, self.planner, arguments, functions)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: str | pathlib.Path,
        device: th.device | str = "auto",
        model: DynamicsModel | BaseAlgorithm | None = None,
        planner: Planner | None = None,
        model_reward_fn: RewardFn | None = None,
        model_termination_fn: TerminationFn | None = None,
        **kwargs: Any,
    ) -> "MPCPolicy":
        """
        Load what :meth:`save` wrote; nothing is unpickled.

        :param path: the file
        :param device: where the model goes
        :param model: needed again if it is not a :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
        :param planner: needed again if its class is your own
        :param model_reward_fn: needed again if the model was made with a ``reward_fn``
        :param model_termination_fn: needed again if the model was made with a ``termination_fn``
        :param kwargs: arguments of the policy: ``reward_fn``, ``termination_fn``, ``terminal_value``, ``actor`` (functions, or
            SB3 algorithms) and ``vec_normalize`` are needed again if it had them, others take the place of what was saved
        :return: the policy
        :raises ValueError: the file is damaged or no such policy, or something is missing
        """
        functions = {**kwargs, "model_reward_fn": model_reward_fn, "model_termination_fn": model_termination_fn}
        model, planner, arguments = read_policy(path, device, model, planner, functions)
        return cls(model, planner, **{**arguments, **kwargs})


def _check_agents(model: DynamicsModel, **agents: Any) -> None:
    """
    :param model: the model to plan in
    :param agents: SB3 algorithms, or functions, which are not checked
    :raises ValueError: an algorithm was trained on other observations
    """
    for name, agent in agents.items():
        if isinstance(agent, BaseAlgorithm) and agent.observation_space.shape != model.observation_space.shape:
            raise ValueError(
                f"{name} was trained on observations in {agent.observation_space}, but the model's are in "
                f"{model.observation_space}. Pass an algorithm that was trained in the same environment."
            )


def _planner_for(
    model: DynamicsModel, planner: str | Planner, horizon: int | None, planner_kwargs: Mapping[str, Any] | None
) -> Planner:
    discrete = isinstance(model.action_space, spaces.Discrete)
    if isinstance(planner, str):
        own = {} if horizon is None else {"horizon": horizon}
        return make_planner(planner, discrete, **own, **(planner_kwargs or {}))
    if horizon is not None or planner_kwargs:
        raise ValueError(
            f"horizon and planner_kwargs are for a planner given by name, but planner is a {type(planner).__name__}, which "
            "has its own arguments. Leave them out."
        )
    if discrete != planner.categorical:
        kind = "discrete" if discrete else "Box"
        raise ValueError(
            f"{type(planner).__name__} does not plan {kind} actions, which the model has. Pass a name, such as 'cem', or "
            "another planner."
        )
    return planner
