"""How imagined environments are made from a real one, from a dataset or from an algorithm, and fitted again."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.common.arguments import SEED, check_arguments, integer
from sb3_mbrl.common.collection import COLLECTED, SHOWN, Predicts, collect
from sb3_mbrl.common.environments import RealEnv, as_vec_env, max_episode_steps_for
from sb3_mbrl.common.model import DynamicsModel
from sb3_mbrl.common.progress import showing
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import FitReport, check_fit_arguments, epoch_shown_by, fit
from sb3_mbrl.dynamics.learned_termination import make_termination
from sb3_mbrl.envs.datasets import Dataset, read_dataset, spaces_of
from sb3_mbrl.envs.experience import Bounds, Experience, StartStates, check_start_states
from sb3_mbrl.envs.imagination import Imagination, ImaginationRules, StartFn

SelfImagined = TypeVar("SelfImagined", bound="ImaginedFromExperience")


N_ENVS = integer(1, 10**6)


class ImaginedFromExperience:
    """Where an imagined environment's model, start states and bounds come from, and how they are renewed."""

    imagination: Imagination
    _experience: Experience | None = None
    _start_states: StartStates = "all"
    _observation_bounds: Bounds | None = None
    _fit_kwargs: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def _around(
        cls: type[SelfImagined],
        env: RealEnv | None,
        dynamics: DynamicsModel,
        start_states: np.ndarray | th.Tensor | StartFn,
        observation_bounds: Bounds | None,
        **kwargs: Any,
    ) -> SelfImagined:
        """The constructor, whatever it needs of the real environment."""
        raise NotImplementedError

    @classmethod
    def _check_env(cls, env: RealEnv | None) -> None:
        """Raises if the constructor cannot do with it."""

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
        :param n_steps: transitions to collect
        :param policy: acts meanwhile: anything with SB3's ``predict``; None: uniformly random actions
        :param start_states: ``"all"``: any observation of the transitions (branched rollouts); ``"initial"``: first
            observations of episodes; raw observations (M, O); or ``f(n, generator) -> (n, O)``
        :param max_episode_steps: steps until truncation; None: the time limit of the real environment, 1000 if it is not known
        :param observation_bounds: lowest and highest prediction; None: the observed range and half of it on either side,
            within the observation space or what was observed outside of it
        :param reward_fn: the reward ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)``, actions in the environment's
            scale; learned if None
        :param termination_fn: ``"auto"``: the environment's own rule where it is a known Gymnasium task, otherwise learned;
            ``"learned"``; a function ``f(obs, action, next_obs) -> (B,) bool``; None: the task never terminates
        :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
        :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit`, of this fit and of :meth:`refit`
        :param seed: of what is collected and fitted; what is imagined is seeded as in any environment
        :param device: of the model
        :param verbose: 1 for a line when the transitions are collected and when the model is fitted, and every half minute
            until then
        :param progress_bar: show a bar instead, of what is collected and of the fit
        :param kwargs: further arguments of the constructor
        :return: the environment; what was collected is its ``transitions``
        :raises ValueError: spaces, names, numbers; most of it before anything is collected
        """
        check_arguments(locals(), COLLECTED)
        with as_vec_env(env) as vec_env:
            return cls._learned(
                lambda device: Experience.of(collect(vec_env, n_steps, policy, seed, verbose, progress_bar), device),
                env,
                vec_env,
                vec_env.observation_space,
                vec_env.action_space,
                start_states=start_states,
                max_episode_steps=max_episode_steps,
                observation_bounds=observation_bounds,
                reward_fn=reward_fn,
                termination_fn=termination_fn,
                dynamics_kwargs=dynamics_kwargs,
                fit_kwargs=fit_kwargs,
                seed=seed,
                device=device,
                verbose=verbose,
                progress_bar=progress_bar,
                kwargs=kwargs,
            )

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
        Fit a model to transitions that others have recorded, and imagine: offline. No environment is stepped or reset.

        :param dataset: a ``minari.MinariDataset``; SB3's replay buffer; what :func:`collect` returned; or a mapping of
            arrays, by the names of Gymnasium or of D4RL: ``observations`` (N, O), ``actions`` in the environment's scale,
            ``rewards`` (N,), ``next_observations`` (N, O), ``terminations`` or ``terminals`` (N,), and, if known,
            ``truncations`` or ``timeouts`` (N,)
        :param env: the real environment or its id, asked for spaces, rule of termination and time limit; None: what the
            dataset tells, which of a replay buffer is the spaces alone: then the termination is learned. Arrays and what
            was collected need it
        :param start_states: as in :meth:`from_env`. An episode begins at the first row, and after a row that ended one
        :param max_episode_steps: steps until truncation; None: the time limit of the real environment, 1000 if it is not known
        :param observation_bounds: as in :meth:`from_env`
        :param reward_fn: as in :meth:`from_env`
        :param termination_fn: as in :meth:`from_env`
        :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
        :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit`, of this fit and of :meth:`refit`
        :param seed: of what is fitted; what is imagined is seeded as in any environment
        :param device: of the model
        :param verbose: 1 for a line when the model is fitted, and every half minute until then
        :param progress_bar: show a bar of the fit instead
        :param kwargs: further arguments of the constructor
        :return: the environment; what was read is its ``transitions``
        :raises ValueError: a dataset that cannot be read, or is not of this environment; spaces, names, numbers; all of it
            before the fit
        """
        if env is None:
            env = getattr(dataset, "env_spec", None)
        with nullcontext() if env is None else as_vec_env(env) as vec_env:
            observation_space, action_space = spaces_of(dataset, vec_env)
            return cls._learned(
                lambda device: Experience(*read_dataset(dataset, vec_env, device)),
                env,
                vec_env,
                observation_space,
                action_space,
                start_states=start_states,
                max_episode_steps=max_episode_steps,
                observation_bounds=observation_bounds,
                reward_fn=reward_fn,
                termination_fn=termination_fn,
                dynamics_kwargs=dynamics_kwargs,
                fit_kwargs=fit_kwargs,
                seed=seed,
                device=device,
                verbose=verbose,
                progress_bar=progress_bar,
                kwargs=kwargs,
            )

    @classmethod
    def _learned(
        cls: type[SelfImagined],
        gather: Callable[[th.device], Experience],
        env: RealEnv | None,
        vec_env: VecEnv | None,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        start_states: StartStates,
        max_episode_steps: int | None,
        observation_bounds: Bounds | None,
        reward_fn: RewardFn | None,
        termination_fn: TerminationFn | str | None,
        dynamics_kwargs: Mapping[str, Any] | None,
        fit_kwargs: Mapping[str, Any] | None,
        seed: int | None,
        device: th.device | str,
        verbose: int,
        progress_bar: bool,
        kwargs: dict[str, Any],
    ) -> SelfImagined:
        """
        :param gather: returns the real transitions; called once the rest has been checked
        :param env: for the constructor
        :param vec_env: the same, to be asked
        """
        check_arguments(locals(), {"seed": SEED, **SHOWN})
        generator = th.Generator(device=get_device(device))
        generator.seed() if seed is None else generator.manual_seed(int(seed))
        fit_kwargs = fit_kwargs or {}
        check_fit_arguments(fit_kwargs)
        check_spaces(observation_space, action_space)
        kwargs["max_episode_steps"] = max_episode_steps_for(vec_env) if max_episode_steps is None else max_episode_steps
        cls._check_arguments(env, kwargs)
        check_start_states(start_states, observation_space, get_device(device))
        dynamics = ProbabilisticEnsemble(
            observation_space,
            action_space,
            reward_fn=reward_fn,
            termination_fn=make_termination(termination_fn, vec_env, observation_space, action_space, generator),
            generator=generator,
            device=device,
            **(dynamics_kwargs or {}),
        )
        inspect.signature(fit).bind(dynamics, None, **fit_kwargs)  # what it does not accept fails here, not after it all
        experience = gather(dynamics.device)
        _fit(dynamics, experience.transitions, generator, verbose, progress_bar, fit_kwargs)
        return cls._from_experience(env, dynamics, experience, start_states, observation_bounds, fit_kwargs, kwargs)

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
        Imagine in what an algorithm has learned. The model is shared with it, and works on raw observations: for a policy that
        was trained on a ``VecNormalize``, wrap the imagined environments in one with ``training=False`` and call
        ``sync_envs_normalization``.

        :param model: a trained ``MBPO``, ``PETS``, or whatever has ``dynamics``, ``replay_buffer`` and ``env``
        :param start_states: as in :meth:`from_env`, from the replay buffer
        :param max_episode_steps: steps until truncation; None: the time limit of the algorithm's environment, 1000 if it
            is not known
        :param observation_bounds: lowest and highest prediction; None: the observed range and half of it on either side,
            within the observation space or what was observed outside of it
        :param kwargs: further arguments of the constructor
        :return: the environment
        :raises ValueError: no model, nothing in the replay buffer, no environment
        """
        dynamics, buffer = getattr(model, "dynamics", None), getattr(model, "replay_buffer", None)
        if dynamics is None or buffer is None:
            raise ValueError(f"{type(model).__name__} has no `dynamics` and `replay_buffer`, as MBPO and PETS have.")
        if buffer.size() == 0:
            raise ValueError(
                "The replay buffer is empty; it is not in the zip of a saved algorithm: model.load_replay_buffer(path). "
                "Without data, pass model.dynamics and start_states to the constructor."
            )
        kwargs["max_episode_steps"] = max_episode_steps_for(model.env) if max_episode_steps is None else max_episode_steps
        cls._check_arguments(model.env, kwargs)
        check_start_states(start_states, dynamics.observation_space, dynamics.device)
        experience = Experience(*read_dataset(buffer, device=dynamics.device))
        return cls._from_experience(model.env, dynamics, experience, start_states, observation_bounds, {}, kwargs)

    @classmethod
    def _from_experience(
        cls: type[SelfImagined],
        env: RealEnv | None,
        dynamics: ProbabilisticEnsemble,
        experience: Experience,
        start_states: StartStates,
        observation_bounds: Bounds | None,
        fit_kwargs: Mapping[str, Any],
        kwargs: Mapping[str, Any],
    ) -> SelfImagined:
        starts = experience.starts(start_states)
        imagined = cls._around(env, dynamics, starts, experience.bounds_unless(observation_bounds), **kwargs)
        imagined._experience = experience
        imagined._start_states, imagined._observation_bounds = start_states, observation_bounds
        imagined._fit_kwargs = fit_kwargs
        return imagined

    @classmethod
    def _check_arguments(cls, env: RealEnv | None, kwargs: Mapping[str, Any]) -> None:
        """Raises now what the constructor would raise after all the work."""
        cls._check_env(env)
        given = inspect.signature(cls._around).bind(None, None, None, None, **kwargs)
        ImaginationRules(**given.arguments["rules"])
        check_arguments(given.arguments, {"n_envs": N_ENVS})

    @property
    def dynamics(self) -> DynamicsModel:
        """The model."""
        return self.imagination.dynamics

    @property
    def transitions(self) -> Transitions | None:
        """The real transitions that the model is known to be fitted to; None if there are none."""
        return None if self._experience is None else self._experience.transitions

    def refit(
        self,
        transitions: Transitions | Sequence[Transitions],
        verbose: int = 0,
        progress_bar: bool = False,
        **fit_kwargs: Any,
    ) -> FitReport:
        """
        Fit the model further, to all transitions together. Branches under way go on in the new model; those that follow start
        from the new transitions too, unless ``start_states`` were given as an array or a function.

        :param transitions: what :func:`collect` returned, which tells where episodes began; or a batch of transitions
        :param verbose: 1 for a line when the model is fitted, and every half minute until then
        :param progress_bar: show a bar of the fit instead
        :param fit_kwargs: of this fit, in addition to those of :meth:`from_env`
        :return: errors and cost of this fit
        :raises ValueError: transitions that are not finite, or a model that cannot be fitted
        """
        check_arguments(locals(), SHOWN)
        if not isinstance(self.dynamics, ProbabilisticEnsemble):
            raise ValueError(f"{type(self.dynamics).__name__} cannot be fitted to transitions: ProbabilisticEnsemble can.")
        experience = Experience.of(transitions, self.dynamics.device)
        known = self._experience
        experience = experience if known is None else known + experience
        fit_kwargs = {**self._fit_kwargs, **fit_kwargs}
        generator = self.imagination.generator
        report = _fit(self.dynamics, experience.transitions, generator, verbose, progress_bar, fit_kwargs)
        self._experience = experience
        if known is not None:
            starts = experience.starts(self._start_states)
            self.imagination.set_starts(starts, experience.bounds_unless(self._observation_bounds))
        return report


def _fit(
    dynamics: ProbabilisticEnsemble,
    transitions: Transitions,
    generator: th.Generator,
    verbose: int,
    progress_bar: bool,
    fit_kwargs: Mapping[str, Any],
) -> FitReport:
    with showing(verbose, progress_bar) as show:
        report = dynamics.fit(transitions, generator, **{"on_epoch": epoch_shown_by(show), **fit_kwargs})
    if verbose >= 1:
        print(f"Model fitted: {report.in_words()}")
    return report
