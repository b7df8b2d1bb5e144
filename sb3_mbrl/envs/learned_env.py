"""A model as an environment of Gymnasium."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_mbrl.common.environments import RealEnv, accepted_environment, as_vec_env, max_episode_steps_for, spec_of
from sb3_mbrl.common.model import DynamicsModel, dynamics_of
from sb3_mbrl.envs.construction import ImaginedFromExperience
from sb3_mbrl.envs.experience import Bounds
from sb3_mbrl.envs.imagination import Imagination, StartFn, to_model
from sb3_mbrl.envs.rules import ImaginationRules
from sb3_mbrl.tasks.rendering import state_setter

N_INITIAL = 100
"""Number of resets of the real environment that give start states, if none are passed."""


class LearnedModelEnv(ImaginedFromExperience, gym.Env[np.ndarray, Any]):
    """
    One environment in a model, with the real one as ``env``, which is never stepped: it is reset to get start states, and put
    into the imagined state to be rendered. :class:`LearnedModelVecEnv` is many times faster per step::

        env = LearnedModelEnv.from_env("Pendulum-v1", n_steps=5_000)
        SAC("MlpPolicy", env).learn(10_000)
        evaluate_policy(model, Monitor(env.env))  # in the real one

    A prediction that is not finite truncates the episode in the state before it, with reward 0.

    :param env: the real environment or its id
    :param dynamics: a fitted model, an algorithm that has learned one (``MBPO``, ``PETS``, ``Dyna``), or a simulator that
        starts from observations
    :param start_states: raw observations (M, O) at which episodes begin, drawn uniformly, or ``f(n, generator) -> (n, O)``;
        None: those of 100 resets of the real environment
    :param max_episode_steps: steps until an episode is truncated; None: the time limit of the real environment, 1000 if it is
        not known
    :param observation_bounds: lowest and highest prediction, (O,) each; None: the bounds of the observation space
    :param rules: further arguments of :class:`~sb3_mbrl.envs.ImaginationRules`: ``propagation``, ``value_mode``,
        ``uncertainty_penalty``, ``max_disagreement``, ...
    :raises ValueError: the spaces of the environment are not those of the model, the model is not fitted, it cannot start
        from the start states, or a number or name is not accepted
    """

    def __init__(
        self,
        env: gym.Env | str,
        dynamics: DynamicsModel | BaseAlgorithm,
        start_states: np.ndarray | th.Tensor | StartFn | None = None,
        max_episode_steps: int | None = None,
        observation_bounds: Bounds | None = None,
        **rules: Any,
    ):
        self.env = gym.make(env) if isinstance(env, str) else _one_environment(env)
        dynamics = dynamics_of(dynamics)
        if max_episode_steps is None:
            with as_vec_env(self.env) as vec_env:
                max_episode_steps = max_episode_steps_for(vec_env)
        for name in ("observation_space", "action_space"):
            real, of_model = getattr(self.env, name), getattr(dynamics, name)
            if real != of_model:
                raise ValueError(
                    f"The model belongs to another environment: its {name} is {of_model}, but that of {self.env} is {real}."
                )
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.render_mode, self.metadata = self.env.render_mode, self.env.metadata
        self._set_state: Callable[[np.ndarray], None] | None = None
        starts = _initial_states(self.env) if start_states is None else start_states
        imagination_rules = ImaginationRules(max_episode_steps, **rules)
        self.imagination = Imagination(dynamics, 1, starts, imagination_rules, observation_bounds)

    @classmethod
    def _constructed(  # type: ignore[override]
        cls,
        env: RealEnv | None,
        dynamics: DynamicsModel,
        start_states: np.ndarray | th.Tensor | StartFn,
        observation_bounds: Bounds | None,
        **rules: Any,
    ) -> "LearnedModelEnv":
        real: Any = spec_of(env) if isinstance(env, VecEnv) else env
        if isinstance(real, EnvSpec):
            real = gym.make(real)
        return cls(real, dynamics, start_states, observation_bounds=observation_bounds, **rules)

    @classmethod
    def _check_env(cls, env: RealEnv | None) -> None:
        if env is None or (isinstance(env, VecEnv) and spec_of(env) is None):
            raise ValueError(
                "LearnedModelEnv needs the real environment, but none was passed that it could use or make again. Pass a "
                "single environment or its id, or use LearnedModelVecEnv, which does not need one."
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: seed of all following episodes; None: the random numbers continue
        :param options: not used
        :return: raw observation (O,), and an empty dictionary
        """
        super().reset(seed=seed)
        self.imagination.generator.manual_seed(int(self.np_random.integers(2**63 - 1)))
        obs = self.imagination.reset()
        self._show()
        return self._to_numpy(obs), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: in the environment's scale; clipped if it is out of bounds
        :return: raw observation (O,), reward, terminated, truncated, and an empty dictionary
        """
        step = self.imagination.step(to_model(np.asarray(action)[None], self.imagination.dynamics))
        self._show()
        obs = self._to_numpy(step.obs)
        return obs, step.reward.item(), bool(step.terminated.item()), bool(step.truncated.item()), {}

    def render(self) -> Any:
        """
        Render the real environment in the imagined state.

        :return: what ``render`` of the real environment returns
        :raises ValueError: the state of the environment cannot be set from an observation. It can be set for Gymnasium's
            classic control and MuJoCo tasks, as long as no wrapper changes the observation
        """
        if self._set_state is None:
            self._set_state = state_setter(self.env)
        self.imagination.require_reset()
        self._set_state(self.imagination.obs.cpu().numpy().astype(np.float64))
        return self.env.render()

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def close(self) -> None:
        """Close the real environment."""
        self.env.close()

    def _to_numpy(self, obs: th.Tensor) -> np.ndarray:
        return obs[0].cpu().numpy().astype(self.observation_space.dtype)


def _one_environment(env: Any) -> gym.Env:
    accepted = accepted_environment(env)
    if isinstance(accepted, VecEnv):
        raise ValueError(f"LearnedModelEnv needs a single real environment, got {env!r}: pass one of its environments.")
    return accepted


def _initial_states(env: gym.Env) -> np.ndarray:
    """Start states, clipped to the bounds of the space, which a real environment may leave."""
    states = np.stack([env.reset(seed=seed)[0] for seed in range(N_INITIAL)])
    space = env.observation_space
    return np.clip(states, space.low, space.high) if isinstance(space, gym.spaces.Box) else states
