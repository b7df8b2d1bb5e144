"""The base class of the off-policy algorithms of this package, whatever model they learn."""

import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.algorithms.checkpoints import ExactCheckpoints, restore_generator
from sb3_mbrl.algorithms.finiteness import check_reset, check_step
from sb3_mbrl.algorithms.forecast import Forecast
from sb3_mbrl.common.actions import for_sb3, from_environment, from_sb3
from sb3_mbrl.common.arguments import OFF_POLICY, Rule, plain_arguments
from sb3_mbrl.common.environments import accepted_environment, check_constructed_with_env, check_normalization
from sb3_mbrl.common.progress import ModelProgressBarCallback
from sb3_mbrl.common.replay_buffers import check_stored_actions, keep_scaled_actions, whole_rows

ROUND = 100
"""Environment steps over which the pace of training is measured if there are no fits that divide it into rounds."""

SelfModelBasedAlgorithm = TypeVar("SelfModelBasedAlgorithm", bound="ModelBasedAlgorithm")


class ModelBasedAlgorithm(ExactCheckpoints):
    """
    Mixin: list it before an off-policy SB3 class. It checks the arguments and what the environment returns, gives the model
    its own random stream, and logs the time that each phase of training takes.
    """

    _generator: th.Generator | None = None
    _progress_bar: ModelProgressBarCallback | None = None
    _seconds: Mapping[str, float] = MappingProxyType({})
    """Seconds spent in each phase so far, such as ``"fitting"``."""

    _accepted: ClassVar[dict[str, Rule]] = OFF_POLICY
    """Rules for the arguments, each of which is stored under its own name."""

    def __init__(self, *args: Any, **kwargs: Any):
        # Checked here, before SB3 calculates with the arguments
        super().__init__(*args, **{**kwargs, **plain_arguments(kwargs, self._accepted)})

    def _check_common_arguments(self) -> None:
        """
        Call this first in ``_setup_model``, since ``load`` sets attributes without calling the constructor with them.

        :raises ValueError: there is no environment, the policy is not a policy class, or a rule of :attr:`_accepted` is broken
        """
        check_constructed_with_env(self)
        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, BasePolicy)):
            raise ValueError(f"The policy of {type(self).__name__} must be {self._policies()}; got {self.policy_class!r}.")
        vars(self).update(plain_arguments(vars(self), self._accepted))

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name in self.policy_aliases:
            return self.policy_aliases[policy_name]
        elsewhere = {
            "CnnPolicy": " TDMPC2 supports images.",
            "MultiInputPolicy": " TDMPC2 supports Dict observations; or flatten them with "
            "gymnasium.wrappers.FlattenObservation.",
        }
        raise ValueError(
            f"Policy {policy_name} unknown: that of {type(self).__name__} must be {self._policies()}."
            f"{elsewhere.get(policy_name, '')}"
        )

    def _policies(self) -> str:
        """The policies that are accepted, to complete "it must be ..."."""
        subclass = "a subclass of it" if len(self.policy_aliases) == 1 else "a subclass of one of them"
        return f"{', '.join(map(repr, self.policy_aliases))} or {subclass}"

    @classmethod
    def _wrap_env(cls, env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:  # type: ignore[override]
        # The constructor, set_env and load all call this method, so every environment is checked before SB3 uses it
        env = accepted_environment(env)
        cls._check_spaces(env.observation_space, env.action_space)
        wrapped = OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_normalization(wrapped)
        return wrapped

    @staticmethod
    def _check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """:raises ValueError: the algorithm does not support these spaces"""

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        # The model has its own stream, so that its fits and rollouts do not change the random numbers of the algorithm
        self._generator = th.Generator(device=self.device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _setup_model(self) -> None:
        super()._setup_model()
        assert self.replay_buffer is not None
        keep_scaled_actions(self.replay_buffer)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._executed(*super()._sample_action(learning_starts, action_noise, n_envs))

    def _with_noise(self, actions: np.ndarray, action_noise: ActionNoise | None) -> tuple[np.ndarray, np.ndarray]:
        """
        :param actions: actions of a policy, in the environment's scale
        :param action_noise: noise that is added to Box actions in [-1, 1]
        :return: the actions that are executed, and those that are stored, scaled to [-1, 1]
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions, actions
        scaled = self.policy.scale_action(actions)
        if action_noise is not None:
            scaled = np.clip(scaled + action_noise(), -1, 1)
        return self._executed(self.policy.unscale_action(scaled), scaled)

    def _executed(self, actions: np.ndarray, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round actions if the environment would, so that the actions in the buffer are those that were executed."""
        if not isinstance(self.action_space, spaces.Box) or for_sb3(self.action_space) is self.action_space:
            return actions, scaled
        actions = from_sb3(actions, self.action_space)
        return actions, from_environment(actions, self.action_space)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_step(self, new_obs, reward, dones, infos)
        with whole_rows(replay_buffer):
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._last_episode_starts = dones  # an argument of policies that have a state

    def learn(
        self: SelfModelBasedAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfModelBasedAlgorithm:
        tb_log_name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.replay_buffer is not None
        check_stored_actions(self.replay_buffer)
        start = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        check_reset(self)
        self._warn_if_too_short(start[0])
        return start

    def _warn_if_too_short(self: Any, total_timesteps: int) -> None:
        """Warn if the run ends before training begins: SB3's algorithms act at random until ``learning_starts``."""
        n_rollouts = math.ceil((total_timesteps - self.num_timesteps) / self._steps_per_rollout)
        last = self.num_timesteps + n_rollouts * self._steps_per_rollout
        if last <= self.learning_starts:
            warnings.warn(
                f"Nothing will be learned: learn() ends at step {last}, and training begins after "
                f"learning_starts={self.learning_starts} steps of random actions. Pass more total_timesteps, or a smaller "
                "learning_starts."
            )

    @property
    def _steps_per_rollout(self: Any) -> int:
        """Environment steps between two calls of ``train``; 1 if ``train_freq`` counts episodes, whose length is not known."""
        train_freq = self.train_freq
        return train_freq.frequency * self.n_envs if train_freq.unit is TrainFrequencyUnit.STEP else 1

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._progress_bar = ModelProgressBarCallback() if progress_bar else None
        own = [self._forecast() if self.verbose >= 1 else None, self._progress_bar]
        shown = [each for each in own if each is not None]
        if shown:
            if isinstance(callback, list):
                callback = CallbackList(callback)
            elif not isinstance(callback, BaseCallback):
                callback = ConvertCallback(callback)
            callback = CallbackList([callback, *shown])
        return super()._init_callback(callback)

    def _forecast(self) -> Forecast:
        return Forecast("updating", ROUND)

    def _growth(self, phase: str, begin: int, total_timesteps: int) -> float:
        """
        :param phase: name of a phase, as passed to :meth:`_timed`
        :param begin: environment step since which the phase was measured
        :param total_timesteps: environment step at which ``learn`` ends
        :return: average cost of an environment step in this phase until the end, relative to its average cost since ``begin``
        """
        return 1.0

    @contextmanager
    def _timed(self, phase: str, description: str = "") -> Iterator[None]:
        """A context that adds the time spent in it to a phase, and describes the work in the progress bar."""
        start = time.perf_counter()
        if description:
            self._describe(description)
        try:
            yield
        finally:
            if description:
                self._describe("")
            spent = self._seconds.get(phase, 0.0) + time.perf_counter() - start
            self._seconds = {**self._seconds, phase: spent}
            self.logger.record(f"time/{phase}_seconds", self._seconds[phase])

    def _describe(self, text: str) -> None:
        if self._progress_bar is not None:
            self._progress_bar.describe(text)

    def _log(self, values: dict[str, float]) -> None:
        """Log to TensorBoard immediately, at this step, and to the table that SB3 prints every few episodes."""
        for key, value in values.items():
            self.logger.record(key, value, exclude="tensorboard")
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.write(values, dict.fromkeys(values, ()), self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_generator", "_progress_bar"]

    def _checkpoint_extras(self) -> dict[str, Any]:
        assert self._generator is not None
        return {**super()._checkpoint_extras(), "generator": self._generator.get_state()}

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        assert self._generator is not None
        super()._restore_checkpoint_extras(extras)
        restore_generator(self._generator, extras["generator"])


class MakesItsPolicy(ModelBasedAlgorithm):
    """Mixin for algorithms that make their policy themselves, because it holds a model or belongs to another algorithm."""

    def _setup_model(self) -> None:
        policy_class = self.policy_class
        # SB3 calls policy_class in the middle of its setup, when all seeds are set and the buffer exists
        self.policy_class = lambda *_, **kwargs: self._make_policy(policy_class, **kwargs)  # type: ignore[assignment, misc]
        try:
            super()._setup_model()
        finally:
            self.policy_class = policy_class

    @abstractmethod
    def _make_policy(self, policy_class: Any, **policy_kwargs: Any) -> BasePolicy:
        """
        :param policy_class: the class that the user chose
        :param policy_kwargs: the user's further arguments of the policy
        :return: the policy
        """
