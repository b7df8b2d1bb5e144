"""What algorithms share that plan their actions."""

import numpy as np

from sb3_mbrl.common.algorithm import ModelAlgorithm
from sb3_mbrl.mpc.policy import MPCPolicy


class ActsByPlanning(ModelAlgorithm):
    """
    Before an off-policy algorithm of SB3 in the list of bases: its policy is an :class:`MPCPolicy`, whose plans go on from one
    step of the training environments to the next.
    """

    _is_mixin = True

    policy: MPCPolicy
    _planner_state: tuple[np.ndarray, ...] | None = None

    def _planned_actions(self) -> np.ndarray:
        """
        :return: for the training environments, in their scale, (n_envs, \\*action_space.shape)
        """
        if np.all(self._last_episode_starts):  # type: ignore[arg-type]  # perhaps of other environments: no plan goes on
            self._planner_state = None
        assert self._last_obs is not None and not isinstance(self._last_obs, tuple)
        with self._timed("planning"):
            actions, self._planner_state = self.policy.predict(
                self._last_obs, self._planner_state, self._last_episode_starts, deterministic=False
            )
        self._log_plan()
        return actions

    def _log_plan(self) -> None:
        plan = self.policy.last_plan
        if plan is not None:
            self.logger.record_mean("planner/value", plan.value.mean().item())
            self.logger.record_mean("planner/std", plan.std.mean().item())
            self.logger.record_mean("planner/n_iterations", plan.n_iterations)
