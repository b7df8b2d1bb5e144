"""Dyna with deep networks: any algorithm of Stable-Baselines3, trained in a model. Results: docs/modules/dyna.md."""

import io
import pathlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_mbrl.algorithms.base import MakesItsPolicy
from sb3_mbrl.algorithms.checkpoints import noise_for
from sb3_mbrl.algorithms.learning import LearnsDynamics
from sb3_mbrl.algorithms.replay_files import pickle_replay_buffer
from sb3_mbrl.common.actions import for_sb3, from_sb3
from sb3_mbrl.common.arguments import Rule, integer
from sb3_mbrl.common.environments import MAX_EPISODE_STEPS, max_episode_steps_for, time_limit
from sb3_mbrl.common.replay_buffers import end_trajectories
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.tensors import check_optimizers
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.dyna.spaces_only import SpacesOnly
from sb3_mbrl.dyna.validation import StopWhenNoLongerBetter, ValidatesItsAgent
from sb3_mbrl.envs import LearnedModelVecEnv
from sb3_mbrl.envs.construction import N_ENVS
from sb3_mbrl.envs.experience import StartStates, check_start_states
from sb3_mbrl.envs.rules import RULES, ImaginationRules

_SET_HERE = {"policy", "env", "seed", "device", "tensorboard_log", "verbose", "_init_setup_model"}


