"""A planner as an SB3 policy."""

import inspect
import io
import json
import operator
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_mbrl.common.actions import floating_bounds, from_environment, to_environment, unscale
from sb3_mbrl.common.arguments import SEED, check_arguments, integer, number
from sb3_mbrl.common.config import Kind, check_config, read_json
from sb3_mbrl.common.files import ZIP_ERRORS, write_atomically
from sb3_mbrl.common.model import check_fitted, dynamics_of
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.dynamics import DynamicsModel, ProbabilisticEnsemble
from sb3_mbrl.dynamics.files import functions_of_user
from sb3_mbrl.mpc.agents import actor_function, value_function
from sb3_mbrl.planning import PLANNER_CLASSES, ModelObjective, Plan, Planner, PlannerState, make_planner
from sb3_mbrl.planning.objective import OBJECTIVE, ValueFn
from sb3_mbrl.planning.planner import LONGEST_PLAN, MOST_PLANS
from sb3_mbrl.planning.proposals import Actor, policy_proposals

FILE_FORMAT = "sb3_mbrl.MPCPolicy.1"

PLANNING = {
    **OBJECTIVE,
    "horizon": integer(1, LONGEST_PLAN) | None,
    "n_particles": OBJECTIVE["n_particles"] | None,
    "replan_freq": integer(1, LONGEST_PLAN),
    "n_proposals": integer(1, MOST_PLANS),
    "proposal_noise": number(0),
    "max_plan_seconds": number(0, above=True) | None,
    "seed": SEED,
}
"""Rules for the arguments of :class:`MPCPolicy` and of algorithms that plan."""


class MPCState(NamedTuple):
    """
    What travels through ``predict(obs, state, episode_start)``, for B environments.

    :param mean: see :class:`~sb3_mbrl.planning.PlannerState`, as are the next three
    :param elites: (B, K, H, A)
    :param previous: (B, A)
    :param started: (B,) bool
    :param actions: the plan that is being executed, (B, H, A)
    :param n_executed: environment steps of it that are done, (B,)
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
        """The planner's part."""
        return PlannerState(*self[:4])


