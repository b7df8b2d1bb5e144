"""Steps Gymnasium's MuJoCo tasks for a batch of physics states, in several threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import mujoco.rollout
import numpy as np

from sb3_mbrl.tasks.mujoco import MujocoTask


class MujocoSimulator:
    """
    Steps all states at once, in several threads. States are float64.

    The constraint solver starts cold in each step, while the environment starts it from its last solution: in contact both
    agree to the solver's tolerance, not bit for bit. Results do not depend on the number of threads.

    :param task: defines observations, rewards and terminations
    :param n_threads: number of threads that step states
    """

    def __init__(self, task: MujocoTask, n_threads: int) -> None:
        self.task = task
        self.data = [mujoco.MjData(task.model) for _ in range(n_threads)]
        self._spec = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)
        # With nthread=0, MuJoCo works in the calling thread
        self._rollout = mujoco.rollout.Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 and task.n_extras > 0 else None

    def start(self, obs: np.ndarray) -> np.ndarray:
        states = self.task.state_of(obs)
        if self.task.n_extras == 0:
            return states
        states = np.stack([np.concatenate([state, self._extras_at(state)]) for state in states])
        if self.task.n_shown > 0:
            states[:, -self.task.n_shown :] = obs[:, self.task.n_visible :]
        return states

    def observe(self, states: np.ndarray) -> np.ndarray:
        return self.task.observation(states)

    def step(self, states: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # A batched rollout returns only positions and velocities, not the extras of a task
        next_states = self.advance(states, action) if self.task.n_extras == 0 else self._advance_one_by_one(states, action)
        next_states[self._diverged(states, next_states)] = np.nan
        reward, terminated = self.task.judge(states, action, next_states)
        return next_states, reward, terminated

    def advance(self, states: np.ndarray, action: np.ndarray, models: Sequence[mujoco.MjModel] | None = None) -> np.ndarray:
        """
        :param states: (B, S)
        :param action: in the environment's own scale, (B, A)
        :param models: the physics of each state; None: the task's
        :return: physics states after one step of the environment, without extras, (B, 1 + nq + nv)
        """
        substeps, _ = self._rollout.rollout(
            self.task.model if models is None else models,
            self.data,
            states[:, : self.task.n_physics],
            action[:, None],
            nstep=self.task.frame_skip,
        )
        return np.array(substeps[:, -1])

    def _advance_one_by_one(self, states: np.ndarray, action: np.ndarray) -> np.ndarray:
        next_states = np.empty_like(states)
        shares = np.array_split(np.arange(len(states)), len(self.data))
        if self._pool is None:
            self._advance_share(self.data[0], shares[0], states, action, next_states)
        else:
            others = [
                self._pool.submit(self._advance_share, data, share, states, action, next_states)
                for data, share in zip(self.data, shares, strict=True)
            ]
            for other in others:
                other.result()
        return next_states

    def _advance_share(
        self, data: mujoco.MjData, share: np.ndarray, states: np.ndarray, action: np.ndarray, next_states: np.ndarray
    ) -> None:
        task, n_physics = self.task, self.task.n_physics
        for index in share:
            mujoco.mj_setState(task.model, data, states[index, :n_physics], self._spec)
            # A cold start of the solver, so that the result does not depend on the state that was stepped before
            data.qacc_warmstart[:] = 0
            data.ctrl[:] = action[index]
            # The same calls as in Gymnasium's `_step_mujoco_simulation`
            mujoco.mj_step(task.model, data, task.frame_skip)
            mujoco.mj_rnePostConstraint(task.model, data)
            mujoco.mj_getState(task.model, data, next_states[index, :n_physics], self._spec)
            next_states[index, n_physics:] = task.extras(data)

    def _extras_at(self, state: np.ndarray) -> np.ndarray:
        data = self.data[0]
        mujoco.mj_setState(self.task.model, data, state, self._spec)
        data.qacc_warmstart[:] = 0
        data.ctrl[:] = 0
        mujoco.mj_forward(self.task.model, data)
        mujoco.mj_rnePostConstraint(self.task.model, data)
        return self.task.extras(data)

    def _diverged(self, states: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        # A value is beyond MuJoCo's own bound, or MuJoCo stopped with a warning, so that its clock did not advance
        bad = ~(np.abs(next_states[:, 1 : self.task.n_physics]) < mujoco.mjMAXVAL).all(axis=1)
        return bad | ~(next_states[:, 0] - states[:, 0] > 0.5 * self.task.dt)
