"""A model as a vectorised environment of Stable-Baselines3."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from sb3_mbrl.common.actions import for_sb3, from_sb3
from sb3_mbrl.common.arguments import check_arguments
from sb3_mbrl.common.environments import RealEnv
from sb3_mbrl.common.model import DynamicsModel, dynamics_of
from sb3_mbrl.envs.construction import N_ENVS, ImaginedFromExperience
from sb3_mbrl.envs.experience import Bounds
from sb3_mbrl.envs.imagination import Imagination, StartFn, to_model
from sb3_mbrl.envs.rules import ImaginationRules


class LearnedModelVecEnv(ImaginedFromExperience, VecEnv):
    """
    Any number of environments in a model: a step of all of them is one batch through the model. An algorithm of
    Stable-Baselines3 that learns in them takes no real step::

        env = LearnedModelVecEnv.from_env("Pendulum-v1", n_envs=256, n_steps=5_000)
        PPO("MlpPolicy", env).learn(500_000)

    The ``action_space`` is one in which algorithms of SB3 can act: discrete actions are counted from 0, whatever the ``start``
    of the real space is, and a Box of integers becomes one of floats, which are rounded. Policies that count as the real space
    does, such as :class:`~sb3_mbrl.MPCPolicy`, act in :class:`LearnedModelEnv` instead.

    The environments behave as SB3's ``DummyVecEnv``; wrap them in ``VecMonitor`` to see returns, in ``VecNormalize`` to scale.
    A prediction that is not finite truncates its episode in the state before it, with reward 0.

    :param dynamics: a fitted model, an algorithm that has learned one (``MBPO``, ``PETS``, ``Dyna``), or a simulator that
        starts from observations
    :param n_envs: number of environments
    :param start_states: raw observations (M, O) at which episodes begin, drawn uniformly, or ``f(n, generator) -> (n, O)``
    :param max_episode_steps: steps until an episode is truncated
    :param observation_bounds: lowest and highest prediction, (O,) each; None: the bounds of the observation space
    :param rules: further arguments of :class:`~sb3_mbrl.envs.ImaginationRules`: ``propagation``, ``value_mode``,
        ``uncertainty_penalty``, ``max_disagreement``, ``stagger``, ...
    :raises ValueError: the model is not fitted, it cannot start from the start states, or a number or name is not accepted
    """

    def __init__(
        self,
        dynamics: DynamicsModel | BaseAlgorithm,
        n_envs: int,
        start_states: np.ndarray | th.Tensor | StartFn,
        max_episode_steps: int,
        observation_bounds: Bounds | None = None,
        **rules: Any,
    ):
        check_arguments(locals(), {"n_envs": N_ENVS})
        dynamics = dynamics_of(dynamics)
        imagination_rules = ImaginationRules(max_episode_steps, **rules)
        self.imagination = Imagination(dynamics, n_envs, start_states, imagination_rules, observation_bounds)
        self.render_mode: str | None = None  # SB3 asks for it before it is set
        super().__init__(n_envs, dynamics.observation_space, for_sb3(dynamics.action_space))

    @classmethod
    def _constructed(  # type: ignore[override]
        cls,
        env: RealEnv | None,
        dynamics: DynamicsModel,
        start_states: np.ndarray | th.Tensor | StartFn,
        observation_bounds: Bounds | None,
        n_envs: int,
        **rules: Any,
    ) -> "LearnedModelVecEnv":
        return cls(dynamics, n_envs, start_states, observation_bounds=observation_bounds, **rules)

    def reset(self) -> np.ndarray:
        """
        Begin all episodes anew. The seed that was set for the first environment, if any, seeds all of them.

        :return: raw observations, (n_envs, O)
        """
        if self._seeds[0] is not None:
            self.imagination.generator.manual_seed(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._to_numpy(self.imagination.reset())

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: in the environment's scale, clipped to its bounds; discrete ones are counted from 0; (n_envs,
            \\*action_space.shape)
        :raises ValueError: a discrete action is not counted from 0
        """
        dynamics = self.imagination.dynamics
        self._check_counted_from_zero(np.asarray(actions), dynamics.action_space)
        self._actions = to_model(from_sb3(np.asarray(actions), dynamics.action_space), dynamics)

    def _check_counted_from_zero(self, actions: np.ndarray, real: spaces.Space) -> None:
        if isinstance(self.action_space, spaces.Discrete) and not (0 <= actions.min() and actions.max() < self.action_space.n):
            raise ValueError(
                f"The actions range from {actions.min()} to {actions.max()}, but {type(self).__name__} counts them from 0 to "
                f"{self.action_space.n - 1}, as algorithms of Stable-Baselines3 do. Policies that act in {real}, such as "
                "MPCPolicy, can be evaluated in LearnedModelEnv, whose actions are those of the real environment."
            )

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: raw observations (n_envs, O), rewards (n_envs,) float32, dones (n_envs,) bool, infos; an environment that is
            done has been reset, its last observation is ``infos[i]["terminal_observation"]``
        """
        step = self.imagination.step(self._actions)
        # All results are copied to the host in one transfer; float32 represents bool exactly
        columns = [step.obs, step.reward.unsqueeze(1), step.terminated.unsqueeze(1), step.truncated.unsqueeze(1)]
        table = th.cat([column.float() for column in columns], dim=1).cpu().numpy()
        obs, rewards = self._cast(table[:, :-3]), table[:, -3].copy()
        terminated, truncated = table[:, -2:].T > 0.5
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        done = np.flatnonzero(dones)
        if len(done) > 0:
            for i in done:
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                infos[i]["terminal_observation"] = obs[i].copy()
            obs[done] = self._to_numpy(self.imagination.reset(th.as_tensor(done, device=step.obs.device)))
        return obs, rewards, dones, infos

    def _to_numpy(self, obs: th.Tensor) -> np.ndarray:
        return self._cast(obs.cpu().numpy())

    def _cast(self, obs: np.ndarray) -> np.ndarray:
        """A new array with the dtype of the observation space."""
        return obs.astype(self.observation_space.dtype)

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: an attribute of this object, which all environments share
        :param indices: environments
        :return: the value, once for each of them
        """
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: an attribute of this object, which all environments share
        :param value: value for all environments
        :param indices: all environments
        :raises ValueError: ``indices`` are only some of the environments
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"{attr_name!r} is shared by all imagined environments and cannot be set for {indices} alone. Leave out "
                "indices."
            )
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: a method of this object, which is called once
        :param method_args: arguments of the method
        :param indices: environments
        :param method_kwargs: keyword arguments of the method
        :return: the result of the method, once for each environment
        """
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a wrapper of Gymnasium
        :param indices: environments
        :return: False, once for each environment
        """
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: None for each environment; :class:`~sb3_mbrl.envs.LearnedModelEnv` renders
        """
        return [None] * self.num_envs
