"""PETS: planning with an ensemble of learned dynamics, https://arxiv.org/abs/1805.12114. Results: docs/modules/pets.md."""

import inspect
import io
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_mbrl.algorithms.acting import ActsByPlanning
from sb3_mbrl.algorithms.learning import LearnsDynamics
from sb3_mbrl.common.actions import to_environment
from sb3_mbrl.common.arguments import BOOLEAN, Rule
from sb3_mbrl.common.spaces import check_spaces
from sb3_mbrl.common.trajectories import real_transitions
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.mpc import MPCPolicy
from sb3_mbrl.mpc.planning_policy import check_observation
from sb3_mbrl.mpc.policy import PLANNING
from sb3_mbrl.planning import Planner

SelfPETS = TypeVar("SelfPETS", bound="PETS")

ENSEMBLE = {"ensemble_size": 5, "n_elites": 5, "net_arch": (200, 200, 200)}
"""The ensemble of PETS: all members step the model. The three layers of 200 units are those of its pusher; its cartpole has
3 x 500, its reacher and HalfCheetah 4 x 200."""

_SET_HERE = {"model", "planner", "horizon", "planner_kwargs", "replan_freq", "discount", "n_particles"}
_SET_HERE |= {"propagation", "vec_normalize", "seed"}

_AGENTS = ("actor", "terminal_value")
"""Arguments of the policy that may be SB3 algorithms."""