class MPCPolicy(BasePolicy):
    """
    Model predictive control as a policy of Stable-Baselines3: ``predict`` plans in a model and returns the first action. Works
    in ``evaluate_policy``, callbacks, with vectorised environments and video recorders.

    The plan from which the next one starts is not kept in the policy: it travels through ``predict(obs, state,
    episode_start)`` as the state of a recurrent policy does, and begins anew where ``episode_start`` is true. Without a
    state each call plans from nothing. ``deterministic=True`` is a function of the model, the observation and the state: the
    samples of the planner are the same each time, and an environment's plan does not depend on the others in the batch.

    :param model: to plan in: an algorithm that learns one (``MBPO``, ``PETS``, ``Dyna``), a
        :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`, a simulator, or a model of yours. It has to be fitted before the
        first plan
    :param planner: ``"icem"``, ``"cem"``, ``"mppi"``, ``"pddm"``, ``"random_shooting"``, ``"gradient"``, or a
        :class:`~sb3_mbrl.planning.Planner`
    :param horizon: actions in a plan; None: the planner's default
    :param planner_kwargs: further arguments of the planner
    :param action_repeat: environment steps for each planned action
    :param replan_freq: planned actions executed before the next plan is made; ``horizon`` is open-loop control
    :param discount: of rewards in a plan (PETS: 1)
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
    :param terminal_value: of the state where a plan ends: a trained SB3 algorithm (its critic), or ``f(obs (B, O)) -> (B,)``
    :param actor: whose plans compete with the samples: a trained SB3 algorithm, or ``f(obs (B, O)) -> actions (B, A)`` in
        [-1, 1] (one-hot if discrete)
    :param n_proposals: plans of the actor
    :param proposal_noise: standard deviation added to its actions in all of its plans but the first; for discrete actions
        the probability of a random one
    :param max_plan_seconds: of a call, the actor's proposals included: an iteration of the planner that would end later is not
        begun, and the best plan so far is taken; the first one is always made. Plans then depend on the clock, those of
        ``deterministic=True`` too
    :param vec_normalize: normalises the observations that ``predict`` gets; None: what normalises those of the algorithm that
        is given as ``model``, otherwise nothing (``dynamics`` alone plans from raw observations)
    :param seed: of the planner's samples, where actions are not deterministic
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
        super().__init__(model.observation_space, model.action_space, squash_output=True)
        self.model = model
        self.planner = _planner_for(model, planner, horizon, planner_kwargs)
        _check_agents(model, terminal_value=terminal_value, actor=actor)
        if n_particles is None:
            n_particles = 1 if propagation == "expectation" else len(model.elites)
        self.objective = ModelObjective(
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
        if replan_freq > self.planner.horizon:
            raise ValueError(f"replan_freq must lie between 1 and horizon={self.planner.horizon}, got {replan_freq}.")
        self.action_repeat = action_repeat
        self.replan_freq = replan_freq
        self.actor = actor_function(actor) if isinstance(actor, BaseAlgorithm) else actor
        probe(model.observation_space, model.action_space, model.device, actor=self.actor)
        self.n_proposals = n_proposals
        self.proposal_noise = proposal_noise
        self.max_plan_seconds = max_plan_seconds
        self.vec_normalize = vec_normalize
        self.seed = None if seed is None else operator.index(seed)  # NumPy's integers too
        self.last_plan: Plan | None = None  # for whoever watches; predict does not read it
        self.generator = th.Generator()  # of the samples that are not deterministic
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)

    @property
    def device(self) -> th.device:
        return self.model.device

    # ---------------------------------------------------------------- acting

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan, or go on with the plan that is being executed.

        :param observation: of one environment, or of B
        :param state: what the last call returned; None to begin
        :param episode_start: where a new episode begins, (B,)
        :param deterministic: the same samples each time, instead of new ones
        :return: actions in the environment's scale, and the state for the next call
        :raises ValueError: the model has not been fitted, the observation does not fit, or ``state`` comes from another number
            of environments or from a policy with another horizon, planner or action space
        """
        check_observation(observation)
        if self.vec_normalize is not None:
            observation = self.vec_normalize.unnormalize_obs(observation)
        obs, vectorized = self.obs_to_tensor(observation)
        n_envs = len(obs) if isinstance(obs, th.Tensor) else len(next(iter(obs.values())))
        memory = self._memory(n_envs, state, episode_start)
        due = self._due(n_envs, state, episode_start)
        if due.any():
            memory = self._replan(obs, memory, due, deterministic)
        rows = th.arange(n_envs, device=self.device)
        actions = to_environment(memory.actions[rows, memory.n_executed // self.action_repeat], self.action_space)
        memory = memory._replace(n_executed=memory.n_executed + 1)
        return actions if vectorized else actions[0], tuple(tensor.cpu().numpy() for tensor in memory)

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        return from_environment(action, self.action_space)  # SB3's subtracts bounds in the type of the space

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        return unscale(scaled_action, *floating_bounds(self.action_space))

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        """The first action of a plan made from nothing, (B, A) in [-1, 1] or one-hot."""
        memory = self._memory(len(observation), None, None)
        return self._replan(observation, memory, self._due(len(observation), None, None), deterministic).actions[:, 0]

    def _memory(self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> MPCState:
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
            raise ValueError(f"episode_start is of {len(begins)} environments, the observation of {n_envs}.")
        counters = {name: getattr(memory, name).masked_fill(begins, 0) for name in ("n_executed", "n_plans")}
        return MPCState(*self.planner.reset(memory.planner, begins), memory.actions, **counters)

    def _due(self, n_envs: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> th.Tensor:
        """Where a new plan is due, (B,) bool, computed on the host so that it need not wait for the device before it plans."""
        if state is None:
            return th.ones(n_envs, dtype=th.bool)
        memory = MPCState(*(th.as_tensor(array) for array in state))
        due = ~memory.started | (memory.n_executed >= self.replan_freq * self.action_repeat)
        return due if episode_start is None else due | th.as_tensor(np.asarray(episode_start, dtype=bool)).reshape(-1)

    def _replan(self, obs: PyTorchObs, memory: MPCState, due: th.Tensor, deterministic: bool) -> MPCState:
        """New plans for the environments that are due."""
        check_fitted(self.model)
        begin = time.perf_counter()
        # In all environments, as a model of live ones could not tell which are meant; and once, as it forgets earlier starts
        states, old = self.model.start(obs)[due], MPCState(*(tensor[due] for tensor in memory))
        generators = self._generators(old.n_plans, deterministic)
        warm_start = self.planner.shift(old.planner, old.actions[:, : self.replan_freq])
        proposals = self._proposals(states, generators)
        score = self.objective.score_states(states, generators)
        plan = self.planner.plan(score, warm_start, generators, proposals, self._seconds_left(begin))
        new = MPCState(*plan.state, plan.actions, th.zeros_like(old.n_executed), old.n_plans + 1)
        self.last_plan = plan
        return MPCState(*(_put(whole, due, part) for whole, part in zip(memory, new, strict=True)))

    def _seconds_left(self, begin: float) -> float | None:
        if self.max_plan_seconds is None:
            return None
        return max(self.max_plan_seconds - (time.perf_counter() - begin), 1e-9)  # planners refuse 0

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
        """Actions of the actor; a function of the user may return them in any precision."""
        assert self.actor is not None
        return call("actor", self.actor, obs, width=self.model.action_dim).float()

    def _generators(self, n_plans: th.Tensor, deterministic: bool) -> list[th.Generator]:
        """One for each environment; of a deterministic plan, seeded by how many were made before it."""
        if deterministic:
            seeds = n_plans.tolist()
        else:
            seeds = th.randint(2**62, (len(n_plans),), generator=self.generator).tolist()
        return [th.Generator(device=self.device).manual_seed(seed) for seed in seeds]

    # ---------------------------------------------------------------- files

    def save(self, path: str | pathlib.Path) -> None:
        """
        Save as a zip of JSON and, for a :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`, its safetensors. Atomic. Functions,
        SB3 algorithms, other models, planners of yours and ``vec_normalize`` are not saved: pass them again to :meth:`load`.

        :param path: the file
        """
        functions = [name for name, function in self._functions().items() if function is not None]
        if isinstance(self.model, ProbabilisticEnsemble):
            functions += [f"model_{name}" for name in functions_of_user(self.model)]
        own_planner = PLANNER_CLASSES.get(type(self.planner).__name__) is not type(self.planner)
        config = {
            "format": FILE_FORMAT,
            "planner": type(self.planner).__name__,
            "planner_kwargs": None if own_planner else _arguments(self.planner),
            "policy": {name: getattr(self, name) for name in _OWN_ARGUMENTS},
            "objective": {name: getattr(self.objective, name) for name in _OBJECTIVE_ARGUMENTS},
            "functions": functions,
        }
        numbers_of_numpy = operator.methodcaller("item")
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("policy.json", json.dumps(config, indent=4, default=numbers_of_numpy))
            if isinstance(self.model, ProbabilisticEnsemble):
                with tempfile.TemporaryDirectory() as folder:
                    file = pathlib.Path(folder) / "model.safetensors"
                    self.model.save(file)
                    archive.write(file, file.name)
        write_atomically(path, content.getvalue())

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
        :param model: needed again if it is no :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
        :param planner: needed again if it is one of yours
        :param model_reward_fn: needed again if the model was made with a ``reward_fn``
        :param model_termination_fn: needed again if the model was made with a ``termination_fn``
        :param kwargs: arguments of the policy: ``reward_fn``, ``termination_fn``, ``terminal_value``, ``actor`` (functions, or
            SB3 algorithms) and ``vec_normalize`` are needed again if it had them, others take the place of what was saved
        :return: the policy
        :raises ValueError: the file is damaged or no such policy, or something is missing
        """
        with open(path, "rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    if archive.testzip() is not None:  # testzip also compares the names of files with those in the directory
                        raise zipfile.BadZipFile("a file in it is not what was saved")
                    text = archive.read("policy.json")
                    weights = archive.read("model.safetensors") if "model.safetensors" in archive.namelist() else None
            except (*ZIP_ERRORS, KeyError) as error:
                raise ValueError(f"{path} is damaged or was not written by MPCPolicy.save: {error}") from error
        config = read_json(text, str(path))
        check_config(config, _SAVED, str(path))
        functions = {**kwargs, "model_reward_fn": model_reward_fn, "model_termination_fn": model_termination_fn}
        has_model = model is not None  # with its functions
        missing = [
            name
            for name in config["functions"]
            if functions.get(name) is None and not (has_model and name.startswith("model_"))
        ]
        if missing:
            raise ValueError(f"{path} was saved with {missing}, which a file cannot hold: pass them again to load.")
        if model is None and weights is None:
            raise ValueError(f"{path} was saved without its model, which is no ProbabilisticEnsemble: pass model= to load.")
        if model is None:
            with tempfile.TemporaryDirectory() as folder:
                weights_file = pathlib.Path(folder) / "model.safetensors"
                weights_file.write_bytes(weights or b"")
                model = ProbabilisticEnsemble.load(weights_file, device, model_reward_fn, model_termination_fn)
        if planner is None:
            if config["planner"] not in PLANNER_CLASSES or config["planner_kwargs"] is None:
                raise ValueError(f"{path} was saved with a {config['planner']} of yours: pass planner= to load.")
            try:
                planner = PLANNER_CLASSES[config["planner"]](**config["planner_kwargs"])
            except TypeError as error:
                raise ValueError(f"{path} is damaged: it holds arguments that {config['planner']} does not have.") from error
        return cls(model, planner, **{**config["policy"], **config["objective"], **kwargs})

    def _functions(self) -> dict[str, Any]:
        return {
            "reward_fn": self.objective.reward_fn,
            "termination_fn": self.objective.termination_fn,
            "terminal_value": self.objective.terminal_value,
            "actor": self.actor,
            "vec_normalize": self.vec_normalize,
        }


_OWN_ARGUMENTS: dict[str, Kind] = {
    "action_repeat": int,
    "replan_freq": int,
    "n_proposals": int,
    "proposal_noise": float,
    "max_plan_seconds": (float, None),
    "seed": (int, None),
}
_OBJECTIVE_ARGUMENTS: dict[str, Kind] = {
    "discount": float,
    "n_particles": int,
    "propagation": str,
    "value_mode": str,
    "kappa": float,
    "uncertainty_penalty": float,
}
_SAVED: dict[str, Kind] = {
    "format": {FILE_FORMAT},
    "planner": str,
    "planner_kwargs": (dict, None),
    "policy": _OWN_ARGUMENTS,
    "objective": _OBJECTIVE_ARGUMENTS,
    "functions": [
        {"reward_fn", "termination_fn", "terminal_value", "actor", "vec_normalize", "model_reward_fn", "model_termination_fn"}
    ],
}


def check_observation(observation: Any) -> None:
    """
    :param observation: what ``predict`` was given
    :raises ValueError: it is what ``reset`` of Gymnasium returns
    """
    if isinstance(observation, tuple):
        raise ValueError("predict() takes the observation alone: `obs, info = env.reset()` of Gymnasium returns two things.")


def _check_agents(model: DynamicsModel, **agents: Any) -> None:
    """
    :param model: to plan in
    :param agents: SB3 algorithms, or functions, of which nothing is known
    :raises ValueError: an algorithm has learned something else
    """
    for name, agent in agents.items():
        if isinstance(agent, BaseAlgorithm) and agent.observation_space.shape != model.observation_space.shape:
            raise ValueError(
                f"{name} was trained on {agent.observation_space}, the model's observations are {model.observation_space}."
            )


def _check_state(state: tuple[np.ndarray, ...], fresh: MPCState) -> None:
    """
    :param state: given by the caller
    :param fresh: as it would be at the beginning, for as many environments as there are observations
    :raises ValueError: it is of another policy or of other environments
    """
    advice = "Pass what predict() of this policy returned last, or None to begin anew."
    if len(state) != len(fresh):
        raise ValueError(f"state has {len(state)} parts, expected {len(fresh)}. {advice}")
    n_given, n_envs = len(state[0]), len(fresh.mean)
    if n_given != n_envs:
        raise ValueError(f"state is of {n_given} environments, the observation of {n_envs}. {advice}")
    for name, given, expected in zip(MPCState._fields, state, fresh, strict=True):
        if np.shape(given) != expected.shape:
            raise ValueError(
                f"The state's {name} has shape {np.shape(given)}, expected {tuple(expected.shape)}: it is of a policy with "
                f"another horizon, planner or action space. {advice}"
            )


def _planner_for(
    model: DynamicsModel, planner: str | Planner, horizon: int | None, planner_kwargs: Mapping[str, Any] | None
) -> Planner:
    discrete = isinstance(model.action_space, spaces.Discrete)
    if isinstance(planner, str):
        own = {} if horizon is None else {"horizon": horizon}
        return make_planner(planner, discrete, **own, **(planner_kwargs or {}))
    if horizon is not None or planner_kwargs:
        raise ValueError("horizon and planner_kwargs are for a planner given by name; this one has its own.")
    if discrete != planner.categorical:
        kind = "discrete" if discrete else "Box"
        raise ValueError(
            f"{type(planner).__name__} does not plan {kind} actions. Pass a name, such as 'cem', or another planner."
        )
    return planner


def _arguments(planner: Planner) -> dict[str, Any]:
    """The arguments that would make this planner again: each is stored under its own name."""
    return {name: getattr(planner, name) for name in inspect.signature(type(planner)).parameters}


def _put(whole: th.Tensor, rows: th.Tensor, part: th.Tensor) -> th.Tensor:
    whole = whole.clone()
    whole[rows] = part
    return whole
