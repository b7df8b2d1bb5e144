"""The true environment as a model to plan in, which shows what a planner achieves without any model error."""

import os
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_mbrl.common.actions import BOUND_ACTIONS, action_bounds, action_dim, to_environment, unscale
from sb3_mbrl.common.arguments import check_arguments, integer
from sb3_mbrl.common.environments import accepted_environment
from sb3_mbrl.common.model import Members, ModelStep
from sb3_mbrl.common.random import Generators
from sb3_mbrl.common.types import RewardFn, TerminationFn
from sb3_mbrl.common.user_functions import call, probe
from sb3_mbrl.tasks.classic_control import ClassicTask, Outcome
from sb3_mbrl.tasks.simulated import simulated_task
from sb3_mbrl.tasks.simulators import CopySimulator, GetState, SetState, Simulator, StateVectorSimulator
from sb3_mbrl.tasks.wrappers import without_transparent


def _known_simulator(env: Any, n_threads: int) -> Simulator | None:
    """
    :param env: an unwrapped environment
    :param n_threads: number of threads that step states
    :return: a simulator that steps all states at once; None if the task is not known
    """
    noisy = getattr(env, "torque_noise_max", 0) > 0
    task = None if noisy else simulated_task(env)
    if task is None or isinstance(task, ClassicTask):
        return task
    from sb3_mbrl.tasks.mujoco_simulator import MujocoSimulator  # imports MuJoCo, which classic control does not need

    return MujocoSimulator(task, n_threads)


