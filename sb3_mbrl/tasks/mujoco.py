"""Gymnasium's MuJoCo tasks for a batch of physics states: observations, rewards and terminations."""

import copy
import math
from typing import Any

import mujoco
import mujoco.rollout
import numpy as np

from sb3_mbrl.tasks.registry import end_of
from sb3_mbrl.tasks.termination_rules import TerminatesBelowTip

Judgement = tuple[np.ndarray, np.ndarray]
"""Rewards (B,) float64 and whether the task ended (B,) bool."""


class MujocoTask:
    """
    A task whose observation is ``qpos`` (without leading coordinates on which nothing depends) and ``qvel``.

    A state is ``time, qpos, qvel, extras``. Most tasks have no extras: the reward follows from positions and velocities before
    and after a step. The others also read quantities that MuJoCo computes within a step and that cannot be recovered from
    ``qpos`` and ``qvel`` (positions of the last integrator stage, contact forces). These are the extras; the observed ones
    come last.

    Everything is read from the environment once, and its model is copied, so later changes of the environment have no effect
    here.

    :param env: the unwrapped environment
    """

    n_skippable = 0
    """Leading coordinates that ``exclude_current_positions_from_observation`` leaves out."""
    velocity_limit = math.inf
    """Velocities are clipped to plus or minus this number in the observation."""

    def __init__(self, env: Any) -> None:
        self.model = copy.deepcopy(env.model)
        # Otherwise MuJoCo resets a diverged simulation to its initial state, which looks healthy
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.frame_skip = int(env.frame_skip)
        self.dt = float(env.dt)
        self.is_v4 = type(env).__module__.endswith("_v4")
        excluded = self.n_skippable > 0 and env._exclude_current_positions_from_observation
        self.n_skipped = self.n_skippable if excluded else 0
        self.n_physics = 1 + self.model.nq + self.model.nv
        self.end = end_of(env)
        self._read_coefficients(env)
        self.n_extras = self.extras(mujoco.MjData(self.model)).size
        self.n_visible = self.visible(np.zeros((1, self.n_physics))).shape[1]
        self.n_shown = env.observation_space.shape[0] - self.n_visible

    def _read_coefficients(self, env: Any) -> None:
        """
        Keep the constructor flags of the environment that rewards depend on.

        :param env: the unwrapped environment
        """

    def qpos(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: positions, (B, nq)
        """
        return states[:, 1 : 1 + self.model.nq]

    def qvel(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: velocities, (B, nv)
        """
        return states[:, 1 + self.model.nq : self.n_physics]

    def physics(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """
        :param qpos: (B, nq)
        :param qvel: (B, nv)
        :return: physics states at time zero, (B, 1 + nq + nv)
        """
        return np.concatenate([np.zeros((len(qpos), 1)), qpos, qvel], axis=1)

    def visible(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: the part of the observation that follows from ``qpos`` and ``qvel``, (B, V)
        """
        return np.concatenate([self.qpos(states)[:, self.n_skipped :], self._clipped_qvel(states)], axis=1)

    def _clipped_qvel(self, states: np.ndarray) -> np.ndarray:
        return np.clip(self.qvel(states), -self.velocity_limit, self.velocity_limit)

    def state_of(self, obs: np.ndarray) -> np.ndarray:
        """
        The inverse of :meth:`visible` as far as it exists: positions that are not observed become zero, clipped velocities
        stay clipped.

        :param obs: observations, (B, O)
        :return: physics states, (B, 1 + nq + nv)
        """
        n_positions = self.model.nq - self.n_skipped
        qpos = np.concatenate([np.zeros((len(obs), self.n_skipped)), obs[:, :n_positions]], axis=1)
        return self.physics(qpos, obs[:, n_positions : self.n_visible])

    def observation(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: observations, (B, O)
        """
        return np.concatenate([self.visible(states), states[:, states.shape[1] - self.n_shown :]], axis=1)

    def extras(self, data: mujoco.MjData) -> np.ndarray:
        """
        :param data: MuJoCo's data after a step
        :return: quantities that the task reads besides ``qpos`` and ``qvel``, the observed ones last, (E,)
        """
        return np.zeros(0)

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        """
        :param states: states before the step, (B, S)
        :param action: in the environment's own scale, (B, A)
        :param next_states: states after the step, (B, S)
        :return: reward of each step, and whether the task ended
        """
        raise NotImplementedError

    def ended(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: whether the rule of the task says that it ends there, (B,) bool
        """
        unclipped = np.concatenate([self.qpos(states)[:, self.n_skipped :], self.qvel(states)], axis=1)
        return self.end.ended(unclipped)

    def show(self, env: Any, obs: np.ndarray) -> None:
        """
        :param env: an unwrapped environment of this task
        :param obs: the observation (1, O) whose state it is put into
        """
        states = self.state_of(obs)
        env.set_state(self.qpos(states)[0], self.qvel(states)[0])


class _Runner(MujocoTask):
    """The reward is forward velocity minus a control cost: ``half_cheetah_v4.py``, ``swimmer_v4.py`` and their v5."""

    def _read_coefficients(self, env: Any) -> None:
        # Ant-v4 has no such weight
        self.forward_weight = float(getattr(env, "_forward_reward_weight", 1.0))
        self.control_weight = float(env._ctrl_cost_weight)

    def forward_position(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: (B, S)
        :return: the coordinate whose velocity is rewarded, in m, (B,)
        """
        return self.qpos(states)[:, 0]

    def _running(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        velocity = (self.forward_position(next_states) - self.forward_position(states)) / self.dt
        return self.forward_weight * velocity - self.control_weight * np.square(action).sum(axis=1)

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        return self._running(states, action, next_states), self.ended(next_states)


class HalfCheetah(_Runner):
    """``half_cheetah_v4.py``, ``half_cheetah_v5.py``."""

    n_skippable = 1


class Swimmer(_Runner):
    """``swimmer_v4.py``, ``swimmer_v5.py``."""

    n_skippable = 2


class _Walker(_Runner):
    """A runner that is also rewarded for being healthy, and terminates when it is not."""

    def _read_coefficients(self, env: Any) -> None:
        super()._read_coefficients(env)
        self.healthy_reward = float(env._healthy_reward)
        self.ends_unhealthy = bool(env._terminate_when_unhealthy)

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        healthy = ~self.ended(next_states)
        # v4 also pays the healthy reward in the step that ends the episode
        paid = healthy | (self.is_v4 and self.ends_unhealthy)
        reward = self._running(states, action, next_states) + self.healthy_reward * paid
        return reward, ~healthy & self.ends_unhealthy


class Walker2d(_Walker):
    """``walker2d_v4.py``, ``walker2d_v5.py``."""

    n_skippable = 1
    velocity_limit = 10.0


class Hopper(Walker2d):
    """``hopper_v4.py``, ``hopper_v5.py``."""


class Ant(_Walker):
    """
    ``ant_v4.py``, ``ant_v5.py``. Extras: x of the torso, contact cost, and the contact forces where they are observed.
    """

    n_skippable = 2

    def _read_coefficients(self, env: Any) -> None:
        super()._read_coefficients(env)
        self.torso = self.model.body("torso" if self.is_v4 else env._main_body).id
        self.contact_range = tuple(map(float, env._contact_force_range))
        self.observes_contacts = env._use_contact_forces if self.is_v4 else env._include_cfrc_ext_in_observation
        pays_contacts = env._use_contact_forces if self.is_v4 else True
        self.contact_weight = float(env._contact_cost_weight) if pays_contacts else 0.0

    def extras(self, data: mujoco.MjData) -> np.ndarray:
        low, high = self.contact_range
        forces = np.clip(data.cfrc_ext, low, high)
        # v5 leaves out the world body, on which no force acts
        shown = forces[0 if self.is_v4 else 1 :].ravel() if self.observes_contacts else np.zeros(0)
        cost = self.contact_weight * np.square(forces).sum()
        return np.concatenate([[data.xpos[self.torso, 0], cost], shown])

    def forward_position(self, states: np.ndarray) -> np.ndarray:
        return states[:, self.n_physics]

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        reward, terminated = super().judge(states, action, next_states)
        return reward - next_states[:, self.n_physics + 1], terminated


class Humanoid(Ant):
    """
    ``humanoid_v4.py``, ``humanoid_v5.py``. Extras: x of the centre of mass, contact cost, and what else is observed:
    inertias, velocities, actuator and contact forces.
    """

    def _read_coefficients(self, env: Any) -> None:
        _Walker._read_coefficients(self, env)
        self.contact_weight = 0.0 if self.is_v4 else float(env._contact_cost_weight)
        self.contact_range = (-math.inf, math.inf) if self.is_v4 else tuple(map(float, env._contact_cost_range))
        parts = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")
        # v5 leaves out the world body (one row) and the root joint, which has no actuator (six entries)
        self.parts = [
            (part, 0 if self.is_v4 else 6 if part == "qfrc_actuator" else 1)
            for part in parts
            if self.is_v4 or getattr(env, f"_include_{part}_in_observation")
        ]

    def extras(self, data: mujoco.MjData) -> np.ndarray:
        mass = self.model.body_mass
        x = mass @ data.xipos[:, 0] / mass.sum()
        low, high = self.contact_range
        cost = np.clip(self.contact_weight * np.square(data.cfrc_ext).sum(), low, high)
        return np.concatenate([[x, cost], *(getattr(data, part)[first:].ravel() for part, first in self.parts)])


class InvertedPendulum(MujocoTask):
    """``inverted_pendulum_v4.py``, ``inverted_pendulum_v5.py``."""

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        fallen = self.ended(next_states)
        # v4 also pays for the step that ends the episode
        return np.where(fallen & (not self.is_v4), 0.0, 1.0), fallen


class InvertedDoublePendulum(MujocoTask):
    """
    ``inverted_double_pendulum_v4.py``, ``inverted_double_pendulum_v5.py``. Extras: x and height of the tip, and the
    constraint forces that are observed.
    """

    velocity_limit = 10.0
    end: TerminatesBelowTip

    def _read_coefficients(self, env: Any) -> None:
        self.healthy_reward = 10.0 if self.is_v4 else float(env._healthy_reward)

    def visible(self, states: np.ndarray) -> np.ndarray:
        qpos = self.qpos(states)
        shown = [qpos[:, :1], np.sin(qpos[:, 1:]), np.cos(qpos[:, 1:]), self._clipped_qvel(states)]
        return np.concatenate(shown, axis=1)

    def state_of(self, obs: np.ndarray) -> np.ndarray:
        n_angles = self.model.nq - 1
        sines, cosines = obs[:, 1 : 1 + n_angles], obs[:, 1 + n_angles : 1 + 2 * n_angles]
        qpos = np.concatenate([obs[:, :1], np.arctan2(sines, cosines)], axis=1)
        return self.physics(qpos, obs[:, 1 + 2 * n_angles : self.n_visible])

    def extras(self, data: mujoco.MjData) -> np.ndarray:
        x, _, height = data.site_xpos[0]
        forces = np.clip(data.qfrc_constraint, -10, 10)
        return np.concatenate([[x, height], forces if self.is_v4 else forces[:1]])

    def ended(self, states: np.ndarray) -> np.ndarray:
        return self.end.ended_at(states[:, self.n_physics + 1])

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        x, height = next_states[:, self.n_physics : self.n_physics + 2].T
        first, second = self.qvel(next_states)[:, 1:3].T
        fallen = self.ended(next_states)
        # v4 also pays for the step that ends the episode
        alive = self.healthy_reward * (~fallen | self.is_v4)
        distance = 0.01 * x**2 + (height - 2) ** 2
        return alive - distance - (1e-3 * first**2 + 5e-3 * second**2), fallen


class Reacher(MujocoTask):
    """
    ``reacher_v4.py``, ``reacher_v5.py``. Extras: the vector from the target to the fingertip. The target does not move, so its
    velocity, which is not observed, is zero. The elbow is limited to ±3 rad; if it is pushed beyond this limit and past π, the
    angle that is computed from the observation has the opposite sign.
    """

    def _read_coefficients(self, env: Any) -> None:
        self.distance_weight = 1.0 if self.is_v4 else float(env._reward_dist_weight)
        self.control_weight = 1.0 if self.is_v4 else float(env._reward_control_weight)
        self.fingertip, self.target = (self.model.body(name).id for name in ("fingertip", "target"))

    def visible(self, states: np.ndarray) -> np.ndarray:
        angles, target = np.split(self.qpos(states), [2], axis=1)
        return np.concatenate([np.cos(angles), np.sin(angles), target, self.qvel(states)[:, :2]], axis=1)

    def state_of(self, obs: np.ndarray) -> np.ndarray:
        qpos = np.concatenate([np.arctan2(obs[:, 2:4], obs[:, :2]), obs[:, 4 : self.model.nq + 2]], axis=1)
        qvel = np.zeros((len(obs), self.model.nv))
        qvel[:, :2] = obs[:, self.n_visible - 2 : self.n_visible]
        return self.physics(qpos, qvel)

    def extras(self, data: mujoco.MjData) -> np.ndarray:
        x, y, z = data.xpos[self.fingertip] - data.xpos[self.target]
        # v5 does not observe the height, so it comes before the observed extras
        return np.array([x, y, z] if self.is_v4 else [z, x, y])

    def judge(self, states: np.ndarray, action: np.ndarray, next_states: np.ndarray) -> Judgement:
        # v4 measures the distance before the step
        judged = states if self.is_v4 else next_states
        distance = np.linalg.norm(judged[:, self.n_physics : self.n_physics + 3], axis=1)
        reward = -self.distance_weight * distance - self.control_weight * np.square(action).sum(axis=1)
        return reward, self.ended(next_states)


MUJOCO_TASKS: dict[str, type[MujocoTask]] = {
    f"{task.__name__}Env": task
    for task in (
        HalfCheetah,
        Swimmer,
        Hopper,
        Walker2d,
        Ant,
        Humanoid,
        InvertedPendulum,
        InvertedDoublePendulum,
        Reacher,
    )
}
"""Tasks by the name of their Gymnasium class. Pusher is missing: its observation does not show how fast the object moves."""


def known_mujoco_task(env: Any) -> MujocoTask | None:
    """
    :param env: an unwrapped environment of one of Gymnasium's own tasks
    :return: the task; None if it cannot be simulated, or if its state is more than ``qpos`` and ``qvel`` (actuator activations
        of a custom XML file, which no observation shows)
    """
    task = MUJOCO_TASKS.get(type(env).__qualname__)
    if task is None:
        return None
    n_state = mujoco.mj_stateSize(env.model, int(mujoco.mjtState.mjSTATE_FULLPHYSICS))
    return task(env) if n_state == 1 + env.model.nq + env.model.nv else None