class Dyna(ValidatesItsAgent, MakesItsPolicy, OffPolicyAlgorithm):
    """
    Trains an algorithm of Stable-Baselines3, unchanged, in a learned model: Dyna acts at random, fits an ensemble of dynamics,
    lets the algorithm learn in many imagined environments, acts with what it has learned, and so on (Sutton 1991; with
    ensembles and a policy gradient it is ME-TRPO, https://arxiv.org/abs/1802.10592)::

        Dyna(PPO, "MlpPolicy", "Pendulum-v1").learn(10_000)  # real steps; those of PPO are imagined

    Steps are counted, logged and shown to callbacks in the real environment. The trained algorithm is the attribute ``agent``;
    its schedules follow the progress of the real run. The round of an on-policy algorithm ends early when its policy no longer
    becomes better on most members of the ensemble (ME-TRPO's rule).

    Three numbers tell whether the policy exploits errors of the model. ``imagination/return_mean`` is the undiscounted return
    that the model promises for the policy, over episodes from real first states up to the real time limit.
    ``imagination/gap`` is how much more that was than the mean return of the real episodes that followed.
    ``imagination/alarm`` is 1 if the gap exceeds three standard deviations of the imagined returns and a fifth of their mean
    together. If the environment does not tell its time limit, the longest of the latest real episodes replaces it. Nothing is
    compared until an episode has ended, if a real episode is longer or is truncated earlier, or if ``reward_fn`` is another
    reward.

    :param algorithm_class: an on- or off-policy algorithm of Stable-Baselines3, sb3-contrib or yours
    :param policy: policy of the algorithm
    :param env: an environment or many, with flat Box observations of floats, and Box actions with finite bounds or Discrete
        actions, as the algorithm supports them
    :param algorithm_kwargs: further arguments of the algorithm. The ``n_steps`` of PPO count the steps of each imagined
        environment; the ``buffer_size`` of an off-policy algorithm decides how long it keeps what older models imagined
    :param buffer_size: capacity for real transitions
    :param learning_starts: real steps with uniform random actions first
    :param action_noise: noise added to the actions of real steps, for algorithms that do not explore by themselves (TD3)
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param verbose: Verbosity level: 0 for no output, 1 for a line per fit and alarm
    :param seed: Seed for the pseudo random generators
    :param device: Device on which the code should run
    :param n_imagined_envs: number of environments in the model
    :param imagined_steps_per_step: imagined steps of the algorithm for each real one, over all imagined environments; an
        on-policy algorithm makes at least one rollout in each round
    :param max_episode_steps: steps until an imagined episode is truncated; None: the time limit of the environment, 1000 if
        it is not known. Short episodes keep the model's errors from adding up
    :param start_states: where imagined episodes start: ``"all"`` real states, ``"initial"`` ones, an array or a function, see
        :meth:`LearnedModelVecEnv.from_algorithm <sb3_mbrl.LearnedModelVecEnv.from_algorithm>`
    :param value_mode: ``"expected"``, ``"pessimistic"`` or ``"optimistic"`` rewards
    :param uncertainty_penalty: subtracted from imagined rewards, times the disagreement of the ensemble (MOPO)
    :param max_disagreement: imagined tasks end where the ensemble disagrees by more (MOReL); None: never
    :param halt_reward: reward of a step at which a task ends in this way
    :param model_train_freq: real steps between two rounds of fitting and imagining
    :param model_updates_per_step: budget of a fit: at most this many gradient steps of the model per real step since the last
        one; of the first fit, since the beginning. None: every fit runs to its end
    :param reward_fn: the reward ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)`` on torch tensors, actions in the
        environment's scale (one-hot if discrete); learned if None
    :param termination_fn: ``"auto"``: the environment's own rule where it is a known Gymnasium task, otherwise learned;
        ``"learned"``; a function ``f(obs, action, next_obs) -> (B,) bool``; None: the task never terminates
    :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`
    :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit`
    :param _init_setup_model: Whether or not to build the networks at the creation of the instance
    :param unknown: must be empty: arguments of the algorithm belong in ``algorithm_kwargs``
    :raises TypeError: an argument has an unknown name
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    algorithm_name = "Dyna"

    _accepted: ClassVar[dict[str, Rule]] = {
        **LearnsDynamics._accepted,
        "n_imagined_envs": N_ENVS,
        "imagined_steps_per_step": integer(1, 10**7),
        "max_episode_steps": RULES["max_episode_steps"] | None,
        **{name: RULES[name] for name in ("uncertainty_penalty", "max_disagreement", "halt_reward")},
    }

    def __init__(
        self,
        algorithm_class: type[BaseAlgorithm] = PPO,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        *,
        algorithm_kwargs: Mapping[str, Any] | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        action_noise: ActionNoise | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        n_imagined_envs: int = 16,
        imagined_steps_per_step: int = 100,
        max_episode_steps: int | None = None,
        start_states: StartStates = "all",
        value_mode: str = "expected",
        uncertainty_penalty: float = 0.0,
        max_disagreement: float | None = None,
        halt_reward: float | None = None,
        model_train_freq: int = 250,
        model_updates_per_step: float | None = 10.0,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        dynamics_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        _init_setup_model: bool = True,
        **unknown: Any,
    ):
        if unknown:
            raise TypeError(
                f"Dyna has no arguments {sorted(unknown)}. Those of the algorithm belong in algorithm_kwargs={unknown!r}."
            )
        super().__init__(
            BasePolicy,  # replaced by the policy of the algorithm
            env,  # type: ignore[arg-type]
            learning_rate=1e-3,  # not used: the model and the algorithm have learning rates of their own
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            train_freq=1,
            gradient_steps=1,
            action_noise=action_noise,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
        )
        self._store_dynamics_arguments(
            model_train_freq, model_updates_per_step, reward_fn, termination_fn, dynamics_kwargs, fit_kwargs
        )
        self.algorithm_class = algorithm_class
        self.agent_policy = policy
        self.algorithm_kwargs = dict(algorithm_kwargs or {})
        self.n_imagined_envs = n_imagined_envs
        self.imagined_steps_per_step = imagined_steps_per_step
        self.max_episode_steps = max_episode_steps
        self.start_states = start_states
        self.value_mode = value_mode
        self.uncertainty_penalty = uncertainty_penalty
        self.max_disagreement = max_disagreement
        self.halt_reward = halt_reward
        self._agent_zip = b""  # filled only while the algorithm is being saved or loaded
        self._agent_state: Any = None  # state of a recurrent policy

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_algorithm()
        self._check_common_arguments()
        check_spaces(self.observation_space, self.action_space)
        self._check_dynamics_arguments()
        self._check_arguments()
        super()._setup_model()

    def _check_algorithm(self) -> None:
        """Check this first: a user who forgets the algorithm passes the policy and the environment in the wrong places."""
        if not (isinstance(self.algorithm_class, type) and issubclass(self.algorithm_class, BaseAlgorithm)):
            raise ValueError(
                f"algorithm_class must be a class of Stable-Baselines3 such as PPO, got {self.algorithm_class!r}."
            )
        if not isinstance(self.agent_policy, (str, type)):
            raise ValueError(
                "policy must be the name or class of a policy of the algorithm, such as 'MlpPolicy', got "
                f"{self.agent_policy!r}."
            )

    def _check_arguments(self) -> None:
        refused = sorted(_SET_HERE & self.algorithm_kwargs.keys())
        if refused:
            raise ValueError(f"algorithm_kwargs does not accept {refused}: they are set by Dyna's own arguments.")
        check_start_states(self.start_states, self.observation_space, self.device)
        ImaginationRules(self._imagined_episode_length(), **self._rules())
        if self.value_mode != "expected" and self.reward_fn is not None:
            raise ValueError(
                f"value_mode={self.value_mode!r} needs a learned reward, but reward_fn is given. Use uncertainty_penalty, or "
                "leave out reward_fn."
            )

    def _imagined_episode_length(self) -> int:
        """Steps until an imagined episode is truncated."""
        return (time_limit(self.env) or MAX_EPISODE_STEPS) if self.max_episode_steps is None else self.max_episode_steps

    def _rules(self) -> dict[str, Any]:
        names = ("value_mode", "uncertainty_penalty", "max_disagreement", "halt_reward")
        return {name: getattr(self, name) for name in names}

    def _make_policy(self, policy_class: type[BasePolicy], **policy_kwargs: Any) -> BasePolicy:
        self._setup_dynamics()
        imagined: Any = SpacesOnly(self.n_imagined_envs, self.observation_space, for_sb3(self.action_space))
        if self._agent_zip:  # n_imagined_envs may have been changed by an argument of load
            self.agent = self.algorithm_class.load(io.BytesIO(self._agent_zip), imagined, self.device)
            self._agent_zip = b""
            check_optimizers(self.agent)
        else:
            self.agent = self.algorithm_class(
                self.agent_policy,  # type: ignore[arg-type]
                imagined,
                seed=self.seed,
                device=self.device,
                **deepcopy(self.algorithm_kwargs),  # SB3 writes to them
            )
        return self.agent.policy

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        If a fit is due, refit the model and let the algorithm learn in it.

        :param gradient_steps: has no effect
        :param batch_size: has no effect
        """
        if not self._fit_is_due():
            return
        assert self.replay_buffer is not None
        self._compare_with_reality()
        transitions = real_transitions(self.replay_buffer, self.device)
        report = self._fit_dynamics(transitions)
        if report is not None:  # otherwise the replay buffer was not restored, and has to fill up first
            with self._timed("imagining", "imagining"):
                self._learn_in_the_model(self.imagined_steps_per_step * self._steps_since_fit())
                self._promise(comparable=report.reward_agrees)
        self._last_fit_timestep = self.num_timesteps

    def _learn_in_the_model(self, n_steps: int) -> None:
        """
        :param n_steps: steps of the algorithm, over all imagined environments
        """
        length = self._imagined_episode_length()
        self.agent.set_env(self._imagined(self.n_imagined_envs, self.start_states, length, **self._rules()))
        self.agent.set_logger(Logger(None, []))
        if isinstance(self.agent, OffPolicyAlgorithm):
            self.agent.action_noise = noise_for(self.agent.action_noise, self.n_imagined_envs)
        stop = StopWhenNoLongerBetter(self._validate) if isinstance(self.agent, OnPolicyAlgorithm) else None
        before = self.agent.num_timesteps
        try:
            with self._progress_of_the_real_run():
                self.agent.learn(n_steps, callback=stop, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        finally:  # even if this round was interrupted, because the next round begins in other states
            end_trajectories(getattr(self.agent, "replay_buffer", None))

        self._log({"imagination/n_steps": self.agent.num_timesteps - before})
        for name, value in self.agent.logger.name_to_value.items():
            self.logger.record(f"agent/{name}", value)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts or not self.dynamics.is_fitted:
            return super()._sample_action(self.num_timesteps + 1, action_noise, n_envs)
        assert isinstance(self._last_obs, np.ndarray)
        if np.all(self._last_episode_starts):  # type: ignore[arg-type]  # these may be other environments
            self._agent_state = None
        actions, self._agent_state = self.agent.predict(
            self._last_obs, self._agent_state, self._last_episode_starts, deterministic=False
        )
        return self._with_noise(from_sb3(actions, self.action_space), action_noise)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act with what the algorithm has learned.

        :param observation: one observation or a batch
        :param state: state of a recurrent policy
        :param episode_start: where a new episode begins, and the state is forgotten
        :param deterministic: False: the policy explores
        :return: actions in the environment's scale, and the new state
        """
        actions, state = self.agent.predict(observation, state, episode_start, deterministic)
        return from_sb3(actions, self.action_space), state

    def _imagined(
        self, n_envs: int, start_states: StartStates, max_episode_steps: int | None, norm_reward: bool = True, **rules: Any
    ) -> VecEnv:
        """Environments in the model, normalised as the real ones are now."""
        env = LearnedModelVecEnv.from_algorithm(self, start_states, max_episode_steps, n_envs=n_envs, **rules)
        assert self._generator is not None
        env.seed(int(th.randint(2**31 - n_envs, (1,), generator=self._generator, device=self._generator.device)))
        if self._vec_normalize_env is None:
            return env
        normalized: VecNormalize = deepcopy(self._vec_normalize_env)  # without the environments
        normalized.set_venv(env)
        normalized.training = False
        normalized.norm_reward &= norm_reward
        return normalized

    @contextmanager
    def _progress_of_the_real_run(self) -> Iterator[None]:
        """A context in which the algorithm's schedules (learning rate, exploration) follow the progress of the real run."""

        def follow(num_timesteps: int, total_timesteps: int) -> None:
            self.agent._current_progress_remaining = self._current_progress_remaining

        self.agent._update_current_progress_remaining = follow  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.agent._update_current_progress_remaining  # the method of the class is used again

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps:
            self._episodes_before = 0
        if self.max_episode_steps is None and self.env is not None:
            max_episode_steps_for(self.env)  # warns if it is not known
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        content = io.BytesIO()
        self.agent.save(content)  # the algorithm's own method knows what has to be saved
        self._agent_zip = content.getvalue()
        try:
            super().save(path, exclude, include)
        finally:
            self._agent_zip = b""

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "agent"]

    def _checkpoint_extras(self) -> dict[str, Any]:
        extras = super()._checkpoint_extras()
        buffer = getattr(self.agent, "replay_buffer", None)
        if buffer is not None:  # an off-policy algorithm keeps what it has imagined
            extras["agent_buffer"] = th.frombuffer(bytearray(pickle_replay_buffer(buffer)), dtype=th.uint8)
        return extras

    def _restore_checkpoint_extras(self, extras: dict[str, Any]) -> None:
        super()._restore_checkpoint_extras(extras)
        if "agent_buffer" in extras:
            buffer: ReplayBuffer = pickle.loads(extras["agent_buffer"].cpu().numpy().tobytes())
            if buffer.n_envs != self.n_imagined_envs:
                raise ValueError(
                    f"The checkpoint holds imagined transitions of n_imagined_envs={buffer.n_envs} parallel environments, got "
                    f"n_imagined_envs={self.n_imagined_envs}. Do not change this argument, or load model.zip of the "
                    "checkpoint."
                )
            buffer.device = self.agent.device
            self.agent.replay_buffer = buffer  # type: ignore[attr-defined]

    def _random_state(self) -> dict[str, Any]:
        # Agent and environment share the generator of one action space. Pickled together, they share it again after loading
        return {**super()._random_state(), "agent_action_space": self.agent.action_space._np_random}

    def _restore_random_state(self, state: dict[str, Any]) -> None:
        super()._restore_random_state(state)
        self.agent.action_space._np_random = state["agent_action_space"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [name for name in state_dicts if name != "policy"], variables  # the agent saves its policy
