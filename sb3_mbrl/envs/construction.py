"""Makes imagined environments from a real one, from a dataset or from an algorithm, and refits them."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.common.arguments import SEED, check_arguments, integer
from sb3_mbrl.common.collection import COLLECTED, SHOWN, Predicts, collect
from sb3_mbrl.common.environments import RealEnv, as_vec_env, max_episode_steps_for
from sb3_mbrl.common.model import DynamicsModel
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import FitReport
from sb3_mbrl.envs.datasets import Dataset, read_dataset, spaces_of
from sb3_mbrl.envs.experience import Bounds, Experience, StartStates, check_start_states
from sb3_mbrl.envs.imagination import Imagination, StartFn
from sb3_mbrl.envs.models import fit_model, unfitted_model
from sb3_mbrl.envs.rules import ImaginationRules

SelfImagined = TypeVar("SelfImagined", bound="ImaginedFromExperience")

N_ENVS = integer(1, 10**6)


@dataclass(frozen=True)
class Origin:
    """
    What an imagined environment was made from, and is made from again when the model is refitted.

    :param experience: real transitions
    :param start_states: where imagined episodes begin; None: as passed to the constructor
    :param observation_bounds: lowest and highest prediction; None: derived from the experience
    :param fit_kwargs: arguments of each fit
    """

    experience: Experience
    start_states: StartStates | None = None
    observation_bounds: Bounds | None = None
    fit_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bounds(self) -> Bounds:
        """Lowest and highest observation: those given, or those observed."""
        return self.experience.observed_range() if self.observation_bounds is None else self.observation_bounds


class ImaginedFromExperience:
    """Mixin of imagined environments: makes their model, start states and bounds from real transitions, and renews them."""

    imagination: Imagination
    _origin: Origin | None = None

    @classmethod
    def _constructed(
        cls: type[SelfImagined],
        env: RealEnv | None,
        dynamics: DynamicsModel,
        start_states: np.ndarray | th.Tensor | StartFn,
        observation_bounds: Bounds | None,
        **kwargs: Any,
    ) -> SelfImagined:
        """Call the constructor; ``env`` is for the classes that need the real environment."""
        raise NotImplementedError

    @classmethod
    def _check_env(cls, env: RealEnv | None) -> None:
        """:raises ValueError: the constructor cannot use this real environment"""

    @classmethod
    def from_env(
        cls: type[SelfImagined],
        env: gym.Env | VecEnv | str,
        n_steps: int = 5_000,
        policy: Predicts | None = None,
        start_states: StartStates = "all",
        max_episode_steps: int | None = None,
        observation_bounds: Bounds | None = None,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        dynamics_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: th.device | str = "auto",
        verbose: int = 0,
        progress_bar: bool = False,
        **kwargs: Any,
    ) -> SelfImagined:
        """
        Collect real transitions, fit a model to them, and imagine.

        :param env: the real environment or its id
        :param n_steps: number of transitions to collect
        :param policy: acts while they are collected: anything with SB3's ``predict``; None: uniformly random actions
        :param start_states: where imagined episodes begin: ``"all"``: at any observation of the transitions (branched
            rollouts); ``"initial"``: at first observations of episodes; raw observations (M, O); or
            ``f(n, generator) -> (n, O)``
        :param max_episode_steps: steps until an imagined episode is truncated; None: the time limit of the real environment,
            1000 if it is not known
        :param observation_bounds: lowest and highest prediction, (O,) each; None: the observed range and half of it on either
            side, within the observation space or what was observed outside of it
        :param reward_fn: the reward ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)``, actions in the environment's
            scale; learned if None
        :param termination_fn: ``"auto"``: the environment's own rule where it is a known Gymnasium task, otherwise learned;
            ``"learned"``; a function ``f(obs, action, next_obs) -> (B,) bool``; None: the task never terminates
        :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
        :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit`, for this fit and those of :meth:`refit`
        :param seed: seed of collecting and fitting; what is imagined is seeded as in any environment
        :param device: device of the model
        :param verbose: 1 for a line when the transitions are collected and when the model is fitted, and every half minute
            until then
        :param progress_bar: show bars of collecting and fitting instead
        :param kwargs: further arguments of the constructor
        :return: the environment; what was collected is its ``transitions``
        :raises ValueError: spaces, names or numbers that are not supported; most are refused before anything is collected
        """
        check_arguments(locals(), COLLECTED)
        dynamics_kwargs, fit_kwargs = dynamics_kwargs or {}, fit_kwargs or {}
        with as_vec_env(env) as vec_env:
            observed, acted = vec_env.observation_space, vec_env.action_space
            dynamics, generator = unfitted_model(
                vec_env, observed, acted, reward_fn, termination_fn, dynamics_kwargs, fit_kwargs, seed, device
            )
            kwargs = cls._complete(kwargs, env, vec_env, max_episode_steps)
            check_start_states(start_states, observed, dynamics.device)
            experience = Experience.of(collect(vec_env, n_steps, policy, seed, verbose, progress_bar), dynamics.device)
            fit_model(dynamics, experience.transitions, generator, fit_kwargs, verbose, progress_bar)
            return cls._made_from(env, dynamics, experience, start_states, observation_bounds, fit_kwargs, kwargs)

    @classmethod
    def from_dataset(
        cls: type[SelfImagined],
        dataset: Dataset,
        env: gym.Env | VecEnv | str | None = None,
        start_states: StartStates = "all",
        max_episode_steps: int | None = None,
        observation_bounds: Bounds | None = None,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        dynamics_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: th.device | str = "auto",
        verbose: int = 0,
        progress_bar: bool = False,
        **kwargs: Any,
    ) -> SelfImagined:
        """
        Fit a model to recorded transitions and imagine in it (offline learning). No environment is stepped or reset. All
        arguments except the first two are those of :meth:`from_env`.

        :param dataset: a ``minari.MinariDataset``; SB3's replay buffer; what :func:`collect` returned; or a mapping of
            arrays, by the names of Gymnasium or of D4RL: ``observations`` (N, O), ``actions`` in the environment's scale,
            ``rewards`` (N,), ``next_observations`` (N, O), ``terminations`` or ``terminals`` (N,), and, if known,
            ``truncations`` or ``timeouts`` (N,). Episodes begin at the first row, and after each row that ended one
        :param env: the real environment or its id, from which the spaces, the termination rule and the time limit are read;
            None: they are taken from the dataset. A replay buffer only has the spaces, so the termination is then learned.
            Arrays and collected transitions have none of them, and need the environment
        :return: the environment; what was read is its ``transitions``
        :raises ValueError: the dataset cannot be read or is not of this environment, or spaces, names or numbers are not
            supported; all of it is refused before the fit
        """
        check_arguments(locals(), {"seed": SEED, **SHOWN})
        dynamics_kwargs, fit_kwargs = dynamics_kwargs or {}, fit_kwargs or {}
        if env is None:
            env = getattr(dataset, "env_spec", None)
        with nullcontext() if env is None else as_vec_env(env) as vec_env:
            observed, acted = spaces_of(dataset, vec_env)
            dynamics, generator = unfitted_model(
                vec_env, observed, acted, reward_fn, termination_fn, dynamics_kwargs, fit_kwargs, seed, device
            )
            kwargs = cls._complete(kwargs, env, vec_env, max_episode_steps)
            check_start_states(start_states, observed, dynamics.device)
            experience = Experience(*read_dataset(dataset, vec_env, dynamics.device))
            fit_model(dynamics, experience.transitions, generator, fit_kwargs, verbose, progress_bar)
            return cls._made_from(env, dynamics, experience, start_states, observation_bounds, fit_kwargs, kwargs)

    @classmethod
    def from_algorithm(
        cls: type[SelfImagined],
        model: Any,
        start_states: StartStates = "all",
        max_episode_steps: int | None = None,
        observation_bounds: Bounds | None = None,
        **kwargs: Any,
    ) -> SelfImagined:
        """
        Imagine in the model that an algorithm has learned. The algorithm and the environment share the model, which works on
        raw observations. For a policy that was trained with a ``VecNormalize``, wrap the imagined environments in one with
        ``training=False`` and call ``sync_envs_normalization``. All arguments except the first are those of :meth:`from_env`;
        the transitions are those in the replay buffer.

        :param model: a trained ``MBPO`` or ``PETS``, or anything with ``dynamics``, ``replay_buffer`` and ``env``
        :return: the environment
        :raises ValueError: there is no model, no environment, or nothing in the replay buffer
        """
        dynamics, buffer = getattr(model, "dynamics", None), getattr(model, "replay_buffer", None)
        if dynamics is None or buffer is None:
            raise ValueError(
                f"{type(model).__name__} does not have both `dynamics` and `replay_buffer`. Pass an algorithm that has, such "
                "as MBPO or PETS."
            )
        if buffer.size() == 0:
            raise ValueError(
                "The replay buffer is empty. An algorithm is saved without it: call model.load_replay_buffer(path). Without "
                "data, pass model.dynamics and start_states to the constructor."
            )
        kwargs = cls._complete(kwargs, model.env, model.env, max_episode_steps)
        check_start_states(start_states, dynamics.observation_space, dynamics.device)
        experience = Experience(*read_dataset(buffer, device=dynamics.device))
        return cls._made_from(model.env, dynamics, experience, start_states, observation_bounds, {}, kwargs)

    @classmethod
    def _complete(
        cls, kwargs: Mapping[str, Any], env: RealEnv | None, vec_env: VecEnv | None, max_episode_steps: int | None
    ) -> dict[str, Any]:
        """
        Check the constructor's arguments before any transitions are collected and a model is fitted.

        :param kwargs: further arguments of the constructor
        :param env: the real environment, for the constructor
        :param vec_env: the same environment vectorised, to read its time limit
        :param max_episode_steps: the argument of :meth:`from_env`
        :return: the arguments, with ``max_episode_steps``
        :raises ValueError: an argument is not accepted
        """
        cls._check_env(env)
        steps = max_episode_steps_for(vec_env) if max_episode_steps is None else max_episode_steps
        kwargs = {**kwargs, "max_episode_steps": steps}
        given = inspect.signature(cls._constructed).bind(None, None, None, None, **kwargs)
        ImaginationRules(**given.arguments["rules"])
        check_arguments(given.arguments, {"n_envs": N_ENVS})
        return kwargs

    @classmethod
    def _made_from(
        cls: type[SelfImagined],
        env: RealEnv | None,
        dynamics: DynamicsModel,
        experience: Experience,
        start_states: StartStates,
        observation_bounds: Bounds | None,
        fit_kwargs: Mapping[str, Any],
        kwargs: Mapping[str, Any],
    ) -> SelfImagined:
        origin = Origin(experience, start_states, observation_bounds, fit_kwargs)
        imagined = cls._constructed(env, dynamics, experience.starts(start_states), origin.bounds, **kwargs)
        imagined._origin = origin
        return imagined

    @property
    def dynamics(self) -> DynamicsModel:
        """The model."""
        return self.imagination.dynamics

    @property
    def transitions(self) -> Transitions | None:
        """The real transitions that the model is known to be fitted to; None if there are none."""
        return None if self._origin is None else self._origin.experience.transitions

    def refit(
        self,
        transitions: Transitions | Sequence[Transitions],
        verbose: int = 0,
        progress_bar: bool = False,
        **fit_kwargs: Any,
    ) -> FitReport:
        """
        Fit the model further, to the old and the new transitions. Running branches continue in the new model. Later branches
        also start from the new transitions, unless ``start_states`` were given as an array or a function.

        :param transitions: the result of :func:`collect`, which contains where episodes began, or a batch of transitions
        :param verbose: 1 for a line when the model is fitted, and every half minute until then
        :param progress_bar: show a bar of the fit instead
        :param fit_kwargs: arguments of this fit, in addition to those of :meth:`from_env`
        :return: errors and cost of this fit
        :raises ValueError: transitions that are not finite, or a model that cannot be fitted
        """
        check_arguments(locals(), SHOWN)
        if not isinstance(self.dynamics, ProbabilisticEnsemble):
            raise ValueError(
                f"{type(self.dynamics).__name__} cannot be fitted to transitions; only a ProbabilisticEnsemble can be "
                "refitted."
            )
        new = Experience.of(transitions, self.dynamics.device)
        origin = Origin(new) if self._origin is None else replace(self._origin, experience=self._origin.experience + new)
        fit_kwargs = {**origin.fit_kwargs, **fit_kwargs}
        generator = self.imagination.generator
        report = fit_model(self.dynamics, origin.experience.transitions, generator, fit_kwargs, verbose, progress_bar)
        self._origin = origin
        if origin.start_states is not None:
            self.imagination.set_starts(origin.experience.starts(origin.start_states), origin.bounds)
        return report