class SimulatorModel:
    """
    The true environment as a model to plan in. The environment itself is never stepped. Gradients do not flow through it.

    How states are stepped depends on the environment:

    1. Gymnasium's MuJoCo tasks (v4 and v5, all but Pusher and HumanoidStandup) and its classic control: all states at once.
       States start from the observation alone. Coordinates that the observation leaves out start at zero (nothing depends on
       them), velocities that it clips start clipped (Hopper, Walker2d and InvertedDoublePendulum, at ±10). The rewards of Ant
       and Humanoid depend on positions in MuJoCo's last integrator stage, which no observation shows: the reward of the first
       step from ``start`` is off by a few 1e-4 (in contact up to 0.05), that of later steps is exact.
    2. With ``get_state`` and ``set_state``: one state after the other, in a copy of the environment. States start from the
       current state of the live environment.
    3. Any other environment: a deep copy of the live environment for each state and step. This is slow, and meant for small
       environments and tests.

    With 2 and 3, wrappers that change actions, observations or rewards are kept, but ``get_state`` does not read their
    internal state. A time limit does not end a state: ``truncated`` is ignored.

    :param env: the environment that the policy acts in, alone or in a ``DummyVecEnv`` (then with a state for each
        sub-environment, which must all be alike); an id is enough where states start from observations
    :param n_threads: number of threads that step MuJoCo; None: one for each core
    :param reward_fn: replaces the environment's reward
    :param termination_fn: replaces the environment's termination
    :param get_state: reads the state of ``env.unwrapped``, for an environment that is not one of the tasks in 1
    :param set_state: puts ``env.unwrapped`` into a state that ``get_state`` has read
    :raises ValueError: this environment cannot be simulated
    """

    def __init__(
        self,
        env: gym.Env | VecEnv | str,
        n_threads: int | None = None,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        get_state: GetState | None = None,
        set_state: SetState | None = None,
    ) -> None:
        check_arguments(locals(), {"n_threads": integer(1, 4096) | None})
        if (get_state is None) != (set_state is None):
            raise ValueError(
                "`get_state` and `set_state` belong together: one restores what the other reads. Pass both or neither."
            )
        envs = _environments(env)
        self.env_spec = envs[0].spec
        self.reward_fn, self.termination_fn = reward_fn, termination_fn
        self._set_spaces(envs[0])
        probe(self.observation_space, self.action_space, self.device, reward_fn=reward_fn, termination_fn=termination_fn)
        self.simulator = self._choose_simulator(envs, env, n_threads or os.cpu_count() or 1, get_state, set_state)

    def _set_spaces(self, env: gym.Env) -> None:
        if not isinstance(env.observation_space, gym.spaces.Box) or len(env.observation_space.shape) != 1:
            raise ValueError(
                f"Observation space {env.observation_space}: a SimulatorModel needs a flat Box. Wrap the environment: "
                "gymnasium.wrappers.FlattenObservation."
            )
        self.observation_space, self.action_space = env.observation_space, env.action_space
        if not isinstance(self.action_space, gym.spaces.Box | gym.spaces.Discrete):
            raise ValueError(
                f"Action space {self.action_space}: a SimulatorModel needs Box or Discrete actions. Wrap the environment."
            )
        if isinstance(self.action_space, gym.spaces.Box) and not self.action_space.is_bounded():
            raise ValueError(
                f"Action space {self.action_space}: its bounds must be finite, because actions in [-1, 1] are scaled to them. "
                f"{BOUND_ACTIONS}"
            )
        self._low, self._high = action_bounds(self.action_space)

    def _choose_simulator(
        self,
        envs: list[gym.Env],
        given: gym.Env | VecEnv | str,
        n_threads: int,
        get_state: GetState | None,
        set_state: SetState | None,
    ) -> Simulator:
        envs = [without_transparent(env) for env in envs]
        if get_state is None and all(env is env.unwrapped and type(env) is type(envs[0]) for env in envs):
            simulator = _known_simulator(envs[0], n_threads)
            if simulator is not None:
                return simulator
        if isinstance(given, str):
            raise ValueError(
                f"{given!r} is not a task whose state SimulatorModel can set from an observation. Instead of its id, pass the "
                "environment that the policy acts in, which is then copied."
            )
        if get_state is not None and set_state is not None:
            return StateVectorSimulator(envs, get_state, set_state)
        return CopySimulator(envs)

    @property
    def action_dim(self) -> int:
        """A: dimensions of the action, or the number of discrete actions."""
        return action_dim(self.action_space)

    @property
    def device(self) -> th.device:
        """Device of the states: simulators run on the CPU."""
        return th.device("cpu")

    @property
    def elites(self) -> th.Tensor:
        """``[0]``, because a simulator is not an ensemble."""
        return th.zeros(1, dtype=th.long)

    def start(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations of the environment, (B, O)
        :return: states to step from, float64, (B, S)
        :raises ValueError: the simulator starts from live environments, and their number is not that of the observations
        """
        return th.from_numpy(self.simulator.start(_to_numpy(obs)))

    def observe(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: (B, S)
        :return: the raw observations that the environment would give there, float32, (B, O)
        """
        return th.from_numpy(self.simulator.observe(_to_numpy(states)).astype(np.float32))

    def unscale_action(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: in [-1, 1] or one-hot, (..., A)
        :return: in the environment's scale; one-hot stays one-hot, (..., A)
        """
        action = action.detach().cpu()
        return action if isinstance(self.action_space, gym.spaces.Discrete) else unscale(action, self._low, self._high)

    def step(
        self,
        obs: th.Tensor,
        action: th.Tensor,
        generator: Generators = None,
        members: Members = "random",
        deterministic: bool = False,
        uncertainty: bool = False,
    ) -> ModelStep:
        """
        Step each state. After its simulation diverges, a state and its rewards are NaN, so that a planner ranks it last.

        :param obs: the states to step, from :meth:`start` or an earlier step, (B, S)
        :param action: in [-1, 1], (B, A); one-hot for discrete actions
        :param generator: not used, because nothing is random
        :param members: not used
        :param deterministic: not used
        :param uncertainty: also return standard deviations, all zero
        :return: the next step of each state: states float64, rewards float32
        """
        states = _to_numpy(obs)
        next_states, reward, terminated = self._step_healthy(states, action.detach())
        next_states_tensor = th.from_numpy(next_states)
        reward_tensor, terminated_tensor = th.from_numpy(reward.astype(np.float32)), th.from_numpy(terminated)
        if self.reward_fn is not None or self.termination_fn is not None:
            diverged = next_states_tensor.isnan().any(dim=1)
            seen = (self.observe(obs), self.unscale_action(action), self.observe(next_states_tensor))
            if self.reward_fn is not None:
                reward_tensor = call("reward_fn", self.reward_fn, *seen).float().masked_fill(diverged, th.nan)
            if self.termination_fn is not None:
                terminated_tensor = call("termination_fn", self.termination_fn, *seen) | diverged
        n_outputs = int(np.prod(self.observation_space.shape)) + 1
        std = th.zeros(len(states), n_outputs) if uncertainty else None
        return ModelStep(next_states_tensor, reward_tensor, terminated_tensor, std, std)

    def _step_healthy(self, states: np.ndarray, action: th.Tensor) -> Outcome:
        """
        :param states: (B, S)
        :param action: in [-1, 1] or one-hot, (B, A)
        :return: the outcome for each state: NaN and terminated if the state or action is not finite, or the simulation
            diverged
        """
        next_states = np.full(states.shape, np.nan)
        reward = np.full(len(states), np.nan)
        terminated = np.ones(len(states), dtype=bool)
        healthy = np.isfinite(states).all(axis=1) & action.isfinite().all(dim=1).cpu().numpy()
        if healthy.any():
            env_action = to_environment(action[th.from_numpy(healthy).to(action.device)], self.action_space)
            # NumPy must not warn about a state that diverges: NaN marks it
            with np.errstate(all="ignore"):
                outcome = self.simulator.step(states[healthy], env_action)
            next_states[healthy], reward[healthy], terminated[healthy] = outcome
        diverged = ~(np.isfinite(next_states).all(axis=1) & np.isfinite(reward))
        next_states[diverged], reward[diverged], terminated[diverged] = np.nan, np.nan, True
        return next_states, reward, terminated


def _to_numpy(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64, copy=False)


def _environments(env: gym.Env | VecEnv | str) -> list[gym.Env]:
    """
    :param env: an environment, a vectorised environment, or an id
    :return: the environments
    :raises ValueError: they run in other processes, or a ``VecEnv`` wrapper changes the shape of their observations
    """
    if isinstance(env, str):
        return [gym.make(env)]
    env = accepted_environment(env)
    if not isinstance(env, VecEnv):
        return [env]
    if not isinstance(env.unwrapped, DummyVecEnv):
        raise ValueError(
            f"The environments of a {type(env.unwrapped).__name__} run in other processes, where SimulatorModel cannot copy "
            "them. Pass a single environment of the same class (or its id), or use a DummyVecEnv."
        )
    envs = env.unwrapped.envs
    if env.observation_space.shape != envs[0].observation_space.shape:
        raise ValueError(
            f"{type(env).__name__} changes the shape of observations from {envs[0].observation_space.shape} to "
            f"{env.observation_space.shape}, but SimulatorModel needs those of the environment itself. Pass `env.unwrapped`."
        )
    return list(envs)