class PETS(LearnsDynamics, ActsByPlanning, OffPolicyAlgorithm):
    """
    Probabilistic ensembles with trajectory sampling (Chua et al. 2018): PETS acts at random, fits an ensemble, then plans each
    action in it, and refits it as data come in. There is no policy to train: ``predict`` plans.

    Paper: https://arxiv.org/abs/1805.12114; its code: https://github.com/kchua/handful-of-trials. Two arguments lead from
    planning once to model predictive control: ``aggregate=False`` fits the model once, to the random data, and
    ``replan_freq`` is the number of actions of a plan that are executed before the next plan (``horizon``: open loop; 1: MPC).

    :param policy: ``"MPCPolicy"`` or a subclass of :class:`~sb3_mbrl.MPCPolicy`
    :param env: flat Box observations of floats; Box actions with finite bounds, or Discrete; one environment or many
    :param learning_rate: learning rate of the model (PETS: 1e-3)
    :param buffer_size: size of the replay buffer
    :param learning_starts: environment steps of uniform random actions first (PETS: one episode)
    :param batch_size: rows of a gradient step of the model (PETS: 32)
    :param gamma: discount of rewards in a plan (PETS: 1)
    :param action_noise: noise added to the planned actions
    :param replay_buffer_class: Replay buffer class to use
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: further arguments of :class:`~sb3_mbrl.MPCPolicy` (``value_mode``, ``terminal_value``, ...). An SB3
        algorithm given as ``terminal_value`` or ``actor`` is not saved: pass it again to :meth:`load`
    :param verbose: Verbosity level: 0 for no output, 1 for a line per fit
    :param seed: Seed for the pseudo random generators
    :param device: Device on which the code should run
    :param planner: ``"cem"`` (PETS), ``"icem"``, ``"mppi"``, ``"pddm"``, ``"random_shooting"``, ``"gradient"`` or a
        :class:`~sb3_mbrl.planning.Planner`
    :param horizon: actions in a plan; None: the planner's default (PETS: 25)
    :param planner_kwargs: further arguments of the planner
    :param replan_freq: planned actions executed before the next plan
    :param n_particles: rollouts of each candidate (PETS: 20); None: one for each elite
    :param propagation: ``"tsinf"`` (PETS), ``"ts1"`` or ``"expectation"``
    :param model_train_freq: environment steps between two fits (PETS: an episode)
    :param model_updates_per_step: budget of a fit: at most this many gradient steps of the model per environment step since
        the last one; of the first fit, since the beginning. None: every fit runs to its end
    :param aggregate: fit the model again and again, to the steps of planning too; False: once, to the random data
    :param reward_fn: the reward ``f(obs (B, O), action (B, A), next_obs (B, O)) -> (B,)`` on torch tensors, actions in the
        environment's scale (one-hot if discrete); learned if None (PETS is given it)
    :param termination_fn: ``"auto"``: the environment's own rule where it is a known Gymnasium task, otherwise learned;
        ``"learned"``; a function ``f(obs, action, next_obs) -> (B,) bool``; None: the task never terminates
    :param dynamics_kwargs: arguments of :class:`~sb3_mbrl.dynamics.ProbabilisticEnsemble`; by default it has 5
        members, all of them elites, with three layers of 200 units
    :param fit_kwargs: arguments of :func:`~sb3_mbrl.dynamics.fitting.fit`
    :param _init_setup_model: Whether or not to build the model at the creation of the instance
    :raises ValueError: an argument or a space is not supported; the message says what is
    """

    algorithm_name = "PETS"
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MPCPolicy": MPCPolicy}

    policy: MPCPolicy

    _accepted: ClassVar[dict[str, Rule]] = {**LearnsDynamics._accepted, **PLANNING, "aggregate": BOOLEAN}

    def __init__(
        self,
        policy: str | type[MPCPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 200,
        batch_size: int = 256,
        *,
        gamma: float = 1.0,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        planner: str | Planner = "icem",
        horizon: int | None = None,
        planner_kwargs: Mapping[str, Any] | None = None,
        replan_freq: int = 1,
        n_particles: int | None = None,
        propagation: str = "tsinf",
        model_train_freq: int = 200,
        model_updates_per_step: float | None = 10.0,
        aggregate: bool = True,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = "auto",
        dynamics_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            gamma=gamma,
            train_freq=1,
            gradient_steps=1,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
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
        self.planner = planner
        self.horizon = horizon
        self.planner_kwargs = dict(planner_kwargs or {})
        self.replan_freq = replan_freq
        self.n_particles = n_particles
        self.propagation = propagation
        self.aggregate = aggregate
        # Not saved in the zip, because they hold buffers, environments and open log files of their own
        self._agents = {
            name: self.policy_kwargs[name] for name in _AGENTS if isinstance(self.policy_kwargs.get(name), BaseAlgorithm)
        }
        self._agent_names: list[str] = []
        self.policy_kwargs = {name: value for name, value in self.policy_kwargs.items() if name not in self._agents}

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_common_arguments()
        check_spaces(self.observation_space, self.action_space)
        self._check_dynamics_arguments("learning_rate", "batch_size")
        self._check_policy_arguments()
        super()._setup_model()

    def _check_policy_arguments(self) -> None:
        if not issubclass(self.policy_class, MPCPolicy):
            raise ValueError(f"policy must be 'MPCPolicy' or a subclass of MPCPolicy, got {self.policy_class.__name__}.")
        signatures = [inspect.signature(cls).parameters for cls in (MPCPolicy, self.policy_class)]
        accepted = sorted({name for names in signatures for name in names} - _SET_HERE - {"args", "kwargs"})
        refused = [argument for argument in self.policy_kwargs if argument not in accepted]
        if refused:
            raise ValueError(
                f"policy_kwargs does not accept {refused}; it accepts {accepted}. Others are set by PETS's own arguments, "
                "networks by dynamics_kwargs."
            )
        if self.action_noise is not None and not isinstance(self.action_space, spaces.Box):
            raise ValueError(f"action_noise is for Box actions, got {self.action_space}. Leave it None.")

    def _make_policy(self, policy_class: type[MPCPolicy], **policy_kwargs: Any) -> MPCPolicy:
        missing = [name for name in self._agent_names if name not in self._agents]
        if missing:
            raise ValueError(
                f"This PETS was saved with SB3 algorithms as {missing}, which its file does not hold. Pass them again: "
                f"PETS.load(path, {', '.join(f'{name}=...' for name in missing)})."
            )
        self._agent_names = list(self._agents)
        self._setup_dynamics(learning_rate=self.lr_schedule(1.0))
        return policy_class(
            self.dynamics,
            self.planner,
            self.horizon,
            self.planner_kwargs,
            replan_freq=self.replan_freq,
            discount=self.gamma,
            n_particles=self.n_particles,
            propagation=self.propagation,
            vec_normalize=self._vec_normalize_env,
            seed=self.seed,
            **{**policy_kwargs, **self._agents},
        )

    def _setup_dynamics(self, **arguments: Any) -> None:
        self.dynamics_kwargs = {**ENSEMBLE, **self.dynamics_kwargs}
        super()._setup_dynamics(**arguments)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        self.policy.vec_normalize = self._vec_normalize_env

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Refit the model if a fit is due.

        :param gradient_steps: has no effect, since the budget of a fit is ``model_updates_per_step``
        :param batch_size: rows of a gradient step
        """
        if self._fit_is_due():
            assert self.replay_buffer is not None
            self._update_learning_rate(self.dynamics.optimizer)
            self._fit_dynamics(real_transitions(self.replay_buffer, self.device), batch_size=batch_size)
            self._last_fit_timestep = self.num_timesteps

    def _fit_is_due(self) -> bool:
        return (self.aggregate or not self.dynamics.is_fitted) and super()._fit_is_due()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts or not self.dynamics.is_fitted:
            self._planner_state = None
            return super()._sample_action(self.num_timesteps + 1, action_noise, n_envs)
        return self._with_noise(self._planned_actions(), action_noise)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan, see :meth:`sb3_mbrl.MPCPolicy.predict`. Before the first fit there is no model to plan in. Actions are then
        the middle of their bounds, or the first of discrete ones, so that an evaluation during the warm-up does not fail.

        :param observation: the observation of one environment, or of B environments
        :param state: what the last call returned; None at the beginning
        :param episode_start: where a new episode begins, (B,)
        :param deterministic: draw the same samples in each call, instead of new ones
        :return: actions in the environment's scale, and the state for the next call
        """
        if self.dynamics.is_fitted:
            return super().predict(observation, state, episode_start, deterministic)
        check_observation(observation)
        obs, vectorized = self.policy.obs_to_tensor(observation)
        actions = to_environment(th.zeros(len(obs), self.dynamics.action_dim), self.action_space)
        return actions if vectorized else actions[0], None

    @classmethod
    def load(
        cls: type[SelfPETS],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPETS:
        """
        Load the model from a zip-file, as SB3 does.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on, or its name (can be None if you only need prediction)
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior
        :param kwargs: extra arguments to change the model when loading; ``terminal_value`` and ``actor`` of the policy, needed
            again if they were SB3 algorithms
        :return: new model instance with loaded parameters
        :raises ValueError: the file is damaged, was saved by another algorithm, or ``terminal_value`` or ``actor`` is missing
        """
        agents = {name: kwargs.pop(name) for name in _AGENTS if name in kwargs}
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, _agents=agents, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_agents"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        # The policy holds nothing but the dynamics, which are saved already
        return [name for name in state_dicts if name != "policy"], variables
