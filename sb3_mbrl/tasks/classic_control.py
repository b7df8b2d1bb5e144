"""Gymnasium's classic control for a batch of states: steps, observations, rewards and terminations."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_mbrl.tasks.registry import end_of
from sb3_mbrl.tasks.termination_rules import TerminatesAboveBar

Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Next states (B, S) float64, rewards (B,) float64, whether the task ended (B,) bool."""


class ClassicTask:
    """
    A task of Gymnasium's classic control. A state is the environment's attribute ``state``, which is also the observation
    unless a subclass says otherwise.

    :param env: the unwrapped environment; its attributes are copied, so later changes have no effect here
    """

    def __init__(self, env: Any) -> None:
        self.task = copy.copy(env)
        self.end = end_of(env)

    def start(self, obs: np.ndarray) -> np.ndarray:
        """
        :param obs: observations, (B, O)
        :return: states, (B, S)
        """
        return obs.copy()

    def observe(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: observations, (B, O)
        """
        return states

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        """
        :param states: (B, S)
        :param action: as the environment's ``step`` takes it, (B, *action_space.shape)
        :return: the outcome for each state
        """
        raise NotImplementedError

    def show(self, env: Any, obs: np.ndarray) -> None:
        """
        :param env: an unwrapped environment of this task
        :param obs: the observation (1, O) whose state it is put into
        """
        env.state = self.start(obs)[0]


class _Pendulum(ClassicTask):
    """``pendulum.py``."""

    def start(self, obs: np.ndarray) -> np.ndarray:
        return np.stack([np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]], axis=1)

    def observe(self, states: np.ndarray) -> np.ndarray:
        angle, velocity = states.T
        return np.stack([np.cos(angle), np.sin(angle), velocity], axis=1)

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        task, (angle, velocity) = self.task, states.T
        torque = np.clip(action[:, 0], -task.max_torque, task.max_torque)
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        cost = wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2
        acceleration = 3 * task.g / (2 * task.l) * np.sin(angle) + 3.0 / (task.m * task.l**2) * torque
        velocity = np.clip(velocity + acceleration * task.dt, -task.max_speed, task.max_speed)
        next_states = np.stack([angle + velocity * task.dt, velocity], axis=1)
        return next_states, -cost, self.end.ended(next_states)


class _CartPole(ClassicTask):
    """``cartpole.py``."""

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        task, (x, x_dot, theta, theta_dot) = self.task, states.T
        force = np.where(action == 1, task.force_mag, -task.force_mag)
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + task.polemass_length * theta_dot**2 * sin) / task.total_mass
        inertia = task.length * (4.0 / 3.0 - task.masspole * cos**2 / task.total_mass)
        theta_acc = (task.gravity * sin - cos * temp) / inertia
        x_acc = temp - task.polemass_length * theta_acc * cos / task.total_mass
        new_x_dot, new_theta_dot = x_dot + task.tau * x_acc, theta_dot + task.tau * theta_acc
        # Euler moves with the old velocities, semi-implicit Euler with the new ones
        moved_by = (x_dot, theta_dot) if task.kinematics_integrator == "euler" else (new_x_dot, new_theta_dot)
        x, theta = x + task.tau * moved_by[0], theta + task.tau * moved_by[1]
        next_states = np.stack([x, new_x_dot, theta, new_theta_dot], axis=1)
        fallen = self.end.ended(next_states)
        reward = np.where(fallen, -1.0, 0.0) if task._sutton_barto_reward else np.ones(len(states))
        return next_states, reward, fallen


class _MountainCar(ClassicTask):
    """``mountain_car.py``, ``continuous_mountain_car.py``; the latter computes in float32, this class in float64."""

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        task, (position, velocity) = self.task, states.T
        if isinstance(task.action_space, gym.spaces.Discrete):
            push, gravity = (action - 1) * task.force, task.gravity
        else:
            push, gravity = np.clip(action[:, 0], task.min_action, task.max_action) * task.power, 0.0025
        velocity = np.clip(velocity + push - gravity * np.cos(3 * position), -task.max_speed, task.max_speed)
        position = np.clip(position + velocity, task.min_position, task.max_position)
        velocity = np.where((position == task.min_position) & (velocity < 0), 0.0, velocity)
        next_states = np.stack([position, velocity], axis=1)
        arrived = self.end.ended(next_states)
        if isinstance(task.action_space, gym.spaces.Discrete):
            reward = np.full(len(states), -1.0)
        else:
            reward = 100.0 * arrived - 0.1 * action[:, 0] ** 2
        return next_states, reward, arrived


class _Acrobot(ClassicTask):
    """``acrobot.py``, without its noise."""

    end: TerminatesAboveBar

    def start(self, obs: np.ndarray) -> np.ndarray:
        return np.stack([np.arctan2(obs[:, 1], obs[:, 0]), np.arctan2(obs[:, 3], obs[:, 2]), obs[:, 4], obs[:, 5]], axis=1)

    def observe(self, states: np.ndarray) -> np.ndarray:
        first, second, *velocities = states.T
        return np.stack([np.cos(first), np.sin(first), np.cos(second), np.sin(second), *velocities], axis=1)

    def step(self, states: np.ndarray, action: np.ndarray) -> Outcome:
        task, dt = self.task, self.task.dt
        torque = np.asarray(task.AVAIL_TORQUE)[action]

        def slope(state: np.ndarray) -> np.ndarray:
            return np.stack(task._dsdt(np.stack([*state, torque]))[:4])

        k1 = slope(states.T)
        k2 = slope(states.T + dt / 2 * k1)
        k3 = slope(states.T + dt / 2 * k2)
        k4 = slope(states.T + dt * k3)
        first, second, *velocities = states.T + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        first, second = ((angle + np.pi) % (2 * np.pi) - np.pi for angle in (first, second))
        limits = (task.MAX_VEL_1, task.MAX_VEL_2)
        velocities = [np.clip(velocity, -limit, limit) for velocity, limit in zip(velocities, limits, strict=True)]
        swung_up = self.end.ended_at(-np.cos(first) - np.cos(first + second))
        return np.stack([first, second, *velocities], axis=1), np.where(swung_up, 0.0, -1.0), swung_up


CLASSIC_TASKS: dict[str, type[ClassicTask]] = {
    "PendulumEnv": _Pendulum,
    "CartPoleEnv": _CartPole,
    "MountainCarEnv": _MountainCar,
    "Continuous_MountainCarEnv": _MountainCar,
    "AcrobotEnv": _Acrobot,
}
"""Tasks by the name of their Gymnasium class."""
