"""A mixin for algorithms that learn a model of their environment: when it is fitted, to what, and what is logged."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_mbrl.algorithms.base import ModelBasedAlgorithm
from sb3_mbrl.algorithms.forecast import Forecast
from sb3_mbrl.common.arguments import Rule, integer, number
from sb3_mbrl.common.progress import EveryHalfMinute
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.types import RewardFn, TerminationFn, Transitions
from sb3_mbrl.dynamics.ensemble import ProbabilisticEnsemble
from sb3_mbrl.dynamics.fitting import EpochCallback, FitReport, check_fit_arguments, describe_epochs, fit
from sb3_mbrl.dynamics.learned_termination import LearnedTermination, check_termination_fn, make_termination
from sb3_mbrl.tasks.termination import known_termination
from sb3_mbrl.tasks.termination_rules import termination_from_json, termination_to_json

MIN_FIT_TRANSITIONS = 32
"""The model is not fitted to fewer real transitions than this."""


class LearnsDynamics(ModelBasedAlgorithm):
    """
    Mixin for algorithms that fit an ensemble to their replay buffer: list it before an off-policy SB3 class. Call
    :meth:`_store_dynamics_arguments` in ``__init__``, :meth:`_setup_dynamics` in ``_setup_model``, and in ``train``
    :meth:`_fit_dynamics` whenever :meth:`_fit_is_due`.
    """

    _accepted: ClassVar[dict[str, Rule]] = {
        **ModelBasedAlgorithm._accepted,
        "model_train_freq": integer(1),
        "model_updates_per_step": number(0, above=True) | None,
    }

    dynamics: ProbabilisticEnsemble

    def _store_dynamics_arguments(
        self,
        model_train_freq: int,
        model_updates_per_step: float | None,
        reward_fn: RewardFn | None,
        termination_fn: TerminationFn | str | None,
        dynamics_kwargs: Mapping[str, Any] | None,
        fit_kwargs: Mapping[str, Any] | None,
    ) -> None:
        self.model_train_freq = model_train_freq
        self.model_updates_per_step = model_updates_per_step
        self.reward_fn = reward_fn
        self.termination_fn = termination_fn
        self.dynamics_kwargs = dict(dynamics_kwargs or {})
        self.fit_kwargs = dict(fit_kwargs or {})

        # The rule that "auto" found is kept, so that a model loaded without an environment has the same termination
        self._auto_termination: dict[str, Any] | str | None = None
        self._last_fit_timestep: int | None = None

    def _setup_dynamics(self, **arguments: Any) -> None:
        """
        Build the ensemble.

        :param arguments: arguments of the ensemble that the algorithm sets
        """
        assert self._generator is not None
        self.dynamics = ProbabilisticEnsemble(
            self.observation_space,
            self.action_space,
            reward_fn=self.reward_fn,
            termination_fn=self._make_termination(),
            generator=self._generator,
            device=self.device,
            **arguments,
            **self.dynamics_kwargs,
        )

    def _check_dynamics_arguments(self, *set_by_the_algorithm: str) -> None:
        """
        :param set_by_the_algorithm: arguments of the ensemble and its fit that the algorithm sets
        :raises ValueError: an argument is not supported
        """
        check_termination_fn(self.termination_fn)
        own = {"observation_space", "action_space", "reward_fn", "termination_fn", "device", "generator"}
        own |= {"model", "transitions", *set_by_the_algorithm}
        for name, callee in (("dynamics_kwargs", ProbabilisticEnsemble), ("fit_kwargs", fit)):
            accepted = [parameter for parameter in inspect.signature(callee).parameters if parameter not in own]
            refused = [argument for argument in getattr(self, name) if argument not in accepted]
            if refused:
                raise ValueError(
                    f"{name} does not accept {refused}; it accepts {accepted}. The others are set by {type(self).__name__}'s "
                    "own arguments."
                )
        check_fit_arguments(self.fit_kwargs)
        if self.optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage=True loses the last observation of each episode, from which the model would learn "
                "false transitions. Leave it False and choose a smaller buffer_size if memory is short."
            )
        if self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, DictReplayBuffer):
            raise ValueError(
                f"{self.replay_buffer_class.__name__} holds Dict observations (HER relabels them), which learned dynamics "
                "do not support yet. Flatten the observation and use ReplayBuffer."
            )
        if not self.replay_buffer_kwargs.get("handle_timeout_termination", True):
            raise ValueError(
                "handle_timeout_termination=False stores time limits as terminations, which the model would learn. "
                "Leave it True."
            )

    @staticmethod
    def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
        check_spaces(observation_space, action_space)

    def _make_termination(self) -> TerminationFn | None:
        """The termination function of the dynamics; ``"auto"`` and ``"learned"`` are replaced by what they stand for."""
        assert self._generator is not None
        if self.termination_fn == "auto":
            self._find_termination()
            if isinstance(self._auto_termination, dict):
                return termination_from_json(self._auto_termination)
        # For "auto", _find_termination has looked for a rule already, and found none
        return make_termination(self.termination_fn, None, self.observation_space, self.action_space, self._generator)

    def _find_termination(self) -> None:
        """Decide what ``"auto"`` means. A learned termination is kept, since it is among the saved parameters."""
        known = known_termination(self.env) if self.env is not None else None
        if known is not None and self._auto_termination != "learned":
            self._auto_termination = termination_to_json(known)
        elif self._auto_termination is None:
            self._auto_termination = "learned"

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        if self.termination_fn != "auto":
            return
        self._find_termination()
        if isinstance(self._auto_termination, dict):
            self.dynamics.termination_fn = termination_from_json(self._auto_termination)

    def _fit_is_due(self) -> bool:
        assert self.replay_buffer is not None
        if self.replay_buffer.size() * self.n_envs < MIN_FIT_TRANSITIONS:
            return False
        # Not num_timesteps modulo an interval, because num_timesteps grows by the number of environments
        return self._steps_since_fit() >= self.model_train_freq

    def _steps_since_fit(self) -> int:
        """Environment steps since the last fit; ``model_train_freq`` if there was none."""
        if self._last_fit_timestep is None:
            return self.model_train_freq
        return self.num_timesteps - self._last_fit_timestep

    def _fit_dynamics(self, transitions: Transitions, **arguments: Any) -> FitReport | None:
        """
        :param transitions: all real transitions
        :param arguments: arguments of the fit that the algorithm sets
        :return: the errors and the cost of the fit; None if it was skipped
        """
        if self._would_forget(len(transitions)):
            return None
        fit_kwargs = {"on_epoch": self._watch_epochs(), **arguments, **self._budget(), **self.fit_kwargs}
        with self._timed("fitting"):
            report = self.dynamics.fit(transitions, self._generator, **fit_kwargs)
        self._log_fit(report)
        return report

    def _would_forget(self, n_transitions: int) -> bool:
        """Whether the buffer holds so few transitions that a fit would forget others: it was not restored."""
        assert self.replay_buffer is not None
        n_known = self.dynamics.n_fitted
        if n_transitions >= n_known / 2 or self.replay_buffer.full:
            return False
        if self.verbose >= 1:
            print(
                f"Model not refitted at step {self.num_timesteps}: it was fitted to {n_known} transitions, and the replay "
                f"buffer holds {n_transitions}. Restore a saved replay buffer with load_replay_buffer."
            )
        return True

    def _budget(self) -> dict[str, int]:
        """The limit of the next fit; the first fit has the budget of all steps since the beginning of the run."""
        if self.model_updates_per_step is None:
            return {}
        steps = self._steps_since_fit() if self.dynamics.is_fitted else self.num_timesteps
        return {"max_gradient_steps": int(np.ceil(self.model_updates_per_step * steps))}

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps:
            self._last_fit_timestep = None  # num_timesteps starts at 0 again
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _forecast(self) -> Forecast:
        return Forecast("fitting", self.model_train_freq)

    def _watch_epochs(self) -> EpochCallback:
        """A callback that shows the epochs of one fit, in the progress bar or in a line every half minute."""
        return describe_epochs(EveryHalfMinute() if self.verbose >= 1 and self._progress_bar is None else self._describe)

    def _log_fit(self, report: FitReport) -> None:
        self._describe("")
        self._log({f"dynamics/{name}": value for name, value in report.scalars().items()})
        if self.verbose >= 1:
            print(f"Model fitted at step {self.num_timesteps}: {report.in_words()}")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "dynamics"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        state_dicts = [*state_dicts, "dynamics", "dynamics.optimizer"]
        if isinstance(self.dynamics.termination_fn, LearnedTermination):
            state_dicts.append("dynamics.termination_fn.optimizer")
        return state_dicts, variables
